from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from control_plane import Control, make_control

from fleetproxy.settings import Settings


@pytest.fixture
def settings() -> Settings:
    return Settings()


@pytest.fixture
async def control(tmp_path: Path, settings: Settings) -> AsyncIterator[Control]:
    control = await make_control(tmp_path, settings)
    yield control
    await control.services.close()
    await control.caller.aclose()
