"""The worker's end of nfrx's JSON, for stock servers."""

from __future__ import annotations

import re
import time

from fleetproxy.core.backend import Backend
from fleetproxy.core.worker import Offer
from fleetproxy.errors import FleetError
from fleetproxy.transport.base import Call, Headers
from fleetproxy.wire import nfrx
from fleetproxy.worker.desk import Desk
from fleetproxy.worker.outbox import Outbox
from fleetproxy.worker.serving import Serving
from fleetproxy.worker.sides import PIECE_BYTES, TARGET, Identity, with_key


class _NfrxReply:
    """A `serving.Reply` in nfrx's messages. No credit there: the socket's own back-pressure has to do."""

    def __init__(self, request_id: str, out: Outbox) -> None:
        self._id = request_id
        self._out = out

    def head(self, status: int, headers: Headers, content_length: int | None) -> None:
        joined: dict[str, str] = {}
        for name, value in headers:
            key, text = name.decode("latin-1").title(), value.decode("latin-1")
            joined[key] = f"{joined[key]}, {text}" if key in joined else text
        self._say(nfrx.ResponseHead(request_id=self._id, status=status, headers=tuple(joined.items())))

    def data(self, piece: bytes) -> bool:
        for at in range(0, len(piece), PIECE_BYTES):
            self._say(nfrx.ResponseChunk(request_id=self._id, data=piece[at : at + PIECE_BYTES]))
        return not self._out.full

    def end(self) -> None:
        self._say(nfrx.ResponseEnd(request_id=self._id))

    def failed(self, error: FleetError, begun: bool) -> None:
        if not begun:
            # As the stock agent has it: an answer of its own that says why.
            self.head(502, [(b"content-type", b"application/json")], None)
            self.data(b'{"error":"%b"}' % error.code.encode())
        self._say(nfrx.ResponseEnd(request_id=self._id, error_code="upstream_error", error_message=str(error)))

    def taken(self, size: int) -> None:
        """Bodies come whole in this language."""

    def refuse(self, code: str, text: str) -> None:
        self.head(503, [(b"content-type", b"application/json")], None)
        self._say(nfrx.ResponseEnd(request_id=self._id, error_code=code, error_message=text))

    def _say(self, message: nfrx.AgentMessage) -> None:
        self._out.put(nfrx.write(message))


class NfrxSide:
    """Implements `Side` for stock nfrx servers."""

    def __init__(self, identity: Identity, desk: Desk, backend: Backend, out: Outbox) -> None:
        self._identity = identity
        self._desk = desk
        self._backend = backend
        self._out = out
        self._servings: dict[str, Serving] = {}
        self._offered: Offer | None = None
        self._draining = False
        out.on_room = self._resume

    def hello(self, offer: Offer) -> None:
        who = self._identity
        self._offered = offer
        self._put(
            nfrx.Register(
                worker_id=who.worker_id,
                worker_name=who.worker_name,
                client_key=who.client_key,
                models=offer.models,
                max_concurrency=offer.slots,
                version=who.version,
                build_sha=who.build_sha,
                build_date=who.build_date,
                agent_config=agent_config(offer),
            )
        )

    def offer(self, offer: Offer) -> None:
        before, self._offered = self._offered, offer
        if self._draining or (before is not None and _same_to_nfrx(before, offer)):
            return
        ready = offer.status == "idle"
        self._put(
            nfrx.StatusUpdate(
                max_concurrency=offer.slots,
                models=offer.models if ready else None,
                status=offer.status,
                agent_config=agent_config(offer) if ready else {},
            )
        )

    def beat(self, cpu_percent: float, ram_percent: float) -> None:
        self._put(nfrx.Heartbeat(ts=int(time.time()), host_cpu_percent=cpu_percent, host_ram_used_percent=ram_percent))

    def goodbye(self, offer: Offer) -> None:
        self._draining = True
        self._put(nfrx.StatusUpdate(max_concurrency=0, status="draining"))

    def message(self, data: str | bytes) -> None:
        message = nfrx.read_server(data)
        match message:
            case nfrx.Request():
                self._serve(message)
            case nfrx.Cancel(request_id=request_id):
                serving = self._servings.pop(request_id, None)
                if serving is not None:
                    self._desk.drop(serving)

    def close(self) -> None:
        servings, self._servings = self._servings, {}
        for serving in servings.values():
            self._desk.drop(serving)

    def _serve(self, request: nfrx.Request) -> None:
        reply = _NfrxReply(request.request_id, self._out)
        target = f"{self._backend.path_prefix}/v1{request.path}".encode("latin-1", "replace")
        if self._draining:
            reply.refuse("worker_draining", "worker is draining")
            return
        if not TARGET.match(target) or request.request_id in self._servings:
            reply.refuse("worker_refused", "the request makes no sense")
            return
        lines = b"".join(
            b"%b: %b\r\n" % (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
            for name, value in request.headers.items()
            if name.lower() not in _NOT_FORWARDED and not _BREAKS.search(name + value)
        )
        call = Call(
            method=request.method.encode("latin-1", "replace"),
            target=target,
            header_lines=with_key(lines, self._backend.api_key, drop=True),
            body=request.body,
        )
        serving = self._desk.queue(reply, call)
        if serving is None:
            reply.refuse("worker_busy", "too many requests wait at this worker")
            return
        self._servings[request.request_id] = serving
        serving.on_finish = lambda: self._servings.pop(request.request_id, None)

    def _resume(self) -> None:
        for serving in tuple(self._servings.values()):
            serving.resume()

    def _put(self, message: nfrx.AgentMessage) -> None:
        self._out.put(nfrx.write(message))


_BREAKS = re.compile(r"[\r\n\0]")
#: Framing is made anew.
_NOT_FORWARDED = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "te", "trailer", "expect"}
)


def agent_config(offer: Offer) -> dict[str, str]:
    """What nfrx's servers read of a worker beside its models."""
    host = offer.host
    config = {field: getattr(host, field) for field in host.__struct_fields__}
    if offer.embedding_batch_size:
        config["embedding_batch_size"] = str(offer.embedding_batch_size)
    return {name: value for name, value in config.items() if value}


def _same_to_nfrx(before: Offer, after: Offer) -> bool:
    return (before.models, before.slots, before.status, agent_config(before)) == (
        after.models,
        after.slots,
        after.status,
        agent_config(after),
    )
