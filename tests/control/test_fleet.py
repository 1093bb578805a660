"""The fleet as it is now: numbers, columns, states and events over polls, reloads and restarts."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import orjson
import pytest

from fleetproxy.control import columns as columns_module
from fleetproxy.control import fleet as fleet_module
from fleetproxy.control.deploys import MOST
from fleetproxy.control.state import keys, servers, users
from fleetproxy.core.backend import BackendState, ResidentModel
from fleetproxy.errors import ConnectFailed
from fleetproxy.settings import Auth, Poll, Server
from tests.control.scripted import OLLAMA, OPENAI, Answer, Said, backend
from tests.control.world import World, living

A = Server(name="a", url="http://10.0.0.1:11434")
B = Server(name="B", url="http://10.0.0.2:11434", vram_gb=8)
V = Server(name="v", url="http://10.0.0.3:8000", kind="openai")
DEAD = dict.fromkeys(OLLAMA, ConnectFailed("refused"))
NOW = datetime(2026, 11, 21, tzinfo=UTC)


def ps(*names: str) -> Answer:
    return Answer(200, orjson.dumps({"models": [{"name": name, "size": 9, "size_vram": 5} for name in names]}))


async def test_polled_servers_are_routed_to(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA, "B": OLLAMA, "v": OPENAI}, A, B, V) as world:
        table = world.snapshot.table
        assert [routed.backend.name for routed in table.backends] == ["a", "B", "v"]
        assert world.usable() == ["a", "B", "v"]
        assert [route.backend for route in table.models["phi:latest"]] == [0, 1]
        assert [route.backend for route in table.models["mistral:latest"]] == [2]
        assert table.backends[1].free_vram_bytes == 8 * 1024**3 - 5
        bodies = {path: orjson.loads(body) for path, body in world.snapshot.bodies.items()}
        assert [entry["_server"] for entry in bodies["/api/ps"]["models"]] == ["a", "B"]
        assert {entry["id"] for entry in bodies["/v1/models"]["data"]} == {"phi:latest", "qwen:0.5b", "mistral"}
        assert bodies["/api/version"] == {"version": "0.9"}


async def test_every_server_counts_in_a_column_of_its_own_and_keeps_its_number(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA, "B": OLLAMA}, A, B) as world:
        first = {backend.name: (backend.id, backend.column) for backend, _ in world.fleet.backends()}
        assert len({column for _, column in first.values()}) == 2
    async with living(tmp_path, {"a": OLLAMA, "B": OLLAMA, "v": OPENAI}, V, B, A) as world:
        second = {backend.name: (backend.id, backend.column) for backend, _ in world.fleet.backends()}
        assert {name: second[name] for name in first} == first
        assert [backend.id for backend, _ in world.fleet.backends()] == sorted(
            backend.id for backend, _ in world.fleet.backends()
        )


async def test_a_poll_that_finds_nothing_new_changes_nothing(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        changes, snapshot = world.changes, world.snapshot
        polled_at_s = world.fleet.backends()[0][1].polled_at_s
        await world.poller.poll_all()
        assert world.changes == changes
        assert world.snapshot == snapshot
        assert world.fleet.backends()[0][1].polled_at_s != polled_at_s


async def test_a_server_that_flaps_is_told_of_once_per_real_change(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A, poll=Poll(interval_s=1000.0)) as world:
        for _ in range(6):
            world.servers.servers["a"] = DEAD
            await world.poller.poll_all()
            world.servers.servers["a"] = dict(OLLAMA)
            await world.poller.poll_all()
        assert world.rows("server_events") == []
        assert world.usable() == ["a"]
        world.servers.servers["a"] = DEAD
        for _ in range(5):
            await world.poller.poll_all()
        assert world.usable() == []
        world.servers.servers["a"] = dict(OLLAMA)
        for _ in range(4):
            await world.poller.poll_all()
        assert world.usable() == ["a"]
        rows = world.rows("server_events")
        assert [row["event"] for row in rows] == ["offline", "online"]
        assert "refused" in rows[0]["detail"]
        assert rows[0]["server_id"] == world.fleet.backends()[0][0].id


async def test_models_that_come_and_go_are_told_of(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA | {"/api/ps": ps("x:1")}}, A) as world:
        assert world.events() == [("x:1", "loaded")], "what is there at first sight counts as loaded"
        world.servers.servers["a"]["/api/ps"] = ps("x:1", "y:1")
        await world.poller.poll_all()
        world.servers.servers["a"]["/api/ps"] = ps("y:1")
        await world.poller.poll_all()
        assert world.events() == [("x:1", "loaded"), ("y:1", "loaded"), ("x:1", "unloaded")]
        assert world.rows("model_events")[1]["vram_bytes"] == 5
        assert list(world.fleet.members()[0].loaded_at_s) == ["y:1"]


@pytest.mark.parametrize("broken", [Answer(500), Answer(200, b"oops"), ConnectFailed("refused")])
async def test_a_failed_list_of_models_unloads_nothing(tmp_path: Path, broken: Answer | ConnectFailed) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        events, table = world.events(), world.snapshot.table
        world.servers.servers["a"]["/api/ps"] = broken
        for _ in range(5):
            await world.poller.poll_all()
        assert world.events() == events
        assert world.snapshot.table == table


async def test_a_restart_tells_of_what_happened_meanwhile_and_of_nothing_else(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA | {"/api/ps": ps("x:1", "y:1")}, "B": OLLAMA}, A, B) as world:
        told = world.events()
        times = world.fleet.members()[0].loaded_at_s
    said = {"a": OLLAMA | {"/api/ps": ps("y:1", "z:1")}, "B": OLLAMA}
    async with living(tmp_path, said, A, B) as world:
        assert sorted(world.events()) == sorted([*told, ("x:1", "unloaded"), ("z:1", "loaded")])
        assert world.fleet.members()[0].loaded_at_s["y:1"] == times["y:1"]


async def test_a_new_version_is_told_of_once_also_when_control_was_away(tmp_path: Path) -> None:
    def said(version: str) -> dict[str, Said]:
        return OLLAMA | {"/api/version": Answer(200, b'{"version":"%b"}' % version.encode())}

    def deploys(world: World) -> list[tuple[str, str]]:
        rows = [row for row in world.rows("server_events") if row["event"] == "deploy"]
        return sorted((row["server"], row["detail"]) for row in rows)

    async with living(tmp_path, {"a": said("0.12.3"), "B": OLLAMA}, A, B) as world:
        assert deploys(world) == []
        world.servers.servers["a"] = said("0.13.0")
        for _ in range(2):
            await world.poller.poll_all()
        first = [("a", "Ollama 0.12.3 -> 0.13.0")]
        assert deploys(world) == first
    async with living(tmp_path, {"a": said("0.13.0"), "B": OLLAMA}, A, B) as world:
        assert deploys(world) == first, "a restart of control is no deploy"
    both = [*first, ("a", "Ollama 0.13.0 -> 0.14.0")]
    async with living(tmp_path, {"a": DEAD, "B": OLLAMA}, A, B) as world:
        for _ in range(4):
            await world.poller.poll_all()
        world.servers.servers["a"] = said("0.14.0")
        await world.poller.poll_all()
        assert deploys(world) == both
    moved = [msgspec.structs.replace(A, url="http://127.0.0.1:9999"), B]
    async with living(tmp_path, {"a": said("0.1"), "B": OLLAMA}, *moved) as world:
        assert deploys(world) == both, "another machine is another server"


async def test_a_server_that_says_another_version_each_time_fills_no_list(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        for number in range(20):
            version = Answer(200, b'{"version":"0.%d"}' % number)
            world.servers.servers["a"] = OLLAMA | {"/api/version": version}
            await world.poller.poll_all()
        assert len(world.rows("server_events")) == MOST


async def test_after_a_restart_the_fleet_is_there_before_the_first_poll(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        before = world.snapshot
    silent = dict.fromkeys(OLLAMA, asyncio.Event())
    async with living(tmp_path, {"a": silent}, A, first_poll=False) as world:
        world.fleet.first_seen_s = before.first_seen_s  # control hands it over from its last snapshot
        assert world.snapshot == before


async def test_a_model_keeps_the_moment_it_was_first_seen(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        first = world.snapshot.first_seen_s
        assert set(first) == {route.model for routes in world.snapshot.table.models.values() for route in routes}
        assert world.snapshot.first_seen_s is first
        world.fleet.first_seen_s = {**dict.fromkeys(map(str, range(fleet_module.MAX_FIRST_SEEN)), 1), "phi:latest": 7}
        kept = world.snapshot.first_seen_s
        assert kept["phi:latest"] == 7
        assert set(kept) == set(first), "models long gone made room"


async def test_a_server_that_goes_down_while_control_is_away_is_told_of_as_usual(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A):
        pass
    async with living(tmp_path, {"a": DEAD}, A) as world:
        for _ in range(3):
            await world.poller.poll_all()
        assert [row["event"] for row in world.rows("server_events")] == ["offline"]
        assert world.events().count(("phi:latest", "unloaded")) == 1


async def test_a_reload_keeps_what_is_known_of_unchanged_servers(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA, "B": OLLAMA, "v": OPENAI}, A, B) as world:
        states = dict(world.fleet._fleet.states)
        events = world.events()
        asked = len(world.servers.paths("a"))
        world.configure(msgspec.structs.replace(A, max_concurrent=4), V)
        await world.fleet.reload()
        await world.poller.poll_all()
        table = world.snapshot.table
        assert [routed.backend.name for routed in table.backends] == ["a", "v"]
        assert table.backends[0].backend.max_concurrent == 4
        assert world.fleet._fleet.state("a").resident == states["a"].resident
        assert world.events()[: len(events)] == events
        # Those of B went with it.
        assert [event for event in world.events() if event[0] == "phi:latest"] == [
            ("phi:latest", "loaded"), ("phi:latest", "loaded"), ("phi:latest", "unloaded"),
        ]  # fmt: skip
        assert [row["server"] for row in world.rows("model_events") if row["event"] == "unloaded"] == ["B"]
        assert len(world.servers.paths("a")) == 2 * asked
        assert world.servers.forgotten == ["B"]


async def test_a_whole_fleet_is_replaced_without_a_moment_in_which_nobody_serves(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA, "B": OLLAMA}, A) as world:
        moments: list[list[str]] = []
        world.fleet._changed = lambda: moments.append(world.usable())
        world.configure(B)
        await world.fleet.reload()
        assert moments[-1] == ["B"]
        assert all(moments)


async def test_a_reload_does_not_wait_for_a_newcomer_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "FIRST_LOOK_S", 0.01)
    async with living(tmp_path, {"a": OLLAMA, "B": dict.fromkeys(OLLAMA, asyncio.Event())}, A) as world:
        world.configure(B)
        await world.fleet.reload()
        assert [backend.name for backend, _ in world.fleet.backends()] == ["B"]


async def test_a_server_that_moved_is_a_new_one_under_its_old_number(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        number, column = world.fleet.backends()[0][0].id, world.fleet.backends()[0][0].column
        world.servers.servers["a"] = DEAD
        world.configure(msgspec.structs.replace(A, url="http://10.0.0.9:11434"))
        await world.fleet.reload()
        assert world.usable() == [], "what the old machine said is not true of the new one"
        moved, state = world.fleet.backends()[0]
        assert (moved.id, moved.column, moved.host) == (number, column, "10.0.0.9")
        assert state.resident == ()
        world.servers.servers["a"] = dict(OLLAMA)
        await world.poller.poll_all()
        await world.poller.poll_all()
        assert world.usable() == ["a"]


async def test_a_removed_server_drains_and_then_is_gone(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA, "B": OLLAMA}, A, B) as world:
        column = world.fleet.backends()[0][0].column
        world.board.add(column, 1)
        world.configure(B)
        await world.fleet.reload()
        assert world.usable() == ["B"]
        leaving = [member for member in world.fleet.members() if member.leaving]
        assert [(member.backend.name, member.backend.draining, member.in_flight) for member in leaving] == [
            ("a", True, 1)
        ]
        assert [backend.name for backend, _ in world.fleet.backends()] == ["B"]
        assert "a" not in {entry["_server"] for entry in orjson.loads(world.snapshot.bodies["/api/ps"])["models"]}
        world.fleet.tick()
        assert len(world.fleet.members()) == 2
        world.board.add(column, -1)
        world.fleet.tick()
        assert [member.backend.name for member in world.fleet.members()] == ["B"]
        assert [routed.backend.name for routed in world.snapshot.table.backends] == ["B"]


async def test_a_removed_server_that_hangs_is_let_go_at_the_drain_limit(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        world.board.add(world.fleet.backends()[0][0].column, 1)
        world.configure()
        await world.fleet.reload()
        world.now_s += world.settings.timeouts.drain_s
        world.fleet.tick()
        assert world.fleet.members() == []
        assert world.columns.resting == 1


async def test_a_server_that_comes_back_while_leaving_stays(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        column = world.fleet.backends()[0][0].column
        world.board.add(column, 1)
        world.configure()
        await world.fleet.reload()
        world.configure(A)
        await world.fleet.reload()
        await world.poller.poll_all()
        assert world.usable() == ["a"]
        assert world.fleet.backends()[0][0].column == column
        assert not world.fleet.members()[0].leaving
        assert world.events().count(("phi:latest", "loaded")) == 1


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("then", [(), (Server(name="a", url="http://elsewhere:11434"),)])
async def test_models_of_a_server_that_has_left_or_moved_are_in_its_memory_no_more(
    tmp_path: Path, then: tuple[Server, ...], meanwhile: bool
) -> None:
    """Else their stay would never end in the statistics. `meanwhile`: it left while control was down."""
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        assert ("phi:latest", "loaded") in world.events()
        if not meanwhile:
            world.configure(*then)
            await world.fleet.reload()
            await world.fleet.reload()
            assert world.events().count(("phi:latest", "unloaded")) == 1
    if meanwhile:
        async with living(tmp_path, {"a": OLLAMA}, *then, first_poll=False) as world:
            assert world.events().count(("phi:latest", "unloaded")) == 1
    async with living(tmp_path, {"a": OLLAMA}, *then, first_poll=False) as world:
        assert world.events().count(("phi:latest", "unloaded")) == 1


async def test_servers_and_keys_added_through_the_api_are_taken_in(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA, "v": OPENAI}, A) as world:
        await world.store.write(servers.add, V, NOW)
        user = await world.store.write(users.create_first, "ann", "hash", NOW)
        await world.store.write(keys.create, user.id, "k" * 64, NOW)
        await world.fleet.apply()
        await world.poller.poll_all()
        assert world.usable() == ["a", "v"]
        assert [member.origin for member in world.fleet.members()] == ["file", "api"]
        assert world.snapshot.principals[hashlib.sha256(b"k" * 64).digest()].name == "ann"


async def test_maintenance_and_draining_take_a_server_out_of_routing_and_keep_it_polled(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA, "B": OLLAMA}, A, B) as world:
        first, second = (backend.id for backend, _ in world.fleet.backends())
        await world.store.write(servers.change, first, is_disabled=True)
        await world.store.write(servers.change, second, is_draining=True)
        await world.fleet.apply()
        assert world.usable() == []
        asked = len(world.servers.asked)
        await world.poller.poll_all()
        assert len(world.servers.asked) == asked + 8
        await world.store.write(servers.change, first, is_disabled=False)
        await world.fleet.apply()
        assert world.usable() == ["a"]


async def test_a_server_without_a_usable_address_is_left_out_with_a_reason(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A, Server(name="odd", url="ftp://x")) as world:
        assert world.usable() == ["a"]
        assert "url" in world.fleet.refused["odd"]


async def test_a_fleet_larger_than_the_board_serves_as_many_as_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "COLUMNS", 1)
    async with living(tmp_path, {"a": OLLAMA, "B": OLLAMA}, A, B) as world:
        assert world.usable() == ["a"]
        assert "load board" in world.fleet.refused["B"]


async def test_keys_limits_and_access_follow_the_settings(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A, auth=Auth(api_key="x", admin_key="y")) as world:
        assert len(world.snapshot.principals) == 2
        assert world.snapshot.access.families_required
        assert "box" in world.snapshot.access.hosts
        world.configure(A)
        await world.fleet.reload()
        assert world.snapshot.principals == {}


async def test_a_clock_that_goes_back_does_not_silence_the_polls(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        world.now_s -= 100_000
        world.servers.servers["a"]["/api/ps"] = ps("new:1")
        await world.poller.poll_all()
        assert "new:1" in world.snapshot.table.models


async def test_workers_are_part_of_the_fleet_and_never_polled(tmp_path: Path) -> None:
    async with living(tmp_path, {"a": OLLAMA}, A) as world:
        worker = backend("w", id=77, column=3000, kind="worker", scheme="hub", host="id")
        state = BackendState(online=True, resident=(ResidentModel(name="w:1"),), polled_at_s=1.0)
        world.fleet.welcome([(worker, state)])
        assert world.usable() == ["a", "w"]
        await world.fleet.apply()
        await world.poller.poll_all()
        assert "w:1" in world.snapshot.table.models
        assert world.servers.paths("w") == []
        world.fleet.welcome([])
        assert world.usable() == ["a"]
