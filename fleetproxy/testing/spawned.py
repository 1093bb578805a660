"""Subprocesses for tests: started here, watched through their output, signalled only here."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

_READY = re.compile(r"(https?://[^\s]+:\d+)")
START_S, STOP_S = 30.0, 40.0


def until(done: Callable[[], object], within_s: float, what: str) -> Any:
    """Call `done` until it gives something true, and give that; AssertionError after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not (value := done()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what}: not within {within_s} s")
        time.sleep(0.02)
    return value


class Spawned:
    """A subprocess with its output in a file."""

    def __init__(self, words: list[str], output: Path, environment: Mapping[str, str] | None = None) -> None:
        self.words = words
        self.output = output
        self.environment = {**os.environ, **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as sink:
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter
                self.words, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=self.environment
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within_s: float = STOP_S) -> int:
        """The exit code; AssertionError when it does not leave."""
        assert self.process is not None
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {within_s} s:\n{self.text()[-4000:]}") from None

    def kill(self) -> None:
        if self.alive:
            self.signal(signal.SIGKILL)
            assert self.process is not None
            self.process.wait(10)


class FakeProcess(Spawned):
    """`python -m fleetproxy.testing.fakes` on a free port."""

    def __init__(self, folder: Path, name: str = "fake", *, port: int = 0, **options: object) -> None:
        flags = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        words = [sys.executable, "-m", "fleetproxy.testing.fakes", "--port", str(port), *flags]
        super().__init__(words, folder / f"{name}.log")
        self.name = name
        self.url = ""

    def start(self) -> None:
        """Start, or start again on the same port."""
        if self.url:
            self.words[self.words.index("--port") + 1] = str(self.port)
        self.output.unlink(missing_ok=True)
        self.spawn()
        self.url = until(lambda: found_url(self), START_S, f"{self.name} did not start")

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Speak to the fake's own `/__fake/...` paths."""
        status, _, data = fetch(self.url, method, path, None if body is None else json.dumps(body).encode())
        assert status == 200, data
        return json.loads(data)

    def requests(self) -> list[dict[str, Any]]:
        """What it saw besides polls, oldest first."""
        polls = {"/", "/api/version", "/api/tags", "/api/ps", "/health", "/v1/models", "/version", "/metrics"}
        rows: list[dict[str, Any]] = self.ask("GET", "/__fake/requests")["requests"]
        return [row for row in rows if row["method"] not in {"GET", "HEAD"} or row["target"] not in polls]

    def fault(self, name: str, **fields: object) -> None:
        self.ask("POST", f"/__fake/{name}", fields)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.alive:
            self.signal(signal.SIGTERM)
            self.wait(10)


def fetch(
    url: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """One plain request: (status, headers with lower-case names, body). OSError when nobody answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def found_url(spawned: Spawned, start: int = 0, mark: str = "") -> str:
    """The address in the output; AssertionError with the output when the process is gone."""
    text = spawned.text()[start:]
    for line in text.splitlines():
        if mark in line and (match := _READY.search(line)):
            return match.group(1).rstrip("/")
    if not spawned.alive:
        raise AssertionError(f"ended early:\n{text[-4000:]}")
    return ""


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP for the length of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
