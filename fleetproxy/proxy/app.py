"""The ASGI app of the public port: the gate, then whose path it is, then the handler. Litestar holds the same handlers.

A dict in front of the router calls the hot handlers directly: an explicit `@asgi` route costs 18 us a request, the dict
one (docs/adr). Decisions are made on `raw_path`, so no spelling the router would equate (`//`, `%31`) authorises
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from litestar import Litestar, asgi
from litestar.types import ASGIApp

from fleetproxy.core import access
from fleetproxy.core.operation import Endpoint, Voice
from fleetproxy.errors import (
    Draining,
    FleetError,
    HostRefused,
    MethodRefused,
    ModelUnknown,
    NoBackend,
    OriginRefused,
    PathUnknown,
    ServerUnknown,
    Unauthorized,
    UpgradeRequired,
)
from fleetproxy.families import registry
from fleetproxy.families.llm import lists
from fleetproxy.listen import App, Receive, Scope, Send
from fleetproxy.proxy import answers, doors, gate
from fleetproxy.proxy.handler import Handler
from fleetproxy.proxy.listings import Listings
from fleetproxy.proxy.passage import Passage
from fleetproxy.proxy.plane import Plane
from fleetproxy.proxy.tunnel import Tunnels
from fleetproxy.wire.head import Head

_HEALTH = frozenset({b"/healthz", b"/livez", b"/readyz", b"/health"})
_READS = frozenset({"GET", "HEAD"})
CONTROL = Endpoint(name="control", methods=(), path="(control)", family="control", shape="local")


class Guest(Protocol):
    """Serves endpoints of shape "tunnel": those of a family whose requests end behind the hub in its own way."""

    async def handle(self, scope: Scope, receive: Receive, send: Send, endpoint: Endpoint, head: Head) -> None: ...


def build(
    plane: Plane, passage: Passage, tunnels: Tunnels | None = None, guests: Mapping[str, Guest] | None = None
) -> App:
    """The app of one proxy process. `guests` are found by their family."""
    front = Front(plane, Handler(plane), passage, tunnels, guests or {})
    router = Litestar(
        route_handlers=[asgi("/", is_mount=True, copy_scope=False)(_as_handler(front.dispatch))],
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    front.router = router
    return front


class Front:
    """The first code of ours a request meets."""

    router: Litestar

    def __init__(
        self,
        plane: Plane,
        handler: Handler,
        passage: Passage,
        tunnels: Tunnels | None,
        guests: Mapping[str, Guest],
    ) -> None:
        self._plane = plane
        self._guests = guests
        self._handler = handler
        self._passage = passage
        self._tunnels = tunnels
        self._listings = Listings(plane)
        #: (method, raw path) of literal endpoints: straight to the handler.
        self._hot: dict[tuple[str, bytes], Endpoint] = {
            (method, endpoint.path.encode()): endpoint
            for endpoint in registry.literal_endpoints()
            if endpoint.shape in ("relay", "scatter")
            for method in endpoint.methods
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._socket(scope, receive, send)
            return
        try:
            head = gate.check(scope)
            endpoint = self._hot.get((scope["method"], scope["raw_path"]))
            if endpoint is not None and b"origin" not in head.own:
                self._check_host(head)
                await self._handler.handle(scope, receive, send, endpoint, head)
                return
            gate.check_path(scope["raw_path"])
            self._check_host(head)
        except FleetError as error:
            plane = self._plane
            plane.counters[f"gate_refused:{error.code}"] += 1
            await answers.refuse(
                send,
                _voice(scope["raw_path"]),
                error,
                plane.request_id(plane.wall_us()),
                head_only=scope["method"] == "HEAD",
            )
            return
        scope["fleet.head"] = head
        # Litestar hands its handlers a `send` of its own, a coroutine function; pieces must start when they are called.
        scope["fleet.send"] = send
        await self.router(scope, receive, send)  # type: ignore[arg-type]

    async def dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Everything that is not a hot path on a plain request."""
        plane = self._plane
        send = scope["fleet.send"]
        head: Head = scope["fleet.head"]
        raw_path: bytes = scope["raw_path"]
        method: str = scope["method"]
        snapshot = plane.snapshot
        cors = access.cors(method, head.own, snapshot.access.origins)
        if cors is not None:
            if cors.preflight:
                await answers.respond(send, 204, list(cors.headers), b"")
                return
            if cors.headers:
                send = _with_headers(send, list(cors.headers))
        try:
            if cors is not None and not cors.allowed and gate.owner(raw_path, snapshot.access) != "control":
                raise OriginRefused
            if raw_path in _HEALTH:
                self._only(method, _READS)
                status, body = answers.health(raw_path, snapshot, draining=plane.draining, hub=plane.hub_connected())
                await answers.respond(send, status, [answers.JSON], body, head_only=method == "HEAD")
                return
            match gate.owner(raw_path, snapshot.access):
                case "root":
                    self._only(method, _READS)
                    text = (b"content-type", b"text/plain; charset=utf-8")
                    await answers.respond(send, 200, [text], b"Ollama is running", head_only=method == "HEAD")
                case "control":
                    await self._to_control(scope, receive, send, head)
                case "backend" | "family":
                    path = raw_path.decode("latin-1")
                    endpoint = registry.find(method, path) or registry.passthrough(path)
                    if endpoint is None:
                        await self._family(scope, send, path)
                        return
                    guest = self._guests.get(endpoint.family)
                    if guest is not None:
                        await guest.handle(scope, receive, send, endpoint, head)
                        return
                    if endpoint.shape == "gather":
                        await self._from_memory(scope, send, endpoint, head)
                        return
                    await self._handler.handle(scope, receive, send, endpoint, head)
                case _:
                    raise PathUnknown
        except FleetError as error:
            plane.counters[f"refused:{error.code}"] += 1
            await answers.refuse(
                send,
                _voice(raw_path),
                error,
                plane.request_id_of(head, plane.wall_us()),
                head_only=method == "HEAD",
                draining=plane.draining,
            )

    async def _from_memory(self, scope: Scope, send: Send, endpoint: Endpoint, head: Head) -> None:
        """The fleet's lists: pre-encoded, so a dead server costs nothing. No audit record, a counter."""
        plane = self._plane
        snapshot = plane.snapshot_for(endpoint)
        plane.counters[f"memory_answers:{endpoint.path}"] += 1
        rules = snapshot.access
        of_family = endpoint.surface == "family"
        if of_family:
            doors.check_plugin(endpoint.family, rules)
        if rules.families_required if of_family else rules.proxy_required:
            caller = access.identify(head.own, snapshot.principals, now_s=plane.wall_us() / 1e6)
            if caller.principal is None and of_family:
                doors.check_stranger(rules, plane.roles(scope, head.own))
            elif caller.principal is None:
                raise Unauthorized
        if of_family:
            if plane.draining:
                raise Draining
            path = scope["raw_path"].decode("latin-1")
            try:
                body = self._listings.answer(snapshot, endpoint, path)
            except (ModelUnknown, ServerUnknown):
                body = self._listings.answer(await plane.settled(endpoint), endpoint, path)
        elif endpoint.path.endswith("{id}"):
            model = registry.parameter(endpoint, scope["raw_path"].decode("latin-1"))
            found = lists.model_body(snapshot.model_bodies, model)
            if found is None:
                raise ModelUnknown(model)
            body = found
        else:
            found = snapshot.bodies.get(endpoint.path)
            if found is None:
                raise NoBackend
            body = found
        identifier = plane.request_id_of(head, plane.wall_us()).encode()
        headers = [answers.JSON, (b"x-request-id", identifier), (b"request-id", identifier)]
        await answers.respond(send, 200, headers, body, head_only=scope["method"] == "HEAD")

    async def _family(self, scope: Scope, send: Send, path: str) -> None:
        """A path under `/api/<family>` that is no endpoint: the family's descriptor, a wrong method, or nothing."""
        method: str = scope["method"]
        snapshot = self._plane.snapshot
        descriptor = snapshot.bodies.get(path.removesuffix("/")) if path.count("/") <= 3 else None
        if descriptor is not None and gate.owner(scope["raw_path"], snapshot.access) == "family":
            self._only(method, _READS)
            await answers.respond(send, 200, [answers.JSON], descriptor, head_only=method == "HEAD")
            return
        taken = registry.methods(path)
        if taken:
            raise MethodRefused(allow=", ".join(sorted(taken)))
        if self._tunnels is not None and self._takes(self._tunnels, scope["raw_path"]):
            self._only(method, frozenset({"GET"}))
            raise UpgradeRequired
        raise PathUnknown

    async def _to_control(self, scope: Scope, receive: Receive, send: Send, head: Head) -> None:
        plane = self._plane
        exchange = plane.begin(scope, receive, send, CONTROL, head)
        plane.counters["control_requests"] += 1
        try:
            await self._passage.carry(exchange, scope, receive, send, head)
        except FleetError as error:
            if not exchange.committed:
                await answers.refuse(send, "ollama", error, exchange.request_id, head_only=exchange.method == "HEAD")
        finally:
            exchange.recorded = True
            plane.end(exchange)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """WebSockets: workers that dial in; no path of the main surface takes one."""
        if scope["type"] != "websocket":
            return
        tunnels, host = self._tunnels, dict(scope["headers"]).get(b"host", b"")
        if tunnels is not None and self._takes(tunnels, scope["raw_path"]) and self._plane.host_allowed(host):
            await tunnels.carry(scope, receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    def _takes(self, tunnels: Tunnels, raw_path: bytes) -> bool:
        family = raw_path.split(b"/", 3)[2:3]
        return tunnels.takes(raw_path) and family[0].decode() in self._plane.snapshot.access.plugins

    def _check_host(self, head: Head) -> None:
        if not self._plane.host_allowed(head.own.get(b"host", b"")):
            raise HostRefused

    @staticmethod
    def _only(method: str, allowed: frozenset[str]) -> None:
        if method not in allowed:
            raise MethodRefused(allow=", ".join(sorted(allowed)))


def _voice(raw_path: bytes) -> Voice:
    if raw_path.startswith(b"/v1/messages"):
        return "anthropic"
    if raw_path.startswith((b"/api/llm/", b"/api/asr/")):
        return "nfrx"
    if raw_path.startswith((b"/api/transfer", b"/api/mcp")):
        return "word"
    return "openai" if raw_path.startswith(b"/v1/") else "ollama"


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    """The same `send`, adding headers to the response head. Not async: pieces must start when called."""

    def extended(message: dict[str, object]) -> object:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]  # type: ignore[misc]
        return send(message)

    return extended  # type: ignore[return-value]


def _as_handler(app: App) -> ASGIApp:
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    handler.__annotations__ = {"scope": "Scope", "receive": "Receive", "send": "Send", "return": None}
    return handler  # type: ignore[return-value]
