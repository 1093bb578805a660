"""Settings of the whole suite."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

import pytest
import pytest_timeout
from hypothesis import HealthCheck, settings

# Machines that run tests are shared: how long an example took says nothing about the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", parent=settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the settings, keys or addresses of whoever runs it."""
    for name in os.environ:
        if name.startswith(("FLEETPROXY_", "OLLAMA_", "OPENAI_", "ANTHROPIC_")) and name != "FLEETPROXY_FAULT_ROUNDS":
            monkeypatch.delenv(name)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: Any, settings: Any) -> bool | None:
    """A test over its time is told so again every 10 s: the first word is lost if it meets a task nobody waits for."""
    if settings.method != "signal":
        return None

    def over(signum: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        pytest_timeout.timeout_sigalrm(item, settings)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel
    signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, 10)
    return True
