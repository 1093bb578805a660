"""`GET /api/state/live`: what the dashboard shows, as it happens."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qs

from litestar import asgi
from litestar.types import Receive, Scope, Send

from fleetproxy import __version__
from fleetproxy.control.api import stream
from fleetproxy.control.api.guard import USER, Identity
from fleetproxy.control.api.peer import is_head
from fleetproxy.control.api.state import guard_of
from fleetproxy.control.live.feed import TOPICS, Live, Topic
from fleetproxy.control.live.shapes import instant
from fleetproxy.errors import BadRequest

#: Told to administrators only.
_ADMINS: frozenset[Topic] = frozenset({"pulls"})


def live_of(app: Any) -> Live:
    live = app.state["live"]
    assert isinstance(live, Live)
    return live


async def stream_live(scope: Scope, receive: Receive, send: Send) -> None:
    """The fleet as server-sent events: `hello`, then whole states (`fleet`, `models`, `events`, `pulls`), then what
    changes, twice a second at most, and `requests` as they end. `Last-Event-ID` (or `?lastEventId=`) goes on from
    there; `?topics=fleet,requests` leaves the others out.
    """
    app = scope["litestar_app"]
    live, identity = live_of(app), scope["user"]
    assert isinstance(identity, Identity)
    asked = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=16) if scope["query_string"] else {}
    topics = _topics(asked.get("topics", [""])[-1])
    if not identity.is_admin:
        topics -= _ADMINS
    seen = next((value for name, value in scope["headers"] if name == b"last-event-id"), b"").decode("latin-1")
    seen = seen or asked.get("lastEventId", [""])[-1]
    hello = {
        "at": instant(time.time()),
        "version": __version__,
        "user": identity.name,
        "isAdmin": identity.is_admin,
    }
    still = stream.credentials(guard_of(app), scope)
    if is_head(scope):
        await stream.serve(scope, receive, send, stream.Nothing(live.closed), still)
        return
    with live.watching(identity.name, topics, seen, hello) as watcher:
        await stream.serve(scope, receive, send, watcher, still)


def _topics(text: str) -> frozenset[Topic]:
    """Raises BadRequest for a topic there is not."""
    if not text:
        return frozenset(TOPICS)
    wanted = {word.strip() for word in text.split(",")}
    unknown = sorted(wanted - set(TOPICS))
    if unknown:
        raise BadRequest(f"Unknown topic {unknown[0][:32]!r}: known are {', '.join(TOPICS)}")
    return frozenset(topic for topic in TOPICS if topic in wanted)


handlers: list[Any] = [asgi("/api/state/live", opt=USER, copy_scope=False)(stream_live)]
