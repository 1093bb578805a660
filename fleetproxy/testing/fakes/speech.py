"""Speech recognition in the OpenAI dialect: a form of any size, read as it comes, and what was heard in it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from fleetproxy.testing.fakes import words
from fleetproxy.testing.fakes.call import Call, Refusal, data

MAX_FIELD_BYTES = 64 * 1024


class _Heard:
    """What a form held: its fields, and the size and digest of its file."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.file_name = ""
        self.file_bytes = 0
        self.sha256 = hashlib.sha256()


async def transcriptions(call: Call) -> None:
    heard = await _hear(call)
    name = heard.fields.get("model", "")
    call.row.model = name or None
    if not name:
        raise Refusal(400, "Field required: model")
    served = call.machine.find(name)
    if not heard.file_name:
        raise Refusal(400, "Field required: file")
    tokens = words.tokens(call.machine.seed, served.name, heard.sha256.hexdigest())
    text = "".join(tokens)
    call.count(0, len(tokens))
    async with call.engine.lease(served, call.keep_alive_s()):
        if heard.fields.get("stream", "").lower() in {"1", "t", "true"}:
            return await call.sse(_events(tokens, text))
        if heard.fields.get("response_format") == "text":
            return await call.reply.send(200, text.encode() + b"\n", content_type="text/plain; charset=utf-8")
        usage = {"type": "tokens", "input_tokens": 1, "output_tokens": len(tokens), "total_tokens": len(tokens) + 1}
        fake = {
            "file": heard.file_name,
            "bytes": heard.file_bytes,
            "sha256": heard.sha256.hexdigest(),
            "fields": heard.fields,
        }
        return await call.json({"text": text, "usage": usage, "fake": fake})


async def _events(tokens: list[str], text: str) -> AsyncIterator[bytes]:
    for token in tokens:
        yield data({"type": "transcript.text.delta", "delta": token})
    yield data({"type": "transcript.text.done", "text": text})


async def _hear(call: Call) -> _Heard:
    kind, options = parse_options_header(call.request.header("content-type"))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise Refusal(400, "wants multipart/form-data")
    heard = _Heard()
    at: MultipartSegment | None = None
    value = bytearray()
    parser = PushMultipartParser(options["boundary"], strict=True)
    try:
        async for piece in call.request.pieces():
            for event in parser.parse(piece):
                if isinstance(event, MultipartSegment):
                    at, value = event, bytearray()
                    heard.file_name = event.filename or heard.file_name
                elif event is not None:
                    _take(heard, at, value, bytes(event))
                elif at is not None and not at.filename:
                    heard.fields[at.name] = value.decode("utf-8", "replace")
        parser.close()
    except MultipartError as error:
        raise Refusal(400, f"the form cannot be read: {error}") from None
    return heard


def _take(heard: _Heard, at: Any, value: bytearray, piece: bytes) -> None:
    if at is not None and at.filename:
        heard.file_bytes += len(piece)
        heard.sha256.update(piece)
    elif len(value) + len(piece) > MAX_FIELD_BYTES:
        raise Refusal(413, "a field is too long")
    else:
        value += piece
