"""The page of headers: what callers may send, what they get. A test compares it with the headers the code writes."""

from __future__ import annotations

from fleetproxy.core.wording import REASONS

REQUEST: dict[str, str] = {
    "Authorization": "`Bearer KEY`. A key that is not ours goes on to the server as it came; a known one does not.",
    "X-Ollama-Api-Key": "The key, looked at before the two others.",
    "x-api-key": "The key, as Anthropic's clients send it.",
    "X-Ollama-Pin-Server": "Name of the one server or worker that is to answer, case does not count. Unknown: 404 "
    "`server_not_found`; offline: 503 `server_unavailable`; never silently elsewhere (but see `routing.pin_fallback`).",
    "X-Ollama-Source": "Who asks, for the record; a key's owner comes before it. At most 128 characters are kept.",
    "X-Request-Id": "An id of yours, up to 128 letters, digits and `._:-`; without a sane one we make a UUIDv7.",
    "x-fleet-queue-events": "`1`: an event stream that waits in line gets `nfrx.queue` events instead of comment lines.",
    "traceparent": "Passed on to the server, like every header that is not named here.",
    "X-Forwarded-For": "Believed only from `auth.trusted_proxies`; servers get our own.",
    "X-User-Roles": "Roles of the caller, believed only from `auth.trusted_proxies`.",
    "Origin": "Pages of other origins are refused unless they are local or in `cors.origins`.",
    "Host": "Must be an address, a local name, or one of `hosts`.",
    "Via": "Tells loops: a request that has passed here before gets 508.",
    "User-Agent": "Passed on, and kept in `requests.user_agent`.",
    "Content-Encoding": "Compressed bodies are refused (415) where we have to read the model in them.",
    "Expect": "`100-continue`, or nothing.",
}
INFERENCE: dict[str, str] = {
    "x-request-id": "The request's id: in the log, in `requests.request_id`, at the server.",
    "request-id": "The same, as Anthropic's SDK reads it.",
    "x-fleet-backend": "Server or worker that answered; several for split embeddings. Left out with "
    "`routing.hide_backends`.",
    "x-fleet-route": "Why it was asked: a [reason word](#reason-words).",
    "x-fleet-retries": "Servers that were asked before it without success.",
    "x-fleet-queue-ms": "Milliseconds in line.",
    "x-fleet-pin": "`ignored`: the pin named nobody usable and `routing.pin_fallback` is on.",
    "x-fleet-slices": "Parts an embeddings request was split into.",
    "server-timing": "`queue;dur=`, in line, and `upstream;dur=`, until the server began to answer, in milliseconds; browsers draw it.",
    "retry-after": "Seconds after which trying again makes sense; only on refusals that pass.",
    "retry-after-ms": "The same in milliseconds, for OpenAI's SDKs.",
    "x-should-retry": "`false`: trying again cannot help. OpenAI's SDKs obey it.",
    "www-authenticate": "`Bearer`, with 401.",
    "allow": "Methods the path takes, with 405.",
    "upgrade": "`websocket`, with 426: workers dial in there.",
    "vary": "`Origin`, where there was one.",
    "access-control-allow-origin": "The page's own origin, when it is allowed. Credentials never are.",
    "access-control-allow-methods": "Answer to a preflight.",
    "access-control-allow-headers": "Answer to a preflight.",
    "access-control-max-age": "Answer to a preflight.",
    "access-control-expose-headers": "Which of these a page's script may read.",
    "x-accel-buffering": "`no` on event streams of our own: nginx then passes them on at once.",
    "x-content-type-options": "`nosniff`: a server's answer is never taken for a page.",
    "content-security-policy": "`sandbox` on answers of servers: their HTML is never run as if it were ours.",
    "cache-control": "`no-store` on event streams of our own and on control's answers.",
}
CONTROL: dict[str, str] = {
    "x-fleet-query-ms": "How long the SQL took.",
    "x-fleet-truncated": "There were more rows than the limit, which it names (`analytics.query_rows` or the size).",
    "x-fleet-rows": "Rows in an exported file.",
    "content-disposition": "On downloads: the file's name.",
    "content-security-policy": "`default-src 'none'` on data; pages have one of their own that allows nothing from "
    "outside.",
    "referrer-policy": "`no-referrer`.",
    "x-frame-options": "`DENY`.",
    "cross-origin-opener-policy": "`same-origin`, on pages.",
    "permissions-policy": "No camera, place, microphone, payment or USB, on pages.",
    "set-cookie": "`fleet_session`, `HttpOnly`, `SameSite=Lax`, `Secure` where the request came by https; at login.",
}
SENT: dict[str, str] = {
    "x-fleet-signature": "`sha256=` and the HMAC-SHA256 of the body with the secret, in hex: on webhooks.",
    "x-request-id": "To servers: the request's id.",
    "x-forwarded-for": "To servers: the caller's address.",
    "via": "To servers: who the request came by, this fleetproxy last.",
}
#: HTTP's own, on which there is nothing to say.
PLAIN = frozenset({"content-type", "content-length", "connection", "transfer-encoding", "date", "server"})

_HEAD = """\
# Headers

What callers may send and what they get, besides HTTP's own. Everything else passes unchanged in both directions, less
what belongs to one hop, cookies, and what would name a machine of the fleet (`Location`).

```sh
curl -si http://127.0.0.1:11434/api/chat -d '{"model": "llama3.2:3b", "messages": []}' | grep -i '^x-fleet'
```
"""


def page() -> str:
    """The page, in Markdown."""
    text = _HEAD
    for title, says, table in (
        ("Callers may send", "", REQUEST),
        ("Answers to inference requests", "Refusals of our own have them too.", INFERENCE),
        ("Answers of the dashboard's API", "", CONTROL),
        ("What we send", "", SENT),
    ):
        text += f"\n## {title}\n\n" + (f"{says}\n\n" if says else "") + "| header | meaning |\n| --- | --- |\n"
        text += "".join(f"| `{name}` | {meaning} |\n" for name, meaning in table.items())
    text += "\n## Reason words\n\nIn `x-fleet-route`, `requests.route_reason` and the label `route` of the metrics.\n\n"
    text += "| word | meaning |\n| --- | --- |\n"
    return text + "".join(f"| `{word}` | {meaning} |\n" for word, meaning in REASONS.items())
