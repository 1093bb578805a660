"""How long others wait, and floods, each from a process of its own: what the test does meanwhile costs neither.

    python bystander.py ask HOST PORT PATH BODY NAME=VALUE...   for each line "N" on stdin: N requests, times in seconds
    python bystander.py flood HOST PORT KEY messages|pings      dials in again and again, until it is killed

Nothing here imports the package: what is measured is somebody else's.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Between two requests.
PAUSE_S = 0.002


class Bystander:
    """Sends short requests on one kept connection and takes their times."""

    def __init__(self, port: int, path: str, body: object, **headers: str) -> None:
        given = [f"{name.replace('_', '-')}={value}" for name, value in headers.items()]
        words = [sys.executable, __file__, "ask", "127.0.0.1", str(port), path, json.dumps(body), *given]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.waits(20)

    def waits(self, count: int) -> list[float]:
        """How long each of so many requests took, in seconds; every one was answered with 200."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"%d\n" % count)
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "a request failed: see above"
        waits: list[float] = json.loads(line)
        return waits

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def flood(port: int, key: str, what: str) -> Iterator[None]:
    """While it lasts somebody dials in with this key and sends without end: "messages", "pings"."""
    words = [sys.executable, __file__, "flood", "127.0.0.1", str(port), key, what]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def quantile(waits: list[float], share: float) -> float:
    """The wait that this share of them is not above."""
    return sorted(waits)[min(int(len(waits) * share), len(waits) - 1)]


# --- in the other process --------------------------------------------------------------------------------------------


def _ask(host: str, port: str, path: str, body: str, *headers: str) -> None:
    connection = socket.create_connection((host, int(port)))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = "".join(f"{name}: {value}\r\n" for name, _, value in (header.partition("=") for header in headers))
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{lines}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    for line in sys.stdin:
        waits = []
        for _ in range(int(line)):
            began_s = time.perf_counter()
            connection.sendall(request)
            _answer(connection)
            waits.append(time.perf_counter() - began_s)
            time.sleep(PAUSE_S)
        print(json.dumps(waits), flush=True)


def _answer(connection: socket.socket) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        sys.exit(f"not served: {data!r}")
    length = [int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < length[0] if length else not body.endswith(b"0\r\n\r\n"):
        body += _more(connection)


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        sys.exit("the connection was closed")
    return data


def _flood(host: str, port: str, key: str, what: str) -> None:
    os.nice(10)  # an attacker's processor is not ours
    register = b'{"type":"register","worker_id":"flood","models":["flood"],"max_concurrency":1}'
    many = _frame(1, b'{"type":"heartbeat","ts":1}') * 500 if what == "messages" else _frame(9, b"x" * 125) * 200
    said = False
    while True:
        try:
            connection = _dial(host, int(port), key)
            if what == "messages":
                connection.sendall(_frame(1, register))
            while True:
                connection.sendall(many)
                if not said:
                    print("begun", flush=True)
                    said = True
        except OSError:
            time.sleep(0.01)


def _dial(host: str, port: int, key: str) -> socket.socket:
    connection = socket.create_connection((host, port))
    # Killed, it leaves nothing behind that would still have to be read.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    nonce = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        (
            f"GET /api/llm/connect HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n"
            f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {nonce}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
    )
    data = b""
    while b"\r\n\r\n" not in data:
        some = connection.recv(4096)
        if not some:
            raise OSError("not let in")
        data += some
    return connection


def _frame(opcode: int, payload: bytes) -> bytes:
    return struct.pack(">BB", 0x80 | opcode, 0x80 | len(payload)) + bytes(4) + payload


if __name__ == "__main__":
    {"ask": _ask, "flood": _flood}[sys.argv[1]](*sys.argv[2:])
