"""Logging, set up once per process: our own lines through picologging where it exists, everybody else's through stdlib.

One line per event on standard error, as aligned text or as JSON (`log.format`; "auto" is text on a terminal). Every
line is safe to print and to parse: control characters are escaped, each argument is cut at `FIELD_CHARACTERS`, secrets
of the settings are replaced by `***`. A sink that is gone, full or slow never disturbs a request: the line is dropped
and counted (`sink.dropped`).
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
import stat
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import msgspec

from fleetproxy.settings import Settings
from fleetproxy.settings.model import secrets_of

picologging: Any
try:
    picologging = importlib.import_module("picologging")
except ImportError:  # no wheel for this Python: the same calls go to stdlib
    picologging = logging

FIELD_CHARACTERS = 256
LINE_BYTES = 16 * 1024
#: A secret shorter than this would blot out ordinary words.
SECRET_CHARACTERS = 6

_LEVELS = {
    "all": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "none": logging.CRITICAL,
}
#: Libraries that say at INFO what our own lines say better, or say it for every connection.
_QUIET = {
    "_granian": logging.ERROR,
    "alembic": logging.WARNING,
    "granian": logging.WARNING,
    "websockets": logging.WARNING,
    "httpx": logging.WARNING,
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: What the JSON encoder leaves as it is, or cannot write.
_CONTROL_IN_JSON = re.compile(r"[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_COLOURS = {"DEBUG": "\x1b[2m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}


def get(name: str) -> logging.Logger:
    """Our logger of this short name: "proxy", "control.poller", ..."""
    logger: logging.Logger = picologging.getLogger(f"fleetproxy.{name}")
    return logger


class Sink:
    """Writes whole lines to a descriptor without ever waiting or raising."""

    def __init__(self, descriptor: int = 2) -> None:
        #: Lines that could not be written, since the start of this process.
        self.dropped = 0
        self._socket: socket.socket | None = None
        self._given = self._file = descriptor
        self._torn = False
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                self._socket = socket.socket(fileno=os.dup(descriptor))
            else:
                # A description of our own: non-blocking for us alone, not for whoever shares the terminal or pipe.
                flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._file = os.open(f"/dev/fd/{descriptor}", flags)
        except OSError:
            pass  # not ours to reopen (or closed): write to it as it is

    def close(self) -> None:
        """Give up what is ours; the descriptor it was made for stays."""
        if self._socket is not None:
            self._socket.close()
        elif self._file != self._given:
            os.close(self._file)

    def write(self, line: bytes) -> None:
        if self._torn:
            line = b"\n" + line
        try:
            if self._socket is not None:
                done = self._socket.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                done = os.write(self._file, line)
        except OSError:
            self.dropped += 1
            return
        self._torn = done != len(line)
        self.dropped += self._torn


class Style:
    """How a record becomes a line. Times are UTC."""

    def __init__(self, process: str, *, json: bool, colour: bool = False, secrets: tuple[str, ...] = ()) -> None:
        self._process = process
        self._json = json
        self._colour = colour
        known = sorted({secret for secret in secrets if len(secret) >= SECRET_CHARACTERS}, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, known))) if known else None

    def line(self, record: Any) -> bytes:
        """One line, with its newline."""
        message = self._hide(_message(record, self._hide))
        trace = self._hide(_trace(record.exc_info)) if record.exc_info else ""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        name = record.name.removeprefix("fleetproxy.")
        if self._json:
            row = {"ts": time, "level": record.levelname.lower(), "process": self._process, "logger": name}
            row["msg"] = _escape(_cut(message, LINE_BYTES // 4), _CONTROL_IN_JSON)
            if trace:
                row["trace"] = _escape(trace[-LINE_BYTES // 4 :], _CONTROL_IN_JSON)
            return msgspec.json.encode(row) + b"\n"
        start, end = (_COLOURS.get(record.levelname, ""), "\x1b[0m") if self._colour else ("", "")
        text = f"{time} {start}{record.levelname:<8}{end} {self._process:<10} {name}: {_escape(message)}"
        if trace:
            text += " | " + " | ".join(_escape(part.strip()) for part in trace[-LINE_BYTES // 4 :].splitlines())
        return _cut(text, LINE_BYTES // 4).encode() + b"\n"

    def _hide(self, text: str) -> str:
        return self._secrets.sub("***", text) if self._secrets else text


class _Emitter:
    """What both kinds of handler do with a record."""

    style = Style("-", json=False)
    #: `log.level = "none"`.
    silent = False

    def emit(self, record: Any) -> None:
        if self.silent:
            return
        try:
            sink.write(self.style.line(record))
        except Exception:
            sink.dropped += 1  # a record that cannot be rendered is the log's trouble, never the request's


class _OurHandler(_Emitter, picologging.Handler):  # type: ignore[misc]
    """For loggers from `get`."""


class _TheirHandler(_Emitter, logging.Handler):
    """For libraries that log through stdlib."""


sink = Sink()


def setup(settings: Settings, process: str) -> None:
    """Point every logger of this process at standard error. Calling it again applies changed settings."""
    global sink
    before, sink = sink, Sink()
    sink.dropped = before.dropped
    before.close()
    level = _LEVELS[settings.log.level]
    terminal = os.isatty(2)
    _Emitter.silent = settings.log.level == "none"
    _Emitter.style = Style(
        process,
        json=settings.log.format == "json" or (settings.log.format == "auto" and not terminal),
        colour=terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        secrets=secrets_of(settings),
    )
    ours = picologging.getLogger("fleetproxy")
    ours.handlers = [_OurHandler()]
    ours.propagate = False
    ours.setLevel(level)
    root = logging.getLogger()
    root.handlers = [_TheirHandler()]
    root.setLevel(max(level, logging.INFO))
    for name, floor in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, floor))
    logging.captureWarnings(True)
    sys.unraisablehook = _unraisable


def _unraisable(event: Any) -> None:
    get("python").error(
        "exception ignored in %s: %s: %s", repr(event.object), type(event.exc_value).__name__, event.exc_value
    )


def _message(record: Any, hide: Callable[[str], str]) -> str:
    """The message with its arguments, each rid of secrets, then cut; a wrong format is shown instead of raised."""
    template, arguments = str(record.msg), record.args
    if not arguments:
        return template
    try:
        if isinstance(arguments, dict):
            return template % {key: _field(value, hide) for key, value in arguments.items()}
        return template % tuple(_field(value, hide) for value in arguments)
    except (TypeError, ValueError, KeyError):
        return f"{template} {_cut(hide(repr(arguments)), FIELD_CHARACTERS)}"


def _field(value: object, hide: Callable[[str], str]) -> object:
    """An argument as it may enter a line: numbers as they are, everything else as text of bounded length."""
    return value if isinstance(value, (int, float)) else _cut(hide(str(value)), FIELD_CHARACTERS)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _escape(text: str, what: re.Pattern[str] = _CONTROL) -> str:
    return what.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _trace(info: tuple[type[BaseException], BaseException, TracebackType | None] | bool) -> str:
    if info is True:
        info = sys.exc_info()  # type: ignore[assignment]
    if not isinstance(info, tuple) or info[1] is None:
        return ""
    return "".join(traceback.format_exception(info[1])).rstrip()
