"""Short runs of Locust, in processes of their own (gevent changes the one it is in), at a real service."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests import fleet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fleet.Fleet]:
    with fleet.running(tmp_path_factory.mktemp("fleet"), speed=20.0) as found:
        yield found


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "loadtests", "smoke", "--seconds", "4", "--min-streams", "1", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


def test_exit_codes_rows_and_the_proxys_share(found: fleet.Fleet, tmp_path: Path) -> None:
    direct, out = ",".join(found.direct), tmp_path / "out"
    passing = start("--url", found.url, "--client-key", fleet.CLIENT_KEY, "--direct", direct, "--out", str(out))
    missing = ("--users", "11", "--p95-ttft-ms", "0.001", "ChatStreamer", "WorkerStorm")
    failing = start("--url", found.url, "--client-key", "wrong", *missing)
    said, complaint = (process.communicate(timeout=50)[0] for process in (passing, failing))
    assert passing.returncode == 0, said
    assert failing.returncode == 1, complaint
    for verdict in ("FAIL  p95-ttft-ms", "FAIL  fail-ratio", "pass  min-streams", "closed the connection"):
        assert verdict in complaint

    table = said.partition("proxy minus direct")[2]
    for row in ("TTFT /api/chat", "ITL /api/chat", "TTFT /v1/chat/completions", "pass  fail-ratio: 0"):
        assert row in table
    with (out / "smoke_stats.csv").open() as file:
        rows = {(row["Type"], row["Name"]): int(row["Request Count"]) for row in csv.DictReader(file)}
    for path in ("/api/chat", "/v1/chat/completions"):
        for name in (path, f"direct {path}"):
            counts = {rows[kind, name] for kind in ("TTFT", "E2E", "TOKENS")}
            assert len(counts) == 1, "each whole stream has one of each"
            assert counts <= {*range(1, rows["POST", name] + 1)}
    for other in (
        ("POST", "/api/embed"),
        ("POST", "/api/chat (leaves)"),
        ("JOIN", "/api/llm/connect"),
        ("LEAVE", "/api/llm/connect"),
    ):
        assert rows[other] >= 1
