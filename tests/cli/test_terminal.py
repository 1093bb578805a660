"""What a terminal shows, and is left like: `top`, progress, colours. Real pseudo-terminals, a real service."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from tests.cli.spoken import Place, clean_environment

MODEL = "llama3.2:3b"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command at a terminal of 100 by 30."""

    def __init__(self, place: Place, *words: str, term: str = "xterm", **environment: str) -> None:
        self._near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.before = termios.tcgetattr(far)
        self._far = far
        # setsid -c makes it the session's own terminal: Ctrl-C is a signal then.
        command = ["setsid", "-c", sys.executable, "-m", "fleetproxy", *words, "--data-dir", str(place.service.data)]
        self.process = subprocess.Popen(
            command, stdin=far, stdout=far, stderr=far, env=clean_environment(TERM=term, **environment)
        )
        self.text = ""

    def until(self, words: str, within_s: float = 15.0) -> str:
        """All it has shown, once it has shown this."""
        deadline_s = time.monotonic() + within_s
        while words not in self.text:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, self.text
            if select.select([self._near], [], [], left_s)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self._near, 65536).decode(errors="replace")
        return self.text

    def type(self, text: str) -> None:
        os.write(self._near, text.encode())

    def end(self) -> int:
        """The exit code; the rest of what it shows is read meanwhile, or it could not end."""
        deadline_s = time.monotonic() + 15
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, self.text
            if select.select([self._near], [], [], 0.05)[0]:
                self.text += os.read(self._near, 65536).decode(errors="replace")
        while select.select([self._near], [], [], 0)[0]:
            self.text += os.read(self._near, 65536).decode(errors="replace")
        return self.process.returncode

    @property
    def mode(self) -> list[object]:
        return termios.tcgetattr(self._far)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._near)
        os.close(self._far)


@pytest.fixture
def terminal(place: Place) -> Iterator[object]:
    made: list[Terminal] = []

    def at(*words: str, **environment: str) -> Terminal:
        made.append(Terminal(place, *words, **environment))
        return made[-1]

    yield at
    for one in made:
        one.close()


def test_top_shows_the_fleet_until_q_and_leaves_the_terminal_as_it_was(terminal) -> None:  # type: ignore[no-untyped-def]
    top = terminal("top", "--interval", "0.3")
    shown = top.until("q leave")
    assert shown.startswith("\x1b[?1049h")
    plain = _ESCAPE.sub("", shown)
    for words in ("✓ ready", "NAME", "TOK/S", "big", "small", "vllm", "laptop", "llm worker"):
        assert words in plain
    assert top.mode != top.before  # keys as they are pressed
    top.type("s")
    top.until("s sort (busy)")
    top.type("p")
    top.until("p go on")
    top.type("q")
    assert top.end() == 0
    assert top.text.endswith("\x1b[?25h\x1b[?1049l")
    assert top.mode == top.before
    for frame in top.text.split("\x1b[H")[1:]:
        assert len(frame.splitlines()) <= 30
        assert all(len(_ESCAPE.sub("", line)) <= 100 for line in frame.splitlines())


def test_top_is_left_by_an_interrupt_as_well(terminal) -> None:  # type: ignore[no-untyped-def]
    top = terminal("top")
    top.until("q leave")
    top.type("\x03")
    assert top.end() == 130
    assert top.text.endswith("\x1b[?25h\x1b[?1049l")
    assert top.mode == top.before


def test_a_dumb_terminal_gets_top_once_and_no_escapes(terminal) -> None:  # type: ignore[no-untyped-def]
    top = terminal("top", "--interval", "0.2", term="dumb")
    assert top.end() == 0
    assert "\x1b" not in top.text
    assert "req/s" in top.text


def test_colours_are_for_terminals_that_have_them_unless_told_otherwise(terminal) -> None:  # type: ignore[no-untyped-def]
    for environment, words, colours in (
        ({}, (), True),
        ({"NO_COLOR": "1"}, (), False),
        ({}, ("--no-color",), False),
        ({"term": "dumb"}, (), False),
    ):
        shown = terminal("status", *words, **environment)
        assert shown.end() == 0
        assert ("\x1b[32m✓ ready\x1b[0m" in shown.text) is colours, environment


def test_pull_draws_a_bar_that_ends_full(terminal) -> None:  # type: ignore[no-untyped-def]
    pull = terminal("pull", "smollm", "--server", "big")
    assert pull.end() == 0
    plain = _ESCAPE.sub("", pull.text)
    assert "100% ▕" in plain
    assert "█" in plain
    assert "smollm is on big" in plain
    removed = terminal("rm", "smollm", "--server", "big")
    assert removed.end() == 0


def test_a_conversation_keeps_what_was_said_until_bye(terminal) -> None:  # type: ignore[no-untyped-def]
    talk = terminal("run", MODEL, "--server", "small")
    talk.until(">>> ")
    talk.type("hello\n")
    assert len(_ESCAPE.sub("", talk.until("\n>>> "))) > len(">>> hello\n>>> ")
    talk.type("/nonsense\n")
    talk.until("There is no command /nonsense")
    talk.type("/clear\n")
    talk.until("Forgotten.")
    talk.type("/bye\n")
    assert talk.end() == 0
