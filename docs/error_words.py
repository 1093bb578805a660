"""The page of error words: what each means is said in the code, what to do about it here."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import fleetproxy
from fleetproxy.errors import BackendError, ClientError, FleetError, ProxyError
from fleetproxy.families.llm.errors import _NFRX_WORDS
from fleetproxy.families.mcp.errors import SAID

#: Scripts that alembic runs.
_MIGRATIONS = "fleetproxy.control.state.migrations."
_HEAD = """\
# Error words

What a request can be refused with, or fail with: one word, the same in the answer, the log, the columns
`requests.error` and `attempts.error`, and the label `reason` of the metrics. `x-request-id` of the answer finds the row:

```sh
fleetproxy query "select * from requests where request_id = 'THE-ID'"
```

## How an error looks

In the words of the path that was called. A stream that has begun ends with the last column, then the connection is
broken off; it never looks like a good end.

| path | body | in a stream |
| --- | --- | --- |
| `/api/*` (Ollama) | `{"error": "text"}` | one more line `{"error": "text"}` |
| `/v1/*` (OpenAI) | `{"error": {"message", "type", "param", "code"}, "request_id"}` | `data: {"error": {...}}`, no `[DONE]` |
| `/v1/messages` (Anthropic) | `{"type": "error", "error": {"type", "message"}, "request_id"}` | `event: error` |
| `/v1/responses` (OpenAI) | as OpenAI | `event: error` with `code` and `message` |
| `/api/llm`, `/api/asr` (nfrx) | as OpenAI, `code` is [nfrx's word](#words-of-nfrx) | as OpenAI |
| `/api/mcp` | [JSON-RPC error](#words-of-mcp-calls) | `event: message` with it |
| `/api/transfer` | `{"error": "word"}` | the connection breaks |
| the dashboard's API | `{"error": "text"}` | |

`Retry-After` (seconds) and `retry-after-ms` are sent where trying again makes sense, `x-should-retry: false` where no
repetition can help; the OpenAI SDKs obey both. fleetproxy itself has tried other servers already where that was safe:
see [the path of a request](../explanation/request-path.md).
"""

#: Code -> what to do about it.
ADVICE: dict[str, str] = {
    # the caller's side
    "bad_request": "Read the text: it names what is malformed. Mostly a hand-written client.",
    "bad_host": "Send exactly one `Host` header with the name or address you connect to.",
    "bad_path": "Send the path plainly, without `//`, `..`, `%2f` or control characters. Model ids may hold slashes.",
    "bad_json": "Send a JSON object; try it with `python -m json.tool`.",
    "missing_body": "This path needs a JSON body.",
    "unauthorized": "Send a key: `Authorization: Bearer KEY`, `X-Ollama-Api-Key` or `x-api-key`. Make one with "
    "`fleetproxy keys add USER`, see [keys and users](../how-to/keys-and-users.md).",
    "forbidden": "Use another key, or let this one do more: its models, its scopes, or the role of its user.",
    "origin_refused": "Add the page's origin to `cors.origins`.",
    "host_refused": "Add the name to `hosts`. This check keeps web pages from reaching a local port by a name of theirs.",
    "not_found": "Look at the [endpoints](endpoints.md). Paths outside `/api/` and `/v1/` need `passthrough`; a family "
    "that is not in `plugins` has no paths.",
    "method_not_allowed": "The answer's `Allow` header names the methods this path takes.",
    "upgrade_required": "This is the address for `fleetproxy worker --server-url`, not one to ask.",
    "body_timeout": "The network or the client stopped; raise `timeouts.body_idle_s` for slow lines.",
    "conflict": "Read the text: the name is taken, or what you change comes from the configuration file.",
    "body_too_large": "Send less, or raise `limits.body_bytes`. Blobs and audio are not limited by it.",
    "uri_too_long": "Send what is long in the body; the limit is 8 KiB.",
    "unsupported_encoding": "Send the body uncompressed.",
    "unsupported_media_type": "Send `Content-Type: application/json`.",
    "expectation_failed": "Only `Expect: 100-continue` is known; leave others out.",
    "headers_too_large": "Send fewer or shorter headers; the limit is 32 KiB.",
    "rate_limited": "Wait as long as `Retry-After` says, or raise the key's `requests_per_minute` or `max_in_flight`.",
    "transfer_not_found": "Make a channel with `POST /api/transfer`; ids live for `transfer.ttl_s`.",
    "transfer_in_use": "Make another channel: each has one reader and one writer, ever.",
    "transfer_expired": "Start both ends within `transfer.ttl_s`, or raise it.",
    "too_many_transfers": "Use up open channels, let them expire, or raise `transfer.channels_per_key`.",
    "bad_form": "Send `multipart/form-data`, as `curl -F` and the SDKs do.",
    "no_model": "Add the form's `model` part.",
    "bad_rpc": "Send one JSON-RPC 2.0 message.",
    "relay_frame_limit": "Use `fleetproxy worker mcp` at the far end instead of nfrx's agent, or send less.",
    "too_many_calls": "Wait for a call to end, or raise `mcp.calls_per_caller`.",
    "bad_query": "Send one `SELECT` or `EXPLAIN`; the text names what DuckDB did not like. "
    "[Tables](tables.md) has the columns.",
    "too_many_queries": "Two SQL queries run at once; try again.",
    "client_gone": "Nothing here: the caller hung up, or its own time limit ended. The server was told to stop.",
    # our side
    "unavailable": "Try again; if it lasts, read the log.",
    "model_not_found": "`fleetproxy list` shows what there is, `fleetproxy pull MODEL --server NAME` brings it. Aliases: "
    "`routing.aliases`.",
    "dialect_unspoken": "Ask in the dialect of the servers that have the model: llama.cpp and vLLM speak `/v1/*`, not "
    "Ollama's `/api/*`.",
    "server_not_found": "`fleetproxy servers` shows the names; `routing.pin_fallback` routes such requests elsewhere.",
    "server_unavailable": "`fleetproxy status` shows what is wrong with it; without the pin another server would answer.",
    "relay_offline": "Start `fleetproxy worker mcp` with this `--client-id` at the far end.",
    "no_backend": "`fleetproxy status` and `fleetproxy doctor` say why no server is online.",
    "queue_full": "The fleet is too small for this, or `queue.size` is: see [limits and waiting](../how-to/limits.md).",
    "queue_timeout": "As `queue_full`; `queue.wait_s` is how long requests wait.",
    "overloaded": "Many large bodies at once: raise `limits.buffered_bytes` if there is memory for it.",
    "draining": "It is being stopped or restarted; clients that obey `Retry-After` see nothing of it.",
    "store_unavailable": "The store is starting, or its disk is full; requests are served all the same. See the log of "
    "control.",
    "query_timeout": "Ask for fewer hours, or raise `analytics.query_timeout_s`.",
    "loop_detected": "A server's `url` leads back to this fleetproxy; `fleetproxy servers` shows them.",
    "internal_error": "A fault of fleetproxy. The log has it, with the request's id; please report it.",
    # the backend's side
    "backend_error": "Read the row's `attempts`, then that server's own log.",
    "connect_failed": "The server is down, or a firewall is between: `curl` its address from the machine of fleetproxy.",
    "connect_timeout": "As `connect_failed`; `timeouts.connect_s` is the limit.",
    "connection_stale": "Ordinary: a kept connection had been closed. It is tried again where that is safe.",
    "backend_reset": "The server broke the connection: often out of memory. See its log.",
    "bad_response": "It does not speak HTTP as it should: is the URL's port right, and http or https?",
    "backend_timeout": "The model loads, or the prompt is long: raise `timeouts.first_byte_s`; else the server hangs.",
    "backend_lost": "The server died or was restarted in the middle; ask again.",
    "backend_stalled": "The server hangs: raise `timeouts.stream_idle_s` if such pauses are usual with it.",
    "stream_truncated": "The server ended the answer early; see its log, and ask again.",
    "backend_refused": "The text is the server's own.",
    "backend_error_event": "The server told of an error inside its stream; the caller saw it. See that server's log.",
    "relay_refused": "See the log of `fleetproxy worker mcp`: its server did not start or did not take the call.",
    "relay_unauthorized": "Send the token that the relay was started with.",
    "relay_no_answer": "See the log of the MCP server.",
    "relay_answer_too_large": "Raise `mcp.max_response_bytes`, or use `fleetproxy worker mcp`, which streams.",
    "transfer_failed": "Make another channel and send again.",
    "worker_refused": "The worker drains or leaves; another one was tried where there is one.",
    "worker_busy": "All `--max-concurrency` requests of the worker are taken.",
    "model_missing": "The server lost the model since it was polled; others were tried.",
    "too_many_watchers": "Close some of the windows, or read `/api/state` every few seconds instead.",
}


def kinds() -> dict[str, type[FleetError]]:
    """Code -> the first class with it, of every module of the package."""
    for module in pkgutil.walk_packages(fleetproxy.__path__, "fleetproxy."):
        if not module.name.startswith(("fleetproxy.testing", "fleetproxy.__main__", _MIGRATIONS)):
            importlib.import_module(module.name)
    return {kind.code: kind for kind in reversed(list(_walk(FleetError)))}


def _walk(kind: type[FleetError]) -> Iterator[type[FleetError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _walk(narrower)


def page() -> str:
    """The page, in Markdown."""
    known = kinds()
    sides = (
        ("The caller's side", "The request cannot be served as it stands.", ClientError),
        ("Our side", "It cannot be served now.", ProxyError),
        ("The servers' side", "A server failed while serving it.", BackendError),
    )
    text = _HEAD
    rest = dict(known)
    for title, says, base in sides:
        text += f"\n## {title}\n\n{says}\n"
        for code, kind in sorted(known.items()):
            if issubclass(kind, base):
                text += _entry(code, kind)
                rest.pop(code)
    text += "\n## Without an error of its own\n"
    for code, kind in sorted(rest.items()):
        text += _entry(code, kind)
    text += (
        "\n### backend_error_event\n\nNo status of its own. The server's stream held an error and then ended.\n\n"
        f"{ADVICE['backend_error_event']}\n"
    )
    text += "\n## Words of nfrx\n\nUnder `/api/llm` and `/api/asr` these words stand in `code`; others of the servers' "
    text += "side become `upstream_error`, all else keeps its word.\n\n| our word | nfrx's |\n| --- | --- |\n"
    for ours, theirs in sorted(_NFRX_WORDS.items()):
        text += f"| [`{ours}`](#{ours}) | `{theirs}` |\n"
    text += '\n## Words of MCP calls\n\n`{"error": {"code": -32000, "data": {"mcp": word, "req_id": id}, '
    text += '"message": text}, "id": ..., "jsonrpc": "2.0"}`. Words not listed are ours in capitals.\n\n'
    text += "| our word | `mcp` | status |\n| --- | --- | --- |\n"
    for ours, said in sorted(SAID.items()):
        text += f"| [`{ours}`](#{ours}) | `{said.word}` | {said.status} |\n"
    return text


def _entry(code: str, kind: type[FleetError]) -> str:
    again = f", `Retry-After: {max(1, round(kind.retry_after_s))}`" if kind.retry_after_s is not None else ""
    said = " ".join((kind.__doc__ or "").split())
    said = said[0].upper() + said[1:]
    stop = "" if said.endswith((".", "?")) else "."
    return f"\n### {code}\n\nStatus {kind.status}{again}. {said}{stop}\n\n{ADVICE.get(code, '')}\n"
