"""Calling control from this machine's command line: over control.sock, with the key only our own user can read."""

from __future__ import annotations

import http.client
import json
import socket
import time
from pathlib import Path
from typing import Any

from fleetproxy.folders import Running

TIMEOUT_S = 30.0
#: Control may be on its way up, or being respawned.
WAIT_S = 5.0


class Unreachable(Exception):
    """Control did not answer; the text says why and what to do."""


def call(
    live: Running, method: str, path: str, body: object = None, *, timeout_s: float = TIMEOUT_S, wait_s: float = WAIT_S
) -> tuple[int, Any]:
    """Status and decoded JSON of one call. Raises Unreachable."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            return _once(Path(live.runtime), method, path, body, timeout_s)
        except PermissionError:
            raise Unreachable(f"{live.runtime} belongs to another user; ask as the user fleetproxy runs as") from None
        except (FileNotFoundError, ConnectionError) as error:
            if time.monotonic() >= deadline_s:
                raise Unreachable(
                    f"a fleetproxy runs with this data folder (process {live.pid}), but its control process does not "
                    f"answer: {error}; try again in a moment, or look at its log"
                ) from None
            time.sleep(0.1)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"control of process {live.pid} cannot be asked: {error}") from None


def _once(runtime: Path, method: str, path: str, body: object, timeout_s: float) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {(runtime / 'local.key').read_text().strip()}"}
    encoded = None
    if body is not None:
        encoded = json.dumps(body).encode()
        headers["content-type"] = "application/json"
    connection = _UnixConnection(runtime / "control.sock", timeout_s)
    try:
        connection.request(method, path, encoded, headers)
        answer = connection.getresponse()
        raw = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(raw)
    except ValueError:
        return answer.status, None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
