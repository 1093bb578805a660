"""One fake server: its port, its machine, its journal, its faults."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from typing import Any, Self

import msgspec
import orjson

from fleetproxy.testing.fakes.call import Call, Machine, Refusal, busy
from fleetproxy.testing.fakes.engine import Busy
from fleetproxy.testing.fakes.faults import NAMES, Broken, Fault, Faults, FaultyReply
from fleetproxy.testing.fakes.journal import KEEP_BODY_BYTES, Journal
from fleetproxy.testing.fakes.origin import host_allowed, origin_allowed, preflight
from fleetproxy.testing.fakes.profile import Kind, Profile
from fleetproxy.testing.fakes.routes import Table
from fleetproxy.testing.http import HttpServer, Reply
from fleetproxy.testing.message import BadMessage, Request

#: Where a fake is told what to do and asked what it saw.
CONTROL = "/__fake/"
TEXT = "text/plain; charset=utf-8"
#: What each kind says to an unknown path: (body, content type).
NOT_FOUND: dict[Kind, tuple[bytes, str]] = {
    "ollama": (b"404 page not found", TEXT),
    "openai": (b'{"detail":"Not Found"}', "application/json"),
    "asr": (b'{"detail":"Not Found"}', "application/json"),
    "llamacpp": (b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}', "application/json"),
}
#: fault -> (status, words); the rest of the faults break the answer instead.
STATUS_FAULTS: dict[str, tuple[int | None, str]] = {
    "error": (None, "llama runner process has terminated: signal: killed"),
    "unavailable": (503, "server busy, please try again.  maximum pending requests exceeded"),
    "limited": (429, "rate limit reached, try again later"),
}


class Fake:
    """A running fake server. Use as `async with Fake(profile) as fake`."""

    def __init__(self, profile: Profile | None = None) -> None:
        self.profile = profile or Profile()
        self.machine = Machine(self.profile)
        self.journal = Journal()
        self.faults = Faults()
        self.http = HttpServer(self._serve, now_s=self.machine.clock.now_s)
        #: Tracebacks of handlers that failed by a mistake of the fake itself; empty in a sound run.
        self.crashes: deque[str] = deque(maxlen=100)
        self._table = Table(self.profile.kind)

    @property
    def url(self) -> str:
        return f"http://{self.http.host}:{self.http.port}"

    async def listen(self, host: str = "127.0.0.1", port: int = 0) -> None:
        await self.http.listen(host, port)

    async def close(self) -> None:
        await self.http.close()
        await self.machine.engine.close()

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- one request --------------------------------------------------------------------------------------------

    async def _serve(self, request: Request, reply: Reply) -> None:
        if request.path.startswith(CONTROL):
            return await self._control(request, reply)
        connection = reply.connection
        row = self.journal.begin(
            connection.number, connection.requests, request.method, request.target, request.headers
        )
        call = Call(self.machine, request, reply, row, "ollama")
        try:
            await self._answer(call)
        except Broken:
            reply.ended = True
        except (BadMessage, ConnectionResetError, asyncio.CancelledError):
            if not connection.closing:
                row.peer_closed_s = connection.closed_s or time.monotonic()
            raise
        except Exception:
            self.crashes.append(traceback.format_exc())
            raise
        finally:
            row.body_bytes = request.received_bytes
            row.body_sha256 = request.sha256.hexdigest()
            row.body_complete = request.complete
            row.finished_s = time.monotonic()
            row.status, row.started_s = call.reply.status, call.reply.started_s
            row.sent_bytes = call.reply.sent_bytes
            row.complete = call.reply.ended and not connection.closing
        reply.ended = call.reply.ended
        return None

    async def _answer(self, call: Call) -> None:
        request, reply = call.request, call.reply
        if self.profile.kind == "ollama":
            if self.profile.check_host and not host_allowed(request.header("host")):
                return await reply.send(403, content_type="")
            if request.method == "OPTIONS":
                status, fields = preflight(request)
                return await reply.send(status, headers=fields, content_type="")
            origin = request.header("origin")
            if origin:
                if not origin_allowed(origin):
                    return await reply.send(403, content_type="")
                reply.fields.append(("Access-Control-Allow-Origin", origin))
        found = self._table.find(request.path)
        chosen = next(((route, parts) for route, parts in found if request.method in route.methods), None)
        if chosen is None:
            if found:
                return await reply.send(405, b"405 method not allowed", content_type=TEXT)
            body, content_type = NOT_FOUND[self.profile.kind]
            return await reply.send(404, body, content_type=content_type)
        route, call.parts = chosen
        call.dialect = route.dialect
        try:
            if self.profile.api_key and request.header("authorization") != f"Bearer {self.profile.api_key}":
                raise Refusal(401, "Unauthorized")
            if route.body == "json":
                try:
                    await call.read()
                finally:
                    await self._note(call)
            await self._strike(call)
            return await route.endpoint(call)
        except Busy as error:
            return await call.refuse(busy(error))
        except Refusal as refusal:
            if call.reply.status is not None:
                raise
            return await call.refuse(refusal)

    async def _note(self, call: Call) -> None:
        raw = await call.request.body()
        call.row.body = raw[:KEEP_BODY_BYTES].decode("latin-1")
        model = call.body.get("model", call.body.get("name"))
        call.row.model = model if isinstance(model, str) else None

    async def _strike(self, call: Call) -> None:
        fault = self.faults.take(call.request.path, call.row.model)
        if fault is None:
            return
        call.row.fault = fault.name
        if fault.name == "model_missing":
            raise self.machine.missing(call.row.model or "")
        if fault.name in STATUS_FAULTS:
            status, text = STATUS_FAULTS[fault.name]
            fields = (("Retry-After", fault.retry_after),) if fault.name == "limited" else ()
            raise Refusal(status or fault.status, text, fields)
        broken = FaultyReply(call.reply, fault, call.error_line)
        call.reply = broken
        await broken.prepare()

    # --- being told and asked -----------------------------------------------------------------------------------

    async def _control(self, request: Request, reply: Reply) -> None:
        word = request.path.removeprefix(CONTROL)
        match (request.method, word):
            case ("GET", "requests"):
                value: Any = {"requests": list(self.journal.rows), "dropped": self.journal.dropped}
            case ("GET", "state"):
                value = self.state()
            case ("GET", "faults"):
                value = {"faults": self.faults.list(), "names": NAMES}
            case ("DELETE", "requests"):
                self.journal.clear()
                value = {}
            case ("DELETE", "faults"):
                self.faults.clear()
                value = {}
            case ("POST", name) if name in NAMES:
                try:
                    fields = orjson.loads(await request.body() or b"{}")
                    self.faults.add(msgspec.convert({**fields, "name": name}, Fault))
                except (ValueError, TypeError, msgspec.ValidationError) as error:
                    return await reply.send(400, orjson.dumps({"error": str(error)}))
                value = {}
            case _:
                return await reply.send(404, orjson.dumps({"error": "unknown", "faults": NAMES}))
        return await reply.send(200, msgspec.json.encode(value))

    def state(self) -> dict[str, Any]:
        """What the fake is doing now."""
        engine = self.machine.engine
        return {
            "kind": self.profile.kind,
            "resident": [item.model.name for item in engine.resident.values() if item.ready],
            "vram_used_bytes": engine.used_bytes,
            "running": engine.running,
            "peak": engine.peak,
            "waiting": engine.waiting,
            "loads": engine.loads,
            "connections": len(self.http.open),
            "accepted": self.http.accepted,
            "bad_messages": list(self.http.bad_messages),
            "crashes": list(self.crashes),
            "requests": self.journal.seen,
        }
