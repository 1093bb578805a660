"""States of servers over restarts of control."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from fleetproxy.control.last_states import REFRESH_S, LastStates
from fleetproxy.core.backend import BackendState, DiskModel, ResidentModel
from tests.control.scripted import backend

STATE = BackendState(
    online=True,
    version="0.14.1",
    resident=(ResidentModel(name="phi:latest", size_vram_bytes=5),),
    on_disk=(DiskModel(name="phi:latest"), DiskModel(name="é/ü:1b")),
    raw_ps=msgspec.Raw(b'[{"name":"phi:latest", "x":1.50}]'),
    raw_tags=msgspec.Raw(b"[]"),
    polled_at_s=1000.0,
    consecutive_successes=7,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "servers"


def test_a_state_comes_back_as_it_was_and_the_key_is_not_kept(folder: Path) -> None:
    gpu = backend(api_key="s3cret")
    LastStates(folder).write(gpu, STATE, {"phi:latest": 900.0})
    last = LastStates(folder).read(gpu, 1001.0)
    assert last is not None
    assert last.state == STATE
    assert last.loaded_at_s == {"phi:latest": 900.0}
    file = next(folder.iterdir())
    assert b"s3cret" not in file.read_bytes()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "change", [{"port": 9}, {"host": "10.0.0.9"}, {"kind": "openai"}, {"name": "other"}, {"id": 2}]
)
def test_the_state_of_another_server_is_not_taken(folder: Path, change: dict[str, object]) -> None:
    states = LastStates(folder)
    states.write(backend(), STATE, {})
    assert states.read(backend(**change), 1001.0) is None
    assert states.read(backend(max_concurrent=4, enabled=False, column=9, api_key="new"), 1001.0) is not None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"[" * 10_000])
def test_a_damaged_file_is_like_none(folder: Path, damage: bytes) -> None:
    LastStates(folder).write(backend(), STATE, {})
    next(folder.iterdir()).write_bytes(damage)
    assert LastStates(folder).read(backend(), 1001.0) is None


def test_a_clock_that_was_set_back_does_not_make_new_polls_look_old(folder: Path) -> None:
    states = LastStates(folder)
    states.write(backend(), STATE, {})
    last = states.read(backend(), 400.0)
    assert last is not None
    assert last.state.polled_at_s == 400.0


def test_polls_that_find_nothing_new_are_not_written_until_the_file_is_old(folder: Path) -> None:
    states = LastStates(folder)

    def poll(at_s: float, **changes: object) -> float | None:
        states.write(backend(), msgspec.structs.replace(STATE, polled_at_s=at_s, **changes), {})
        last = LastStates(folder).read(backend(), 1e12)
        return last.state.polled_at_s if last else None

    assert poll(1000.0) == 1000.0
    assert poll(1010.0, consecutive_successes=8, last_error="slow") == 1000.0
    assert poll(1020.0, online=False) == 1020.0
    assert poll(1030.0, online=False) == 1020.0
    assert poll(1020.0 + REFRESH_S, online=False) == 1020.0 + REFRESH_S


def test_servers_that_left_are_forgotten(folder: Path) -> None:
    states = LastStates(folder)
    assert states.departed([]) == []
    for number in (1, 2):
        states.write(backend(id=number), STATE, {"phi:latest": 900.0 + number})
    (gone,) = states.departed([backend(id=2)])
    assert (gone.backend.id, gone.loaded_at_s) == (1, {"phi:latest": 901.0})
    assert states.departed([backend(id=2)]) == []
    assert states.read(backend(id=1), 1e12) is None
    assert states.read(backend(id=2), 1e12) is not None
    states.write(backend(id=1), STATE, {})
    assert states.read(backend(id=1), 1e12) is not None


@pytest.mark.parametrize("restarted", [False, True])
def test_a_server_that_moved_has_left_where_it_was(folder: Path, restarted: bool) -> None:
    states = LastStates(folder)
    states.write(backend(), STATE, {"phi:latest": 900.0})
    states = LastStates(folder) if restarted else states
    assert states.departed([backend(max_concurrent=4)]) == []
    assert [one.backend.host for one in states.departed([backend(host="10.0.0.9")])] == [backend().host]
    assert states.departed([backend(host="10.0.0.9")]) == []
    assert states.read(backend(), 1e12) is None


def test_a_full_disk_is_counted_and_costs_nothing_else() -> None:
    states = LastStates(Path("/proc/none"))
    states.write(backend(), STATE, {})
    states.write(backend(), STATE, {})
    assert states.failed == 2
