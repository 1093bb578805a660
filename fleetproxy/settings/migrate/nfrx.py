"""From nfrx: `server.yaml` or an agent's YAML, and the environment of either.

Its YAML has two spellings: the documented one (`api_key`), which it ignores, and the one it reads (`apikey`). Both are
taken, and it is said which ones it had ignored: a server thought to be secured may have been open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fleetproxy.settings.migrate.result import Draft, Migration, to_toml
from fleetproxy.settings.migrate.sources import Sources

HEAD = """\
fleetproxy, as the nfrx server was set up. Its agents dial in unchanged, at the same port.
`fleetproxy config check` reads it; `fleetproxy doctor` tries it."""
AGENT_HEAD = """\
fleetproxy worker {family}, as the nfrx agent was set up.
Start it: fleetproxy worker {family} --config THIS_FILE"""

Agent = Literal["llm", "asr", "mcp"]

#: Variables a server reads, and those its YAML spells as documented and nevertheless reads.
_SERVER = (
    "LOG_LEVEL", "PORT", "METRICS_PORT", "API_KEY", "CLIENT_KEY", "API_HTTP_ROLES", "CLIENT_HTTP_ROLES",
    "REQUEST_TIMEOUT", "DRAIN_TIMEOUT", "JOBS_SSE_CLOSE_DELAY", "JOBS_CLIENT_TTL", "ALLOWED_ORIGINS", "REDIS_ADDR",
    "PLUGINS",
)  # fmt: skip
_READ_AS_DOCUMENTED = ("API_HTTP_ROLES", "CLIENT_HTTP_ROLES", "JOBS_SSE_CLOSE_DELAY", "JOBS_CLIENT_TTL")
#: plugin_options of server.yaml -> variable, or our own key.
_PLUGIN_OPTIONS = {
    ("llm", "queue_size"): "LLM_QUEUE_SIZE",
    ("llm", "queue_update_seconds"): "LLM_QUEUE_UPDATE_SECONDS",
    ("llm", "min_score"): "LLM_MIN_SCORE",
    ("llm", "max_parallel_embeddings"): "LLM_MAX_PARALLEL_EMBEDDINGS",
    ("mcp", "max_req_bytes"): "BROKER_MAX_REQ_BYTES",
    ("mcp", "max_resp_bytes"): "BROKER_MAX_RESP_BYTES",
    ("mcp", "max_concurrency_per_client"): "BROKER_MAX_CONCURRENCY_PER_CLIENT",
}
_BROKER = {
    "BROKER_MAX_REQ_BYTES": "mcp.max_request_bytes",
    "BROKER_MAX_RESP_BYTES": "mcp.max_response_bytes",
    "BROKER_MAX_CONCURRENCY_PER_CLIENT": "mcp.calls_per_caller",
}
#: What it did where nothing was said.
_DEFAULTS: tuple[tuple[str, Any, str], ...] = (
    ("port", 8080, "nfrx's own; Ollama's clients look for 11434."),
    ("timeouts.first_byte_s", 120.0, ""),
    ("timeouts.stream_idle_s", 120.0, ""),
    ("timeouts.drain_s", 300.0, ""),
    ("queue.size", 100, ""),
)
#: Variables of an agent that `fleetproxy worker` reads in its file, by family.
_AGENT = (
    "SERVER_URL", "CLIENT_KEY", "CLIENT_ID", "CLIENT_NAME", "MAX_CONCURRENCY", "RECONNECT", "DRAIN_TIMEOUT",
    "METRICS_PORT", "LOG_LEVEL",
)  # fmt: skip
_OF_FAMILY: dict[Agent, tuple[str, ...]] = {
    "llm": (
        "COMPLETION_BASE_URL", "COMPLETION_API_KEY", "API_STYLE", "EMBEDDING_BATCH_SIZE", "MODEL_POLL_INTERVAL",
        "REQUEST_TIMEOUT", "STATUS_ADDR",
    ),
    "asr": ("ASR_BASE_URL", "ASR_API_KEY", "REQUEST_TIMEOUT", "STATUS_ADDR"),
    "mcp": ("PROVIDER_URL", "AUTH_TOKEN"),
}  # fmt: skip
_SECRETS = ("CLIENT_KEY", "COMPLETION_API_KEY", "ASR_API_KEY", "AUTH_TOKEN")


def migrate(sources: Sources) -> Migration:
    """Our configuration for its server. Never raises: what cannot be used is in the notes."""
    draft = Draft()
    given = _variables(draft, sources, _SERVER)
    _plugin_options(draft, sources, given)
    draft.put("host", "0.0.0.0", "It listened on every address.")  # noqa: S104
    if not given.get("API_KEY"):
        draft.put(
            "open", True, "It had no API key: everybody could call it. Take this line away, and set auth.api_key."
        )
    given["METRICS_PORT"] = _metrics(given.get("METRICS_PORT", ""), given.get("PORT") or "8080")
    if not given.get("CLIENT_KEY"):
        draft.notes.append(
            "there is no client key: every worker that knows the address may dial in; set auth.client_key"
        )
    for name, key in _BROKER.items():
        text = given.pop(name, "")
        if text.isdigit() and int(text):
            draft.put(key, int(text))
    draft.take(given)
    for key, value, remark in _DEFAULTS:
        draft.put(key, value, remark)
    _pings(draft, given)
    return draft.finish(HEAD)


def migrate_agent(sources: Sources, family: Agent) -> Migration:
    """The file of one of our workers, for its agent."""
    draft = Draft()
    known = (*_AGENT, *_OF_FAMILY[family])
    given = _variables(draft, sources, known)
    table = {name.lower(): given[name] for name in known if given.get(name)}
    if "RECONNECT" not in given:
        draft.notes.append("our worker dials again for ever unless told otherwise; nfrx's left after the first loss")
    if not table.get("server_url"):
        draft.notes.append(f"SERVER_URL was not given: ws://localhost:8080/api/{family}/connect, as there")
    secrets = [name.lower() for name in _SECRETS if given.get(name)]
    if secrets:
        draft.notes.append(f"the file holds secrets ({', '.join(secrets)}): chmod 600, or give them as variables")
    head = AGENT_HEAD.format(family=family)
    return Migration(toml=to_toml(table, head), notes=tuple(draft.notes))


def looks_like_agent(sources: Sources) -> bool:
    """Whether this is the configuration of an agent, not of a server."""
    return any(_plain(key) == "serverurl" for _, tree in sources.trees for key in tree)


def _variables(draft: Draft, sources: Sources, known: tuple[str, ...]) -> dict[str, str]:
    """What the YAML says, as variables; the environment beats it."""
    by_plain = {_plain(name): name for name in known} | {"metricsaddr": "METRICS_PORT"}
    found: dict[str, str] = {}
    for path, tree in sources.trees:
        ignored = []
        for key, value in tree.items():
            if key == "plugin_options":
                continue
            name = by_plain.get(_plain(key))
            if name is None:
                draft.notes.append(f"{path}: {key} has no equivalent")
                continue
            if "_" in key and name not in _READ_AS_DOCUMENTED:
                ignored.append(key)
            found[name] = _text(value)
        if ignored:
            draft.notes.append(
                f"{path}: nfrx ignored {', '.join(ignored)} (it reads them without underscores); here they hold, so "
                "check that they are what you want"
            )
    given = {name: text for name in known if (text := sources.environment.get(name))}
    given |= {name: text for name in _BROKER if (text := sources.environment.get(name))}
    given |= {name: text for name, text in sources.environment.items() if name.startswith("LLM_") and text}
    return found | given


def _plugin_options(draft: Draft, sources: Sources, given: dict[str, str]) -> None:
    for path, tree in sources.trees:
        options = tree.get("plugin_options")
        for family, values in options.items() if isinstance(options, Mapping) else ():
            for key, value in values.items() if isinstance(values, Mapping) else ():
                name = _PLUGIN_OPTIONS.get((str(family), str(key)))
                if name is None:
                    draft.notes.append(f"{path}: plugin_options.{family}.{key} has no equivalent")
                else:
                    given.setdefault(name, _text(value))


def _metrics(text: str, port: str) -> str:
    """Its own address for metrics; "" where that is the public port."""
    text = text.strip()
    return "" if text.rpartition(":")[2] == port else text


def _pings(draft: Draft, given: Mapping[str, str]) -> None:
    if "docling" in given.get("PLUGINS", ""):
        draft.notes.append("the plugin docling has no equivalent; name its path in passthrough if a server answers it")
    draft.notes.append("WebSocket heartbeats are fixed here: a worker silent for 15 s is let go")


def _plain(key: str) -> str:
    return key.replace("_", "").lower()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
