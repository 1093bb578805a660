"""The page of the paths that lead to servers and workers, made from the families' endpoint tables."""

from __future__ import annotations

from fleetproxy.core.operation import Endpoint
from fleetproxy.families import registry
from fleetproxy.proxy.gate import CONTROL_WORDS

_HEAD = """\
# Endpoints

What the public port answers for clients. Paths of the dashboard's API are on [their own page](api.md); both together
are the OpenAPI document at `/api/client/openapi.json`, which `/api/client/` shows for reading and trying.

Any other path under `/api/` and `/v1/`, with any method, goes to a server unchanged, so that a new version of a server
needs no new version of fleetproxy. `passthrough` names paths outside these, such as `/rerank`. Everything else is 404.

| column | says |
| --- | --- |
| answered by | one server · the fleet: from memory, no server is asked · split: parts of it at several servers · channel: a tunnel |
| again elsewhere | another server may be asked when one fails before the first byte |
"""
_ANSWERED = {
    "relay": "one server",
    "gather": "the fleet",
    "scatter": "split",
    "local": "fleetproxy",
    "tunnel": "channel",
}
_TITLES = (
    ("Ollama", "main", "ollama"),
    ("OpenAI", "main", "openai"),
    ("Anthropic", "main", "anthropic"),
)
_FAMILIES = {
    "llm": "nfrx: language models",
    "asr": "nfrx: speech",
    "mcp": "MCP relays",
    "transfer": "Transfer channels",
}
_WELL = """
## Health

No key, and no server is asked.

| path | answer |
| --- | --- |
| GET `/healthz`, `/livez`, `/health` | 200 while the process runs |
| GET `/readyz` | 200 when requests can be served, else 503 with `failed`: `snapshot`, `backends`, `hub`, `accepting` |
| GET `/` | `Ollama is running` |

## Workers dial in

| path | protocol |
| --- | --- |
| `/api/llm/connect`, `/api/asr/connect` | WebSocket: `fleetproxy.v1`, or without a subprotocol nfrx's JSON |
| `/api/mcp/connect` | WebSocket: MCP relays, ours and nfrx's |
"""


def page() -> str:
    """The page, in Markdown."""
    text = _HEAD
    endpoints = [endpoint for family in registry.BUILT_IN for endpoint in family.endpoints]
    for title, surface, dialect in _TITLES:
        text += _section(title, [e for e in endpoints if e.surface == surface and e.dialect == dialect])
    for family, title in _FAMILIES.items():
        text += _section(title, [e for e in endpoints if e.surface == "family" and e.family == family])
    text += _WELL
    owned = ", ".join(f"`/api/{word.decode()}`" for word in sorted(CONTROL_WORDS))
    return text + f"\n## Not servers'\n\nThese belong to the [dashboard's API](api.md): {owned}.\n"


def _section(title: str, endpoints: list[Endpoint]) -> str:
    text = f"\n## {title}\n\n| path | answered by | again elsewhere | what |\n| --- | --- | --- | --- |\n"
    for endpoint in sorted(endpoints, key=lambda one: (one.path, one.methods)):
        doubled = len(endpoint.path) > 1 and endpoint.path.endswith("/")
        if doubled:
            continue
        again = "yes" if endpoint.shape in ("relay", "scatter") and endpoint.read else ""
        what = endpoint.doc.replace("|", "\\|")
        methods = ", ".join(endpoint.methods)
        text += f"| {methods} `{endpoint.path}` | {_ANSWERED[endpoint.shape]} | {again} | {what} |\n"
    return text
