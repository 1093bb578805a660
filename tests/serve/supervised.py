"""Real supervisors with tiny children, each in folders of its own."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from fleetproxy.settings import Settings

HERE = Path(__file__).parent
PATIENCE_S = 20.0
T = TypeVar("T")


def until(look: Callable[[], T], what: str = "") -> T:
    """Ask again until the answer is truthy."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, f"never came: {what or look}"
        time.sleep(0.01)
    return found


class Fleetproxy:
    """A supervisor as its user sees it: a process, its output, its folders."""

    def __init__(
        self,
        settings: Settings,
        environment: dict[str, str] | None,
        open_files: int | None,
        on_terminal: bool,
        behave: dict[str, str],
    ) -> None:
        assert settings.data_dir is not None
        self.data = Path(settings.data_dir)
        self.data.mkdir(parents=True, exist_ok=True)
        (self.data / "behave.json").write_text(json.dumps({k.replace("_", "-"): v for k, v in behave.items()}))
        self.fresh = self.data / "fresh.json"
        self.settings = settings
        self.out, self.err = self.data / "out", self.data / "err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self._terminal, theirs = os.openpty() if on_terminal else (-1, os.open(os.devnull, os.O_RDONLY))
            #: A session of its own with that terminal, as a login shell would give it.
            session = ["setsid", "--ctty"] if on_terminal else []
            limit = ["prlimit", f"--nofile={open_files}"] if open_files else []
            self.popen = subprocess.Popen(
                [*session, *limit, sys.executable, HERE / "supervisor.py", msgspec.json.encode(settings), self.fresh],
                stdin=theirs,
                stdout=out,
                stderr=err,
                env={**os.environ, **(environment or {})},
            )

        os.close(theirs)

    def close_terminal(self) -> None:
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1

    @property
    def said(self) -> str:
        return self.out.read_text()

    @property
    def complaints(self) -> str:
        return self.err.read_text()

    @property
    def sentence(self) -> str:
        """The one line it leaves with."""
        return next((line for line in self.complaints.splitlines() if line.startswith("fleetproxy: ")), "")

    @property
    def runtime(self) -> Path:
        assert self.settings.runtime_dir is not None
        return Path(self.settings.runtime_dir)

    @property
    def journal(self) -> list[str]:
        path = self.data / "journal"
        return path.read_text().splitlines() if path.exists() else []

    def did(self, word: str) -> list[str]:
        """Names of the children that wrote this word, in order."""
        return [line.split()[0] for line in self.journal if f" {word} " in line]

    def pid_of(self, child: str) -> int:
        return int([line for line in self.journal if line.startswith(f"{child} started")][-1].split()[-1])

    def ready(self) -> Fleetproxy:
        until(lambda: "ready" in self.said or self.popen.poll() is not None, "ready")
        assert "ready" in self.said, self.complaints
        return self

    @property
    def port(self) -> int:
        found = re.search(r"http://127\.0\.0\.1:(\d+) ", self.said)
        assert found is not None
        return int(found[1])

    def get(self, path: str = "/") -> tuple[int, str]:
        """Status and body; the body is the answering child's name, pid and view of the board."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def finish(self) -> None:
        """Let draining proxies end: their last request is done."""
        (self.data / "finish").touch()

    def leave(self) -> int:
        """Wait for the end; the exit code."""
        return self.popen.wait(PATIENCE_S)


Start = Callable[..., Fleetproxy]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
