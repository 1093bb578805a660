"""GET /api/state/live in a whole control process: who may look, what is told, how a stream goes on and ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from fleetproxy.control.live import feed
from fleetproxy.control.live.rates import Failure
from fleetproxy.core.worker import Offer, Worker
from fleetproxy.link.messages import Count, WorkersSeen
from fleetproxy.settings import Auth, Server, Settings
from tests.control.running import ADMIN, Neighbour, Running, control, short_folder, until

SETTINGS = Settings(
    auth=Auth(admin_key="admin-key-of-the-tests"), servers=(Server(name="box", url="http://127.0.0.1:9"),)
)
PASSWORD = "correct horse 7"


class Stream:
    """What a browser's EventSource makes of an answer."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.lines = answer.aiter_lines()
        self.last_id = ""

    async def next(self) -> tuple[str, Any]:
        name = ""
        async with asyncio.timeout(10):
            async for line in self.lines:
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "id":
                    self.last_id = value
                elif field == "data":
                    return name, json.loads(value)
        return "end", None

    async def until(self, wanted: str, test: Any = lambda value: True) -> Any:
        while True:
            name, value = await self.next()
            assert name != "end", f"no {wanted} before the end"
            if name == wanted and test(value):
                return value


@asynccontextmanager
async def watching(running: Running, query: str = "", **headers: str) -> AsyncIterator[Stream]:
    async with (
        running.browser(**(headers or ADMIN)) as client,
        client.stream("GET", f"/api/state/live{query}") as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        yield Stream(answer)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with control(short_folder(), SETTINGS) as found:
        yield found


async def test_it_begins_with_everything_then_tells_what_changes(running: Running) -> None:
    async with watching(running) as stream, running.browser(**ADMIN) as client:
        assert stream.answer.headers["content-type"] == "text/event-stream"
        begun = [await stream.next() for _ in range(5)]
        assert [name for name, _ in begun] == ["hello", "fleet", "models", "events", "pulls"]
        hello, fleet = begun[0][1], begun[1][1]
        assert (hello["resumed"], hello["user"], hello["isAdmin"]) == (False, "admin key", True)
        assert fleet["whole"]
        assert [(one["id"], one["name"], one["state"]) for one in fleet["servers"]] == [(1, "box", "offline")]
        shown = (await client.get("/api/servers")).json()[0]
        lists = {"loadedModels", "availableModels"}
        assert shown.keys() - lists <= fleet["servers"][0].keys()
        assert not lists & fleet["servers"][0].keys()

        assert (await client.patch("/api/servers/1", json={"isDraining": True})).is_success
        patch = await stream.until("fleet", lambda value: value["servers"] and value["servers"][0]["isDraining"])
        assert not patch["whole"]
        change = (await stream.until("events"))["events"][-1]
        assert (change["kind"], change["subject"], change["text"]) == ("server_changed", "box", "box is draining")

        made = (await client.post("/api/servers", json={"name": "second", "url": "http://127.0.0.1:10"})).json()
        await stream.until("fleet", lambda value: [one["name"] for one in value["servers"]] == ["second"])
        assert (await client.delete(f"/api/servers/{made['id']}")).is_success
        assert await stream.until("fleet", lambda value: value["removed"]["servers"] == [made["id"]])


async def test_who_comes_back_gets_what_was_missed_and_nothing_twice(running: Running) -> None:
    async with running.browser(**ADMIN) as client:
        async with watching(running) as stream:
            await stream.until("pulls")
            seen = stream.last_id
        await client.patch("/api/servers/1", json={"isDraining": True})
        async with watching(running, **ADMIN, **{"last-event-id": seen}) as stream:
            assert (await stream.next())[1]["resumed"]
            missed = await stream.until("fleet", lambda value: value["whole"] or bool(value["servers"]))
            assert not missed["whole"]
            assert missed["servers"][0]["isDraining"]
            late = stream.last_id
        async with watching(running, f"?lastEventId={late}&topics=events,fleet") as stream:
            assert (await stream.next())[1]["resumed"]
        for stranger in ("x-1", f"{late.partition('-')[0]}-99999", "", "-", late + "x"):
            async with watching(running, **ADMIN, **{"last-event-id": stranger}) as stream:
                assert not (await stream.next())[1]["resumed"]
                assert (await stream.next())[1]["whole"]


async def test_a_dial_in_worker_comes_drains_and_leaves(running: Running) -> None:
    hub = Neighbour(running.runtime, "hub")
    offer = Offer(models=("m:1",), max_concurrency=2)
    worker = Worker(id="w/1", name="guest", column=2050, offer=offer, connected_at_s=1.0)
    async with watching(running, "?topics=fleet,events") as stream, running.browser(**ADMIN) as client:
        await until(lambda: hub.link.connected)
        hub.link.send(WorkersSeen(present=(worker,), whole=True))
        fleet = await stream.until("fleet", lambda value: bool(value["workers"]))
        shown = fleet["workers"][0]
        assert (shown["workerId"], shown["state"], shown["slots"], shown["models"]) == ("w/1", "idle", 2, ["m:1"])
        assert fleet["totals"]["workers"] == 1
        listed = (await client.get("/api/workers")).json()["workers"]
        assert [one["id"] for one in listed] == [shown["id"]]

        assert (await client.post(f"/api/workers/{shown['id']}/drain")).json() == {"ok": True}
        # Told to the hub before the answer: it is what gives workers their work.
        assert hub.snapshots[-1].resting == {("llm", "w/1")}
        assert (await stream.until("fleet", lambda value: bool(value["workers"])))["workers"][0]["drainedHere"]
        assert (await client.patch("/api/workers/guest", json={"isDraining": False})).is_success
        assert hub.snapshots[-1].resting == frozenset()
        for path, body in (("/api/workers/nobody", {"isDraining": True}), (f"/api/workers/{shown['id']}", {})):
            assert (await client.patch(path, json=body)).status_code in (400, 404)
        hub.link.send(WorkersSeen(left=(("llm", "w/1"),)))
        await stream.until("fleet", lambda value: value["removed"]["workers"] == [shown["id"]])
        told = await stream.until("events", lambda value: value["events"][-1]["kind"] == "worker_left")
        assert told["events"][-1]["subject"] == "guest"
    await hub.leave()


async def test_a_breaker_that_opens_in_one_process_is_shown(running: Running) -> None:
    proxy = Neighbour(running.runtime, "proxy-0")
    await until(lambda: proxy.snapshots and proxy.link.connected)
    column = proxy.snapshots[-1].table.backends[0].backend.column
    async with watching(running, "?topics=fleet,events") as stream, running.browser(**ADMIN) as client:
        await stream.until("events")
        for state in ("open", "half_open"):
            proxy.link.send(Count({}, {}, {column: state}))
            await stream.until(
                "fleet", lambda value, state=state: [one["breaker"] for one in value["servers"]] == [state]
            )
            explained = (await client.get("/api/models/explain?model=m")).json()
            assert [one["tripped"] for one in explained["considered"]] == [state == "open"]
        proxy.link.send(Count({}, {}))
        await stream.until("events", lambda value: value["events"][-1]["kind"] == "breaker_closed")
    await proxy.leave()


async def test_users_see_the_fleet_but_not_what_is_the_administrators(running: Running) -> None:
    async with running.browser() as root, running.browser() as bob:
        assert (await root.post("/api/auth/setup", json={"username": "root", "password": PASSWORD})).is_success
        made = (await root.post("/api/users", json={"username": "bob", "password": PASSWORD})).json()
        assert (await bob.post("/api/auth/login", json={"username": "bob", "password": PASSWORD})).is_success
        cookie = f"fleet_session={bob.cookies['fleet_session']}"
        async with watching(running, cookie=cookie) as stream:
            begun = [(await stream.next())[0] for _ in range(4)]
            assert begun == ["hello", "fleet", "models", "events"]
        assert (await bob.post(f"/api/workers/{made['id']}/drain")).status_code == 403
        assert (await bob.get("/api/state/live?topics=secrets")).status_code == 400
        assert (await bob.head("/api/state/live")).status_code == 200
    async with running.browser() as nobody:
        assert (await nobody.get("/api/state/live")).status_code == 401
        assert (await nobody.get("/api/workers")).status_code == 401
        assert (await nobody.get("/api/models/explain?model=x")).status_code == 401


async def test_a_stream_says_goodbye_when_its_session_ends(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from fleetproxy.control.api import stream as streams

    monkeypatch.setattr(streams, "STILL_S", 0.05)
    async with running.browser() as root:
        assert (await root.post("/api/auth/setup", json={"username": "root", "password": PASSWORD})).is_success
        async with watching(running, cookie=f"fleet_session={root.cookies['fleet_session']}") as stream:
            await stream.until("fleet")
            assert (await root.post("/api/auth/logout")).is_success
            assert await stream.until("bye") == {"reason": "unauthorized"}
            assert await stream.next() == ("end", None)


@pytest.mark.parametrize("change", ["demoted", "deleted"])
async def test_a_stream_ends_when_its_user_is_demoted_or_deleted(
    running: Running, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A-10: an open stream does not outlive the rights it was opened with."""
    from fleetproxy.control.api import stream as streams

    monkeypatch.setattr(streams, "STILL_S", 0.05)
    async with running.browser() as root, running.browser() as bob:
        assert (await root.post("/api/auth/setup", json={"username": "root", "password": PASSWORD})).is_success
        user = {"username": "bob", "password": PASSWORD, "isAdmin": True}
        number = (await root.post("/api/users", json=user)).json()["id"]
        assert (await bob.post("/api/auth/login", json=user)).is_success
        async with watching(running, cookie=f"fleet_session={bob.cookies['fleet_session']}") as stream:
            await stream.until("pulls")
            if change == "demoted":
                assert (await root.patch(f"/api/users/{number}", json={"isAdmin": False})).is_success
            else:
                assert (await root.delete(f"/api/users/{number}")).is_success
            assert await stream.until("bye") == {"reason": "unauthorized"}


async def test_a_stream_says_goodbye_when_control_leaves(running: Running) -> None:
    async with watching(running) as stream:
        await stream.until("fleet")
        running.process.terminate()
        assert await stream.until("bye") == {"reason": "closing"}
        assert await stream.next() == ("end", None)


async def test_too_many_streams_are_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_OF_ONE", 1)
    async with watching(running) as stream, running.browser(**ADMIN) as client:
        await stream.next()
        answer = await client.get("/api/state/live")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
        monkeypatch.setattr(feed, "MAX_WATCHERS", 1)
        answer = await client.get("/api/state/live")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


async def test_a_silent_fleet_is_heard_of_by_pings(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PING_S", 0.02)
    async with watching(running, "?topics=requests") as stream, asyncio.timeout(10):
        async for line in stream.lines:
            if line == ": ping":
                break


def test_failures_carry_words() -> None:
    from fleetproxy.core.wording import error_words

    assert "could not be reached" in error_words(Failure("connect_failed", 1.0).code)
