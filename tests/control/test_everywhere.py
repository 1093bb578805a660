"""A change that was asked for is answered when every process goes by it; a process that hangs holds nobody up."""

from __future__ import annotations

import asyncio

import pytest

from fleetproxy.link.framing import encode
from fleetproxy.link.messages import Hello
from fleetproxy.settings import Auth, Server, Settings
from tests.control.running import ADMIN, Neighbour, control, short_folder, until

SETTINGS = Settings(
    auth=Auth(admin_key="admin-key-of-the-tests"),
    servers=(Server(name="a", url="http://127.0.0.1:9"), Server(name="b", url="http://127.0.0.1:10")),
)


async def test_when_a_change_is_answered_every_process_has_it() -> None:
    async with control(short_folder(), SETTINGS) as running, running.browser(**ADMIN) as admin:
        processes = [Neighbour(running.runtime, name) for name in ("hub", "proxy-0")]
        await until(lambda: all(one.version for one in processes))
        for draining in (True, False, True):
            assert (await admin.patch("/api/servers/1", json={"isDraining": draining})).is_success
            for process in processes:
                assert process.snapshots[-1].table.backends[0].backend.draining is draining
        made = (await admin.post("/api/servers", json={"name": "c", "url": "http://127.0.0.1:11"})).json()
        assert "c" in processes[0].snapshots[-1].table.pins
        assert (await admin.delete(f"/api/servers/{made['id']}")).is_success
        assert "c" not in processes[0].snapshots[-1].table.pins
        await asyncio.gather(*(one.leave() for one in processes))


async def test_a_process_that_hangs_holds_a_change_up_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.control.main.EVERYWHERE_S", 0.05)
    async with control(short_folder(), SETTINGS) as running, running.browser(**ADMIN) as admin:
        _, writer = await asyncio.open_unix_connection(str(running.runtime / "link.sock"))
        writer.write(encode(Hello("proxy-0", 1, "x")))  # and never a word again
        await writer.drain()
        other = Neighbour(running.runtime, "hub")
        await until(lambda: other.version)
        assert (await admin.patch("/api/servers/1", json={"isDraining": True})).is_success
        assert other.snapshots[-1].table.backends[0].backend.draining
        writer.close()
        await other.leave()
