"""Log lines: safe to print, safe to parse, and never in the way."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.log import FIELD_CHARACTERS, LINE_BYTES, Sink, Style


def record(message: Any, *arguments: object, **more: Any) -> logging.LogRecord:
    values = {"level": logging.INFO, "exc_info": None, **more}
    return logging.LogRecord(
        "fleetproxy.proxy", values["level"], "file", 1, message, arguments, values["exc_info"], None, None
    )


WILD = st.text(st.characters(exclude_categories=()))
ANYTHING = st.one_of(WILD, st.integers(), st.floats(), st.none(), st.binary(), st.lists(st.text()))


@given(WILD, st.lists(ANYTHING, max_size=3), st.booleans())
def test_any_record_is_one_line_of_bounded_length_without_control_characters(
    message: str, arguments: list[object], as_json: bool
) -> None:
    line = Style("proxy-0", json=as_json).line(record(message, *arguments))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= LINE_BYTES * 2
    text = line[:-1].decode()
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text)
    if as_json:
        assert json.loads(line)["process"] == "proxy-0"


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=FIELD_CHARACTERS + 1, max_size=2000))
def test_an_argument_is_cut_at_the_limit(argument: str) -> None:
    row = json.loads(Style("hub", json=True).line(record("%s|", argument)))
    assert row["msg"] == f"{argument[: FIELD_CHARACTERS - 1]}…|"


def test_a_json_line_has_time_level_process_logger_and_message() -> None:
    row = json.loads(Style("hub", json=True).line(record("%d of %s", 3, "four", level=logging.WARNING)))
    assert set(row) == {"ts", "level", "process", "logger", "msg"}
    assert (row["level"], row["process"], row["logger"], row["msg"]) == ("warning", "hub", "proxy", "3 of four")
    assert row["ts"].endswith("Z")


def test_a_text_line_escapes_what_would_break_it() -> None:
    line = Style("hub", json=False).line(record("model %s", "a\nb\x1b[31m\u2028\x85"))
    assert line.endswith(b"proxy: model a\\nb\\x1b[31m\\u2028\\x85\n")


@pytest.mark.parametrize("as_json", [True, False])
def test_secrets_of_the_settings_are_blotted_out(as_json: bool) -> None:
    try:
        raise ValueError("refused: token hush-hush")
    except ValueError:
        line = Style("hub", json=as_json, secrets=("hush-hush", "hush-hush-longer", "abc")).line(
            record("%s and %s", "hush-hush-longer", "abc", exc_info=sys.exc_info())
        )
    assert b"hush" not in line
    assert b"*** and abc" in line


def test_a_secret_that_would_be_cut_in_two_leaks_neither_half() -> None:
    line = Style("hub", json=True, secrets=("hush-hush",)).line(
        record("%s", "x" * (FIELD_CHARACTERS - 5) + "hush-hush")
    )
    assert b"hush" not in line


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise KeyError("nothing")
    except KeyError:
        line = Style("hub", json=False).line(record("failed", exc_info=sys.exc_info()))
    assert line.count(b"\n") == 1
    assert b"KeyError: 'nothing'" in line


def test_a_wrong_format_is_shown_instead_of_raised() -> None:
    assert b"%d apples ('x',)" in Style("hub", json=False).line(record("%d apples", "x"))


# --- the sink ---


def test_a_reader_that_left_costs_a_line_not_a_request() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    os.close(reader)
    sink.write(b"line\n")
    sink.write(b"line\n")
    os.close(writer)
    assert sink.dropped == 2


def test_a_reader_that_stands_still_never_blocks_the_writer_and_lines_stay_whole() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    for number in range(10_000):
        sink.write(b"%06d %s\n" % (number, b"x" * 1000))
    assert sink.dropped > 0
    os.set_blocking(reader, False)
    first = os.read(reader, 1 << 20)
    sink.write(b"after\n")
    rest = os.read(reader, 1 << 20)
    os.close(reader)
    os.close(writer)
    lines = (first + rest).split(b"\n")
    assert lines[-2:] == [b"after", b""]
    assert sum(len(line) != 1007 for line in lines[:-2]) <= 1, "at most the line in which the pipe ran full is cut"


def test_a_full_disk_drops_lines_and_takes_them_again_later() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    sink = Sink(full)
    sink.write(b"line\n")
    os.close(full)
    assert sink.dropped == 1


def test_a_socket_is_written_without_waiting() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        sink = Sink(ours.fileno())
        sink.write(b"line\n")
        assert theirs.recv(100) == b"line\n"
        for _ in range(5000):
            sink.write(b"x" * 1000 + b"\n")
        assert sink.dropped > 0
        sink.close()


def test_nobody_else_on_the_same_pipe_becomes_non_blocking() -> None:
    reader, writer = os.pipe()
    sink = Sink(writer)
    assert os.get_blocking(writer)
    sink.close()
    os.fstat(writer)
    os.close(reader)
    os.close(writer)


PROGRAM = """
import logging, sys, warnings
import msgspec
from fleetproxy import log
from fleetproxy.settings import Log, Settings
early = log.get("early")
log.setup(Settings(log=Log(level=sys.argv[1], format="json")), "hub")
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(early, level)("ours %s", level)
    getattr(logging.getLogger("theirs"), level)("theirs %s", level)
logging.getLogger("_granian").warning("every lost client")
early.info("%d", "wrong")
log.setup(Settings(log=Log(level="error", format="json")), "hub")
early.warning("no longer")
early.error("still")
"""

HEARD = {
    "all": 5,
    "debug": 5,
    "info": 4,
    "warn": 3,
    "warning": 3,
    "error": 2,
    "fatal": 1,
    "none": 0,
}


@pytest.mark.parametrize("level", HEARD)
def test_a_level_lets_through_what_it_says_from_us_and_from_libraries(level: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, level], capture_output=True, check=True, cwd=tmp_path)
    rows = [json.loads(line) for line in done.stderr.splitlines()]
    said = [row["msg"] for row in rows]
    assert sum(text.startswith("ours") for text in said) == HEARD[level]
    assert sum(text.startswith("theirs") for text in said) == min(HEARD[level], 4)
    assert not any("lost client" in text for text in said)
    assert "no longer" not in said
    assert "still" in said
    assert done.stdout == b""


REPEATED = """
import os
from fleetproxy import log
from fleetproxy.settings import Settings
log.setup(Settings(), "serve")
before = len(os.listdir("/proc/self/fd"))
for _ in range(5):
    log.setup(Settings(), "serve")
log.get("serve").warning("%d", len(os.listdir("/proc/self/fd")) - before)
"""


@pytest.mark.parametrize("to_socket", [False, True])
def test_a_reload_costs_no_descriptor(to_socket: bool, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with (tmp_path / "log").open("wb") as file:
            error = theirs.fileno() if to_socket else file.fileno()
            subprocess.run([sys.executable, "-c", REPEATED], stderr=error, check=True, cwd=tmp_path)
        line = ours.recv(4096) if to_socket else (tmp_path / "log").read_bytes()
    assert line.endswith(b'"msg":"0"}\n')
