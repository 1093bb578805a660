"""Settings of the whole suite."""

from __future__ import annotations

import os

import pytest
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
