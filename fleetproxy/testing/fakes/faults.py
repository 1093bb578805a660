"""Faults a fake can be told to make: which, how often, for whom. `POST /__fake/<name>` or `faults.add(...)`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ClassVar

import msgspec

from fleetproxy.testing.http import Reply
from fleetproxy.testing.message import Headers

#: name -> what happens.
NAMES: dict[str, str] = {
    "model_missing": "404 with the words this server uses for an unknown model",
    "error": "`status` (500) with an error body",
    "unavailable": "503 at once",
    "limited": "429 with Retry-After",
    "slow": "`seconds` pass before anything else",
    "hang": "no byte is ever sent",
    "reset_before": "RST before any byte",
    "reset_after_headers": "RST after the response headers",
    "reset_mid": "RST after `after` pieces",
    "cut": "FIN after `after` pieces, without the last chunk",
    "stall": "silence after `after` pieces, connection open",
    "short": "FIN before the promised Content-Length",
    "drip": "one byte each `seconds`",
    "garbage": "bytes that are not HTTP",
    "error_mid": "after `after` pieces the stream's own error line, then an orderly end without the end marker",
    "no_marker": "after `after` pieces an orderly end without the end marker",
}


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One fault, for the next `next` requests that match, or for `for_s` seconds when that is set."""

    name: str
    next: int = 1
    for_s: float | None = None
    #: Only requests for this model, whose path begins so; None means all.
    model: str | None = None
    path: str | None = None
    #: Pieces let through first.
    after: int = 2
    seconds: float = 0.05
    status: int = 500
    retry_after: str = "2"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"unknown fault {self.name!r}; one of {', '.join(NAMES)}")


class Faults:
    """The faults that are set, in order; the first that matches strikes."""

    def __init__(self) -> None:
        self._set: list[tuple[Fault, float | None]] = []

    def add(self, fault: Fault) -> None:
        until_s = None if fault.for_s is None else time.monotonic() + fault.for_s
        self._set.append((fault, until_s))

    def clear(self) -> None:
        self._set.clear()

    def list(self) -> list[Fault]:
        return [fault for fault, _ in self._set]

    def take(self, path: str, model: str | None) -> Fault | None:
        """The fault for this request, counted down."""
        now = time.monotonic()
        self._set = [
            (fault, until_s) for fault, until_s in self._set if (fault.next > 0 if until_s is None else now < until_s)
        ]
        for fault, until_s in self._set:
            if fault.model not in {None, model} or not path.startswith(fault.path or ""):
                continue
            if until_s is None:
                fault.next -= 1
            return fault
        return None


class Broken(Exception):
    """The fault has ended this answer; nothing more is to be sent."""


class FaultyReply(Reply):
    """A reply that goes wrong in its fault's way, whatever the handler writes into it."""

    GARBAGE: ClassVar[bytes] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not http at all\r\n\r\n" * 3

    def __init__(self, reply: Reply, fault: Fault, error_line: Callable[[], bytes]) -> None:
        super().__init__(reply.connection, reply.request)
        self.fields = reply.fields
        self.fault = fault
        self._error_line = error_line

    async def prepare(self) -> None:
        """What happens before the handler runs."""
        match self.fault.name:
            case "slow":
                await asyncio.sleep(self.fault.seconds)
            case "hang":
                await asyncio.Event().wait()
            case "reset_before":
                self._break(self.reset)
            case "garbage":
                await self.raw(self.GARBAGE)
                self._break(self.hang_up)

    async def send(
        self, status: int, body: bytes = b"", headers: Headers = (), content_type: str = "application/json"
    ) -> None:
        name = self.fault.name
        if name in {"reset_mid", "cut", "stall", "short", "drip"} and len(body) > 1:
            await self.start(status, [*headers, ("Content-Type", content_type)], length=len(body))
            if name == "drip":
                await self.write(body)
                return await self.end()
            await Reply.write(self, body[: len(body) // 2])
            await self._strike()
        return await super().send(status, body, headers, content_type)

    async def start(self, status: int, headers: Headers = (), length: int | None = None) -> None:
        if self.fault.name == "short" and length is None:
            length = 1 << 20  # a promise no stream of a fake keeps
        await super().start(status, headers, length)
        if self.fault.name == "reset_after_headers":
            self._break(self.reset)

    async def write(self, piece: bytes) -> None:
        if self.fault.name == "drip":
            for index in range(len(piece)):
                await super().write(piece[index : index + 1])
                await asyncio.sleep(self.fault.seconds)
            return
        if self.pieces >= self.fault.after:
            await self._strike()
        await super().write(piece)

    async def end(self) -> None:
        await self._strike()
        await super().end()

    async def _strike(self) -> None:
        match self.fault.name:
            case "reset_mid":
                self._break(self.reset)
            case "cut" | "short":
                self._break(self.hang_up)
            case "stall":
                await asyncio.Event().wait()
            case "error_mid" | "no_marker" if self.chunked:
                if self.fault.name == "error_mid":
                    await Reply.write(self, self._error_line())
                await Reply.end(self)
                raise Broken

    def _break(self, how: Callable[[], None]) -> None:
        how()
        raise Broken
