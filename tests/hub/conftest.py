from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop
from hub_house import House

from fleetproxy.settings import Settings


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The hub runs on uvloop; both loops, because their transports differ in small ways."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
async def house(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[House]:
    """A hub with its sockets open; settings by `@pytest.mark.parametrize("house", [settings], indirect=True)`."""
    house = House(tmp_path)
    await house.open(getattr(request, "param", Settings()))
    yield house
    await house.close()
