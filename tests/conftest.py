"""Settings of the whole suite."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any

import pytest
import pytest_timeout
import uvloop
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


ALL = os.environ.get("FLEETPROXY_TEST_ALL") == "1"
SLOW = {"e2e", "serve", "dashboard", "cli", "bench", "loadtests"}
#: Longest of all: it installs everything anew.
LONGEST = "test_tutorial.py"
#: A test over its time is told so again this often: the first word is lost if it meets a task nobody waits for.
TOLD_AGAIN_EVERY_S = 10
#: The timer of a test stops when the test fails; its fixtures get this long to end.
TEARDOWN_S = 60


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with whole services in them begin first: they take longest, and mostly wait."""
    items.sort(key=lambda item: (item.path.name != LONGEST, item.path.parent.name not in SLOW))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything must run, a test that does not has failed."""
    report = yield
    if ALL and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped, with FLEETPROXY_TEST_ALL=1: {report.longrepr}"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: Any, settings: Any) -> bool | None:
    if settings.method != "signal":
        return None
    item.cancel_timeout = _stop_timer
    _start_timer(settings.timeout, lambda: pytest_timeout.timeout_sigalrm(item, settings))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: Any) -> Iterator[None]:
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        _start_timer(TEARDOWN_S, lambda: pytest.fail(f"the fixtures of this test took over {TEARDOWN_S} s to end"))
        item.cancel_timeout = _stop_timer
    yield


def _start_timer(seconds: float, over: Callable[[], object]) -> None:
    def tell(signum: int, frame: FrameType | None) -> None:
        __tracebackhide__ = True
        try:
            over()
        except BaseException:
            # uvloop keeps to itself what a signal's handler raises: its tasks are ended instead.
            for task in _tasks_of_uvloop():
                task.cancel("over its time")
            raise

    signal.signal(signal.SIGALRM, tell)
    signal.setitimer(signal.ITIMER_REAL, seconds, TOLD_AGAIN_EVERY_S)


def _stop_timer() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _tasks_of_uvloop() -> set[asyncio.Task[Any]]:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return set()
    return asyncio.all_tasks(loop) if isinstance(loop, uvloop.Loop) else set()
