"""A control plane without sockets: the real store, guard and handlers beside small neighbours with behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import argon2
import httpx
from litestar import Litestar
from litestar.datastructures import State

from fleetproxy.control.api import routes
from fleetproxy.control.api.peer import direct
from fleetproxy.control.services import Services
from fleetproxy.control.state import Store
from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.settings import Settings
from fleetproxy.transport.httpx_client import HttpxClient

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PASSWORD = "correct horse 7"


class LiveFleet:
    """The poller's side: what it would have seen."""

    def __init__(self) -> None:
        self.seen: list[tuple[Backend, BackendState]] = []
        self.applied = 0

    def backends(self) -> Sequence[tuple[Backend, BackendState]]:
        return self.seen

    async def apply(self) -> None:
        self.applied += 1


class Records:
    """The analytics' side: rows to answer with."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Mapping[str, Any]]] = {}
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, question: str) -> Any:
        async def answer(*arguments: Any) -> Sequence[Mapping[str, Any]]:
            self.asked.append((question, *arguments))
            return self.rows.get(question, [])

        return answer


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    def pass_(self, **span: float) -> None:
        self.time += timedelta(**span)


@dataclass
class Control:
    """One control plane and ways to call it."""

    app: Litestar
    services: Services
    fleet: LiveFleet
    records: Records
    clock: Clock
    caller: HttpxClient

    def browser(self, address: str = "127.0.0.1", host: str = "127.0.0.1:3334", **headers: str) -> httpx.AsyncClient:
        """A client with a cookie jar at an address."""
        transport = httpx.ASGITransport(app=direct(self.app, lambda: ()), client=(address, 40000))  # type: ignore[arg-type]
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)

    async def admin(self) -> httpx.AsyncClient:
        """The first administrator, made and logged in."""
        client = self.browser()
        answer = await client.post("/api/auth/setup", json={"username": "root", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return client

    async def user(self, admin: httpx.AsyncClient, name: str, is_admin: bool = False) -> httpx.AsyncClient:
        """A further user, made by an administrator and logged in. `client.user_id` is theirs."""
        made = await admin.post("/api/users", json={"username": name, "password": PASSWORD, "isAdmin": is_admin})
        assert made.status_code == 201, made.text
        client = self.browser()
        client.user_id = made.json()["id"]  # type: ignore[attr-defined]
        answer = await client.post("/api/auth/login", json={"username": name, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return client


async def make_control(data: Path, settings: Settings) -> Control:
    fleet, records, clock = LiveFleet(), Records(), Clock()
    caller = HttpxClient()
    services = Services(
        await Store.open(data / "state.db"),
        data=data,
        settings=lambda: settings,
        fleet=fleet,
        records=records,
        caller=caller,
        local_key="l" * 64,
        now=clock.now,
        monotonic=clock.monotonic,
        hashing_cost=CHEAP,
    )
    await services.first_administrator()
    app = Litestar(
        routes.HANDLERS,
        guards=[services.guard],
        state=State({"services": services}),
        openapi_config=None,
        exception_handlers=routes.EXCEPTION_HANDLERS,
    )
    return Control(app, services, fleet, records, clock, caller)
