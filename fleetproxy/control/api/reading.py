"""Reading what callers send: bodies, `hours`, ids. Lenient where the dashboard API's clients are, never a 500.

Also the one shape of refusals, `{"error": "<text>"}`, and of instants, ISO 8601 with milliseconds and `Z`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from fleetproxy.core.moments import moment
from fleetproxy.errors import BadJson, BadRequest, BodyTooLarge, FleetError, RateLimited

T = TypeVar("T")

#: Dashboard calls are small.
MAX_BODY_BYTES = 256 * 1024
MAX_DEPTH = 64
#: Ten years.
MAX_HOURS = 87_600
_INTEGER = re.compile(r"\s*([+-]?)0*(\d{1,18})(\d*)", re.ASCII)


def integer(text: str | None) -> int | None:
    """The integer a text begins with ("12abc" is 12, "1.9" is 1), at most 10^18; None when it begins with none."""
    found = _INTEGER.match(text or "")
    if found is None:
        return None
    size = 10**18 if found[3] else int(found[2])
    return -size if found[1] == "-" else size


def hours(request: Request[Any, Any, Any], default: int, at_most: int = MAX_HOURS) -> int:
    """`?hours=`: missing, unreadable, zero or negative means the default; more than `at_most` means `at_most`."""
    asked = integer(request.query_params.get("hours"))
    return default if asked is None or asked <= 0 else min(asked, at_most)


def limit(request: Request[Any, Any, Any], default: int, at_most: int) -> int:
    """`?limit=`, read the same way."""
    asked = integer(request.query_params.get("limit"))
    return default if asked is None or asked <= 0 else min(asked, at_most)


def moment_of(text: str, name: str, now: datetime) -> datetime:
    """An instant that a parameter names, or how long ago it was. Raises BadRequest."""
    try:
        return moment(text, now)
    except ValueError as error:
        raise BadRequest(f"`{name}` {error}") from None


def path_id(text: str, label: str) -> int:
    """A number in a path. Raises BadRequest `Invalid <label>`; numbers that no row can have are merely unknown."""
    found = integer(text)
    if found is None:
        raise BadRequest(f"Invalid {label}")
    return max(-1, min(found, 2**53))


async def body(request: Request[Any, Any, Any], shape: type[T], fault: str) -> T:
    """The JSON body as `shape`. Raises BadJson (not JSON), BadRequest(`fault`) (JSON of another shape)."""
    raw = await request.body()
    if len(raw) > MAX_BODY_BYTES:
        raise BodyTooLarge("This body is larger than the dashboard API accepts")
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(raw) > MAX_DEPTH:
        raise BadJson(f"The body is nested deeper than {MAX_DEPTH} levels")
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.ValidationError:
        raise BadRequest(fault) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadJson("The body is not valid JSON") from None


def instant(moment: datetime | None) -> str | None:
    """An instant as the API shows it: `2026-11-21T20:15:00.000Z`."""
    return None if moment is None else stamp(moment)


def stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def refused(request: Request[Any, Any, Any], error: FleetError) -> Response[dict[str, Any]]:
    """How an error of ours is answered."""
    headers = {"cache-control": "no-store"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return Response({"error": str(error)}, status_code=error.status, headers=headers, media_type="application/json")


def refused_by_framework(request: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, Any]]:
    """How an error of the web framework is answered: the same shape, its own words only below 500."""
    text = error.detail if error.status_code < 500 else "Internal error; see the log"
    headers = {"cache-control": "no-store", **(error.headers or {})}
    return Response({"error": text}, status_code=error.status_code, headers=headers, media_type="application/json")


#: For the app, or for a router.
EXCEPTION_HANDLERS: dict[type[Exception] | int, Any] = {
    FleetError: refused,
    HTTPException: refused_by_framework,
}


def too_many(wait_s: float) -> RateLimited:
    return RateLimited(f"Too many attempts; try again in {max(1, round(wait_s))} s", retry_after_s=max(1.0, wait_s))


def _depth(raw: bytes) -> int:
    """How deep brackets are nested, strings left out."""
    deepest = depth = 0
    for token in _TOKENS.finditer(raw):
        match token[0]:
            case b"[" | b"{":
                depth += 1
                deepest = max(deepest, depth)
            case b"]" | b"}":
                depth -= 1
    return deepest


# A string that never ends is one token too: linear whatever comes.
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
