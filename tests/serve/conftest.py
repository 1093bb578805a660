"""Supervisors that end with their test."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetproxy.settings import Settings, Timeouts
from tests.serve.supervised import PATIENCE_S, Fleetproxy, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts supervisors; `start(proxy_0="crash")` with a child that misbehaves."""
    started: list[Fleetproxy] = []

    def begin(
        settings: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        open_files: int | None = None,
        on_terminal: bool = False,
        **behave: str,
    ) -> Fleetproxy:
        chosen: dict[str, Any] = {
            "port": 0,
            "data_dir": str(tmp_path / "data"),
            "runtime_dir": str(tmp_path / "run"),
            "timeouts": Timeouts(drain_s=PATIENCE_S),
            **(settings or {}),
        }
        started.append(Fleetproxy(Settings(**chosen), environment, open_files, on_terminal, behave))
        return started[-1]

    yield begin
    for one in started:
        one.finish()
        if one.popen.poll() is None:
            one.signal(signal.SIGTERM)
            one.signal(signal.SIGTERM)
        try:
            one.popen.wait(PATIENCE_S)
        finally:
            one.popen.kill()
            one.popen.wait()
            one.close_terminal()
