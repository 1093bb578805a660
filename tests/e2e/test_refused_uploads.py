"""A refusal reaches its caller, who may be in the middle of sending a body when it is decided."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess

CHAT, SPEECH, RELAY, CHANNEL = (
    b"/api/llm/v1/chat/completions",
    b"/api/asr/v1/audio/transcriptions",
    b"/api/mcp/id/nobody",
    b"/api/transfer/unknown",
)


def send_all(port: int, path: bytes, size: int, times: int = 1) -> list[bytes]:
    """Send whole requests before reading anything, as most clients do; the heads of the answers."""
    heads = []
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for _ in range(times):
            lines = (b"POST %b HTTP/1.1" % path, b"Host: 127.0.0.1", b"Content-Length: %d" % size, b"", b"")
            client.sendall(b"\r\n".join(lines))
            for at in range(0, size, 65536):
                client.sendall(bytes(min(65536, size - at)))
            got = b""
            while b"\r\n\r\n" not in got:
                piece = client.recv(65536)
                assert piece, "closed without an answer"
                got += piece
            answer, _, rest = got.partition(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in answer.split(b"\r\n") if line.startswith(b"content-length")
            )
            while len(rest) < length:
                rest += client.recv(65536)
            heads.append(answer)
    return heads


@pytest.fixture
def service(start: Callable[..., Service], fake: Callable[..., FakeProcess]) -> Service:
    return start({"a": fake("a", models="a:1b").url}, settings={"auth": {"api_key": "a-key-nobody-sends"}})


async def test_refusals_are_read_whatever_was_being_sent(service: Service) -> None:
    for path in (CHAT, SPEECH, RELAY, CHANNEL):
        for size in (300_000, 20_000_000):
            (head,) = await asyncio.to_thread(send_all, service.port, path, size)
            assert head.split()[1] in (b"401", b"503"), (path, size)
            assert (b"connection: close" in head) == (size > 1_048_576), (path, size)


async def test_a_small_body_costs_no_connection(service: Service) -> None:
    heads = await asyncio.to_thread(send_all, service.port, CHAT, 200_000, times=3)
    assert [head.split()[1] for head in heads] == [b"401"] * 3
