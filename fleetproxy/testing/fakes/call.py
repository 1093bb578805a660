"""One request as a fake's handlers see it: body read, dialect known, refusals worded."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import orjson

from fleetproxy.testing.fakes.catalog import Model, full_name, make
from fleetproxy.testing.fakes.clock import Clock, duration_s
from fleetproxy.testing.fakes.engine import Busy, Engine
from fleetproxy.testing.fakes.journal import Row
from fleetproxy.testing.fakes.profile import Profile
from fleetproxy.testing.http import Reply
from fleetproxy.testing.message import Request

Dialect = Literal["ollama", "openai", "anthropic"]
JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
BUSY_TEXT = "server busy, please try again.  maximum pending requests exceeded"


class Refusal(Exception):
    """The server answers with an error of its own."""

    def __init__(self, status: int, text: str, headers: tuple[tuple[str, str], ...] = (), **more: Any) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers
        #: Further keys of the error body.
        self.more = more


class Machine:
    """What all requests of one fake share."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.clock = Clock(profile.epoch_s)
        self.engine = Engine(profile, self.clock.now_ns)
        self.disk: dict[str, Model] = {}
        #: Digests of uploaded blobs -> size in bytes.
        self.blobs: dict[str, int] = {}
        #: Totals for metrics pages.
        self.totals = {"requests": 0, "prompt_tokens": 0, "output_tokens": 0}
        exact = profile.kind != "ollama"
        for spec in profile.models:
            model = make(spec, exact=exact)
            self.disk[self.key(model.name)] = model

    @property
    def seed(self) -> int:
        return self.profile.seed

    def key(self, name: str) -> str:
        return full_name(name) if self.profile.kind == "ollama" else name

    def find(self, name: str, quoting: str = "'") -> Model:
        """The model of that name; a 404 in this kind's own words."""
        model = self.disk.get(self.key(name))
        if model is None and self.profile.kind == "llamacpp" and self.disk:
            return next(iter(self.disk.values()))  # one model, whatever the request calls it
        if model is None:
            raise self.missing(name, quoting)
        return model

    def missing(self, name: str, quoting: str = "'") -> Refusal:
        if self.profile.kind != "ollama":
            return Refusal(404, f"The model `{name}` does not exist.", type="NotFoundError", code=404)
        tail = "" if quoting == "'" else ", try pulling it first"
        return Refusal(404, f"model {quoting}{name}{quoting} not found{tail}")


class Call:
    """One request with its parsed body."""

    def __init__(self, machine: Machine, request: Request, reply: Reply, row: Row, dialect: Dialect) -> None:
        self.machine = machine
        self.request = request
        self.reply = reply
        self.row = row
        self.dialect = dialect
        self.body: dict[str, Any] = {}
        #: Variable parts of the path template.
        self.parts: tuple[str, ...] = ()

    @property
    def engine(self) -> Engine:
        return self.machine.engine

    async def read(self) -> None:
        """Read a JSON object; the words of a refusal are Ollama's."""
        raw = await self.request.body()
        if not raw:
            raise Refusal(400, "missing request body")
        try:
            body = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"invalid JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refusal(400, "json: cannot unmarshal value into Go value of type api.Request")
        self.body = body

    def name(self, *keys: str) -> str:
        """The model's name; 400 when there is none."""
        for key in keys or ("model", "name"):
            value = self.body.get(key)
            if isinstance(value, str) and value:
                return value
        raise Refusal(400, "model is required")

    def flag(self, key: str, default: bool) -> bool:
        value = self.body.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise Refusal(
                400, f"json: cannot unmarshal {type(value).__name__} into Go struct field .{key} of type bool"
            )
        return value

    def keep_alive_s(self) -> float:
        value = self.body.get("keep_alive")
        try:
            return duration_s(self.machine.profile.keep_alive if value is None else value)
        except ValueError as error:
            raise Refusal(400, str(error)) from None

    def options(self) -> dict[str, Any]:
        value = self.body.get("options")
        return value if isinstance(value, dict) else {}

    def count(self, prompt: int, output: int) -> None:
        totals = self.machine.totals
        totals["requests"] += 1
        totals["prompt_tokens"] += prompt
        totals["output_tokens"] += output

    # --- answers ------------------------------------------------------------------------------------------------

    async def json(self, value: Any, status: int = 200, content_type: str = JSON) -> None:
        await self.reply.send(status, orjson.dumps(value), content_type=content_type)

    async def ndjson(self, values: AsyncIterator[Any]) -> None:
        """A stream of JSON lines; each is one write."""
        await self.reply.start(200, [("Content-Type", NDJSON)])
        async for value in values:
            await self.reply.write(orjson.dumps(value) + b"\n")
        await self.reply.end()

    async def sse(self, pieces: AsyncIterator[bytes]) -> None:
        """A stream of server-sent events, each as one write."""
        fields = [("Content-Type", SSE), ("Cache-Control", "no-cache")]
        await self.reply.start(200, fields)
        async for piece in pieces:
            await self.reply.write(piece)
        await self.reply.end()

    async def refuse(self, refusal: Refusal) -> None:
        body = ERROR_BODIES[self.dialect](self.machine.profile.kind, refusal)
        await self.reply.send(refusal.status, orjson.dumps(body), refusal.headers, JSON)

    def error_line(self) -> bytes:
        """What this dialect says when it fails in the middle of a stream."""
        text = "an error was encountered while running the model: unexpected EOF"
        if self.dialect == "anthropic":
            body = {"type": "error", "error": {"type": "api_error", "message": text}}
            return b"event: error\n" + data(body)
        if self.dialect == "openai":
            return data({"error": {"message": text, "type": "api_error", "param": None, "code": None}})
        return orjson.dumps({"error": text}) + b"\n"


def _native_error(kind: str, refusal: Refusal) -> dict[str, Any]:
    return {"error": str(refusal), **refusal.more}


def _openai_error(kind: str, refusal: Refusal) -> dict[str, Any]:
    error: dict[str, Any] = {
        "message": str(refusal),
        "type": OPENAI_TYPES.get(refusal.status, "api_error"),
        "param": None,
        "code": None,
    }
    if kind == "openai":
        error["code"] = refusal.status
    return {"error": {**error, **refusal.more}}


def _anthropic_error(kind: str, refusal: Refusal) -> dict[str, Any]:
    word = ANTHROPIC_TYPES.get(refusal.status, "api_error")
    return {"type": "error", "error": {"type": word, "message": str(refusal)}}


ERROR_BODIES: dict[Dialect, Callable[[str, Refusal], dict[str, Any]]] = {
    "ollama": _native_error,
    "openai": _openai_error,
    "anthropic": _anthropic_error,
}


def busy(_: Busy) -> Refusal:
    return Refusal(503, BUSY_TEXT)


def data(value: Any) -> bytes:
    """One unnamed server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def event(name: str, value: Any) -> bytes:
    """One named server-sent event."""
    return f"event: {name}\n".encode() + data(value)


def image_mark(encoded: object) -> str:
    """A word that stands for an image in a prompt: another image, another answer. 400 when it is not base64."""
    try:
        raw = base64.b64decode(str(encoded), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "illegal base64 data at input byte 0") from None
    return f"<image {len(raw)} {binascii.crc32(raw):08x}>"
