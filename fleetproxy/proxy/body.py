"""Reading a request's body: whole, up to a cap and within the process's budget, or piece by piece for uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fleetproxy.errors import BodyTooLarge, ClientGone, Overloaded
from fleetproxy.listen import Receive


class Budget:
    """Bytes of request bodies this process holds at once (fault C-36)."""

    __slots__ = ("held_bytes", "limit_bytes", "refused")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self.refused = 0

    def hold(self, size_bytes: int) -> None:
        """Raises Overloaded when it would not fit; `release` what was held."""
        if self.held_bytes + size_bytes > self.limit_bytes:
            self.refused += 1
            raise Overloaded
        self.held_bytes += size_bytes

    def release(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes


async def read_announced(receive: Receive, length: int) -> bytes:
    """A body whose Content-Length is known and already admitted. Raises ClientGone when it stays short."""
    message = await receive()
    body: bytes = message.get("body", b"")
    if len(body) == length and message["type"] == "http.request":
        return body
    pieces = [body]
    have = len(body)
    while have < length:
        if message["type"] != "http.request" or not message.get("more_body"):
            raise ClientGone("The request body ended early.")
        message = await receive()
        body = message.get("body", b"")
        pieces.append(body)
        have += len(body)
    return b"".join(pieces)


async def read_chunked(receive: Receive, cap_bytes: int, budget: Budget) -> bytes:
    """A body of unknown length. Raises BodyTooLarge at cap + 1, Overloaded, ClientGone. Held bytes stay held."""
    pieces: list[bytes] = []
    have = 0
    try:
        async for piece in pieces_of(receive):
            have += len(piece)
            if have > cap_bytes:
                raise BodyTooLarge
            budget.hold(len(piece))
            pieces.append(piece)
    except BaseException:
        budget.release(sum(map(len, pieces)))
        raise
    return b"".join(pieces)


async def pieces_of(receive: Receive) -> AsyncIterator[bytes]:
    """The pieces of a body as they come. Complete only when the server said so; anything else is ClientGone."""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGone("The request body ended early.")
        piece: bytes = message.get("body", b"")
        if piece:
            yield piece
        if not message.get("more_body"):
            return
