from __future__ import annotations

import os
from pathlib import Path

import pytest

from fleetproxy.worker import machine


def test_an_id_is_the_same_for_the_same_backend_and_no_other() -> None:
    first = machine.worker_id("llm", "http://127.0.0.1:11434")
    assert first == machine.worker_id("llm", "http://127.0.0.1:11434")
    assert len({first, machine.worker_id("asr", "http://127.0.0.1:11434"), machine.worker_id("llm", "http://x")}) == 3


def test_the_gauge_stays_within_a_hundred() -> None:
    gauge = machine.Gauge()
    sum(range(200_000))
    assert 0 <= gauge.cpu_percent() <= 100
    assert 0 < gauge.ram_percent() < 100


def test_a_machine_that_tells_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_STAT", "_MEMINFO"):
        monkeypatch.setattr(machine, name, tmp_path / "absent")
    monkeypatch.setattr(machine, "_MACHINE_IDS", ())
    gauge = machine.Gauge()
    assert 0 <= gauge.cpu_percent() <= 100
    assert gauge.ram_percent() == 0
    assert machine.worker_id("llm", "x")
    assert machine.host().hostname


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("printf '24576\\n8192\\n'", 32768 * 1024**2),
        ("echo 'No devices were found'; exit 6", None),
        ("sleep 30", None),
    ],
)
async def test_gpu_memory_is_summed_and_a_tool_that_fails_or_hangs_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: int | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "TOOL_S", 0.5)
    assert await machine.vram_bytes() == expected


async def test_no_tool_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await machine.vram_bytes() is None
