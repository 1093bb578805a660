"""From Ollama alone: fleetproxy takes its address, and Ollama moves one port up behind it."""

from __future__ import annotations

from fleetproxy.settings.ancestors import ANCESTORS
from fleetproxy.settings.migrate.result import Draft, Migration
from fleetproxy.settings.migrate.sources import Sources
from fleetproxy.settings.servers import OLLAMA_PORT, is_loopback

HEAD = """\
fleetproxy in front of the Ollama of this machine. Clients change nothing: it answers where
Ollama did, and Ollama moves to the next port."""


def migrate(sources: Sources) -> Migration:
    """Our configuration in front of it. Never raises: what cannot be used is in the notes."""
    environment = {name: text for name, text in sources.environment.items() if name.startswith("OLLAMA_")}
    draft = Draft()
    draft.take({name: text for name, text in environment.items() if name != "OLLAMA_SERVERS"})
    draft.put("port", OLLAMA_PORT)
    host, port = draft.tree.get("host", "127.0.0.1"), draft.tree["port"]
    if not is_loopback(host):
        draft.put(
            "open", True, "Ollama asks nobody for a key. Take this line away to ask for one, and name it in [[keys]]."
        )
    behind = port + 1 if port < 65535 else port - 1
    server: dict[str, object] = {"name": "local", "url": f"http://127.0.0.1:{behind}"}
    parallel = environment.get("OLLAMA_NUM_PARALLEL", "").strip()
    if parallel.isdigit() and int(parallel):
        server["max_concurrent"] = int(parallel)
    draft.put("servers", [server])
    draft.commands.append(f"OLLAMA_HOST=127.0.0.1:{behind} ollama serve")
    draft.notes.append(
        f"Ollama must listen on 127.0.0.1:{behind} from now on: OLLAMA_HOST in its systemd unit (systemctl edit ollama)"
    )
    ours = {ancestor.name for ancestor in ANCESTORS} | {"OLLAMA_NUM_PARALLEL"}
    kept = sorted(name for name in environment if name not in ours)
    if kept:
        draft.notes.append(f"{', '.join(kept)}: these stay with Ollama")
    return draft.finish(HEAD)
