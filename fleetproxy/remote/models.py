"""Models of the fleet, with where each one is: what `list`, `ps`, `show`, `rm` and `stop` work with.

An operator's key tells servers and all; with a key for inference alone the lists every client sees must do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from fleetproxy.core.names import canonical
from fleetproxy.remote.call import Answer, CallError, Fleet, good, segment


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model on disk, wherever it is."""

    name: str
    digest: str = ""
    size_bytes: int | None = None
    modified_at: str = ""
    #: Servers and workers that have it, by name; empty where we may not know.
    servers: tuple[str, ...] = ()
    details: Mapping[str, Any] = {}


class Copy(msgspec.Struct, frozen=True, kw_only=True):
    """One model in the memory of one server."""

    name: str
    digest: str = ""
    size_bytes: int | None = None
    vram_bytes: int | None = None
    context_length: int | None = None
    expires_at: str = ""
    server: str = ""

    @property
    def processor(self) -> str:
        """In Ollama's words: "100% GPU", "48%/52% CPU/GPU"; "" when not known."""
        if not self.size_bytes or self.vram_bytes is None:
            return ""
        if self.vram_bytes == 0:
            return "100% CPU"
        if self.vram_bytes >= self.size_bytes:
            return "100% GPU"
        cpu = round((self.size_bytes - self.vram_bytes) / self.size_bytes * 100)
        return f"{cpu}%/{100 - cpu}% CPU/GPU"


def listed(fleet: Fleet) -> list[Model]:
    """Every model of the fleet, newest first, as Ollama orders them. Raises CallError."""
    servers = _servers(fleet)
    if servers is None:
        entries = [("", entry) for entry in _models(fleet.get("/api/tags"))]
    else:
        entries = [
            (server["name"], entry)
            for server in servers
            if server.get("isOnline")
            for entry in server.get("availableModels") or ()
        ]
    found = {(canonical(model.name), model.digest): model for model in _merged(entries)}
    names = {name for name, _ in found}
    for name, others in _elsewhere(fleet, everybody=servers is None):
        if canonical(name) not in names:
            found[canonical(name), ""] = Model(name=name, servers=others)
        for identity, model in found.items():
            if identity[0] == canonical(name):
                both = tuple(dict.fromkeys((*model.servers, *others)))
                found[identity] = msgspec.structs.replace(model, servers=both)
    return _newest_first(found.values())


def _newest_first(found: Iterable[Model]) -> list[Model]:
    return sorted(found, key=lambda model: (_instant(model.modified_at), model.name), reverse=True)


def look_again(fleet: Fleet) -> bool:
    """Have every server polled now; False where the key may not. What the fleet knows is as old as its last poll."""
    return fleet.ask_control("POST", "/api/poll").status == 200


def in_memory(fleet: Fleet) -> list[Copy]:
    """Every copy in a server's memory, longest to stay first. Raises CallError."""
    servers = _servers(fleet)
    if servers is None:
        entries = [(entry.get("_server") or "", entry) for entry in _models(fleet.get("/api/ps"))]
    else:
        entries = [
            (server["name"], entry)
            for server in servers
            if server.get("isOnline")
            for entry in server.get("loadedModels") or ()
        ]
    copies = [
        Copy(
            name=_name(entry),
            digest=entry.get("digest") or "",
            size_bytes=entry.get("size"),
            vram_bytes=entry.get("size_vram"),
            context_length=entry.get("context_length"),
            expires_at=entry.get("expires_at") or "",
            server=server,
        )
        for server, entry in entries
    ]
    return sorted(copies, key=lambda copy: _instant(copy.expires_at), reverse=True)


def holders(models: Iterable[Model], name: str) -> tuple[str, ...]:
    """Servers that have a model on disk, every digest of it."""
    wanted = canonical(name)
    names = [server for model in models if canonical(model.name) == wanted for server in model.servers]
    return tuple(dict.fromkeys(names))


def show(fleet: Fleet, name: str, *, verbose: bool = False, server: str | None = None) -> dict[str, Any]:
    """What a server tells of a model; of servers other than Ollama what their list says. Raises CallError."""
    answer = fleet.ask("POST", "/api/show", {"model": name, "verbose": verbose}, server=server)
    if answer.status == 404:
        other = fleet.ask("GET", f"/v1/models/{segment(name)}")
        if other.status == 200 and isinstance(other.value, dict):
            return _as_shown(other.value)
    value = good(answer, "/api/show")
    return value if isinstance(value, dict) else {}


def remove(fleet: Fleet, name: str, server: str | None) -> Answer:
    """Delete a model from a server (from any, without one). Raises CallError."""
    answer = fleet.ask("DELETE", "/api/delete", {"model": name}, server=server)
    good(answer, "/api/delete")
    return answer


def unload(fleet: Fleet, name: str, server: str | None) -> Answer:
    """Let a model go from a server's memory. Raises CallError."""
    answer = fleet.ask("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False}, server=server)
    good(answer, "/api/generate")
    return answer


def known_servers(fleet: Fleet) -> list[dict[str, Any]]:
    """Every configured server, as the dashboard API shows it. Raises CallError."""
    found = fleet.control("GET", "/api/servers")
    return list(found) if isinstance(found, list) else []


def _servers(fleet: Fleet) -> list[dict[str, Any]] | None:
    """The same; None when this key may not see them, or nobody answers there."""
    try:
        return known_servers(fleet)
    except CallError as error:
        if error.kind in ("refused", "missing"):
            return None
        raise


def _elsewhere(fleet: Fleet, *, everybody: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Models of dial-in workers (of servers too, when they are not known otherwise), with who has them."""
    answer = fleet.ask_control("GET", "/api/state")
    if answer.status == 200 and isinstance(answer.value, dict):
        models = answer.value.get("plugins", {}).get("llm", {}).get("models", [])
        if everybody:
            return [(model["id"], (*model["servers"], *model["workers"])) for model in models]
        return [(model["id"], tuple(model["workers"])) for model in models if model["workers"]]
    answer = fleet.ask("GET", "/v1/models")
    listed = answer.value.get("data", []) if answer.status == 200 and isinstance(answer.value, dict) else []
    return [(entry["id"], ()) for entry in listed if isinstance(entry.get("id"), str)]


def _merged(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Model]:
    """Equal name and digest is one model, on several servers."""
    found: dict[tuple[str, str], Model] = {}
    for server, entry in entries:
        identity = (_name(entry), entry.get("digest") or "")
        before = found.get(identity)
        if before is None:
            found[identity] = Model(
                name=identity[0],
                digest=identity[1],
                size_bytes=entry.get("size"),
                modified_at=entry.get("modified_at") or "",
                servers=(server,) if server else (),
                details=entry.get("details") or {},
            )
        elif server:
            found[identity] = msgspec.structs.replace(before, servers=(*before.servers, server))
    return list(found.values())


def _models(value: Any) -> list[dict[str, Any]]:
    models = value.get("models", []) if isinstance(value, dict) else []
    return [entry for entry in models if isinstance(entry, dict)]


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("name") or entry.get("model") or "")


def _as_shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of /v1/models in the words of /api/show."""
    length = entry.get("max_model_len")
    info = {"general.architecture": entry.get("owned_by") or ""} | ({"context_length": length} if length else {})
    return {"details": {"family": entry.get("owned_by") or ""}, "model_info": info, "capabilities": []}


def _instant(text: str) -> float:
    """Seconds since the epoch; what is no instant is the oldest."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
