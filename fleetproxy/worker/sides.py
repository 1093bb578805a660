"""The worker's end of a connection, whichever wire language it speaks: `frame_side` or `nfrx_side`."""

from __future__ import annotations

import re
from typing import Protocol

from fleetproxy.core.worker import Offer

#: Answers go to the server in pieces of at most this.
PIECE_BYTES = 32 * 1024
#: What a server may ask the backend for.
TARGET = re.compile(rb"/[\x21-\x7e]*\Z")


class Identity(Protocol):
    """Who this worker is: the fields both languages register with."""

    worker_id: str
    worker_name: str
    client_key: str
    version: str
    build_sha: str
    build_date: str


class Side(Protocol):
    """One connection's wire language. `message` raises FrameError or NfrxError when the server makes no sense."""

    def hello(self, offer: Offer) -> None: ...

    def offer(self, offer: Offer) -> None:
        """This is on offer from now on."""

    def beat(self, cpu_percent: float, ram_percent: float) -> None:
        """A sign of life."""

    def goodbye(self, offer: Offer) -> None:
        """No new requests, please."""

    def message(self, data: str | bytes) -> None: ...

    def close(self) -> None:
        """The connection is gone: what runs for it stops."""


def with_key(lines: bytes, api_key: str | None, *, drop: bool = False) -> bytes:
    """Header lines with the backend's key in place of whatever credentials came; those stay when it has none."""
    if api_key is None and not drop:
        return lines
    kept = b"".join(
        line + b"\r\n" for line in lines.split(b"\r\n") if line and not line.lower().startswith(b"authorization:")
    )
    return kept if api_key is None else kept + b"authorization: Bearer %b\r\n" % api_key.encode()
