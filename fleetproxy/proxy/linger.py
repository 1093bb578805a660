"""Refusing a request whose body is still on its way, so that its caller reads the answer instead of a reset connection.

A server that closes a connection with unread bytes in it makes the kernel reset it, and the reset overtakes the answer.
So what still comes is read and thrown away, within bounds: a little before the answer, which keeps the connection, and
some more after it, which only lets the caller finish writing (nginx: `lingering_close`).
"""

from __future__ import annotations

import asyncio

from fleetproxy.listen import Receive
from fleetproxy.proxy.exchange import Exchange

#: Thrown away before the answer: what fits in less is answered on a connection that stays.
BEFORE_BYTES, BEFORE_S = 1024 * 1024, 0.5
#: Thrown away after the answer, on a connection that closes.
AFTER_BYTES, AFTER_S = 64 * 1024 * 1024, 3.0


async def before(exchange: Exchange) -> bool:
    """Read what little is left of the body; call it before refusing. False: say that the connection closes."""
    if exchange.body_read:
        return True
    exchange.limit(None, None)
    head = exchange.head
    if b"expect" in head.own or (head.content_length or 0) - exchange.bytes_in > BEFORE_BYTES:
        return False
    exchange.body_read = await _rest_passed(exchange.receive, BEFORE_BYTES, BEFORE_S)
    return exchange.body_read


async def after(exchange: Exchange) -> None:
    """Let the caller finish writing; call it when the refusal is out."""
    if not exchange.body_read and b"expect" not in exchange.head.own:
        await _rest_passed(exchange.receive, AFTER_BYTES, AFTER_S)


async def _rest_passed(receive: Receive, most_bytes: int, seconds: float) -> bool:
    """Read on until the body ends (True), or it is more than `most_bytes`, or takes longer, or its caller left."""
    left = most_bytes
    try:
        async with asyncio.timeout(seconds):
            while left >= 0:
                message = await receive()
                if message["type"] != "http.request":
                    return False
                if not message.get("more_body"):
                    return True
                left -= len(message.get("body", b""))
    except TimeoutError:
        pass
    return False
