"""`GET /api/requests/{request_id}`: the whole story of one exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
from litestar import Request, Router, get
from litestar.params import FromPath

from fleetproxy.control.analytics import story
from fleetproxy.control.api.explain import endpoint_of, explained, routing_of
from fleetproxy.control.api.guard import USER
from fleetproxy.control.api.live import live_of
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS
from fleetproxy.control.api.requests import records_of
from fleetproxy.core.record import Attempt, Outcome
from fleetproxy.core.story import timeline
from fleetproxy.core.wording import OUTCOMES, error_words, reason_words
from fleetproxy.errors import PathUnknown

MAX_ID_CHARACTERS = 128

#: Column -> field, beside those of the list.
_FURTHER = {
    "remote_ip": "remoteIp",
    "user_agent": "userAgent",
    "key_prefix": "keyPrefix",
    "key_unknown": "keyUnknown",
    "process": "process",
    "chunks_out": "chunksOut",
    "load_ms": "loadMs",
    "prompt_eval_ms": "promptEvalMs",
    "eval_ms": "evalMs",
}


@get("/api/requests/{request_id:str}", opt=USER)
async def tell_request(request: Request[Any, Any, Any], request_id: FromPath[str]) -> dict[str, Any]:
    """One request, whole: its row, why it went where it went, its attempts, where its time went, and who would be asked
    now. `request_id` is what the caller was given as `x-request-id`; of several requests of one id, the newest.
    """
    store = records_of(request).store
    hosts = dict(live_of(request.app).hosts())
    await store.flush()
    found = await store.read(lambda cursor: story.find(cursor, request_id[:MAX_ID_CHARACTERS], hosts))
    if found is None:
        raise PathUnknown("There is no such request (any more)")
    row, further, attempts = found
    return {
        "request": {**row, **{field: further[column] for column, field in _FURTHER.items()}},
        "why": {
            "reason": row["routingReason"],
            "words": reason_words(row["routingReason"]) or OUTCOMES.get(cast(Outcome, row["outcome"]), ""),
            "outcome": OUTCOMES.get(cast(Outcome, row["outcome"]), row["outcome"]),
            "error": error_words(row["error"]) or None,
        },
        "attempts": [_attempt(number + 1, one) for number, one in enumerate(attempts)],
        "timeline": msgspec.to_builtins(timeline(row["queueMs"] or 0.0, further["total_ms"] or 0.0, attempts)),
        "now": _now(request, row),
    }


def _attempt(number: int, one: Attempt) -> dict[str, Any]:
    return {
        "n": number,
        "serverName": one.backend,
        "status": one.status,
        "error": one.error,
        "words": error_words(one.error) or None,
        "startedMs": one.started_ms,
        "connectMs": one.connect_ms,
        "firstByteMs": one.first_byte_ms,
        "totalMs": one.total_ms,
    }


def _now(request: Request[Any, Any, Any], row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Who would be asked for the same now; None where no server is chosen. What was at that time is not recorded."""
    endpoint = endpoint_of(row["endpoint"])
    if endpoint is None or (endpoint.has_model and not row["model"]):
        return None
    return explained(routing_of(request.app), endpoint, row["model"])


handlers = [Router(path="/", route_handlers=[tell_request], exception_handlers=EXCEPTION_HANDLERS, tags=["records"])]
