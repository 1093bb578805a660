"""Snapshots for the data plane: numbered upwards for ever, sent soon, only when something is new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.publisher import BLOCK, Publisher, Versions
from fleetproxy.core.table import Access, Snapshot
from fleetproxy.link.framing import LinkError, read_snapshot, write_snapshot


class Plane:
    """Something to make snapshots of, and where they go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pins = 0
        self.sent: list[Snapshot] = []
        self.made = 0
        self.fault: Exception | None = None

    def make(self) -> Snapshot:
        self.made += 1
        if self.fault:
            raise self.fault
        return Snapshot(access=Access(hosts=frozenset({str(self.pins)})))

    def publisher(self) -> Publisher:
        return Publisher(
            self.make,
            self.sent.append,
            path=self.folder / "snapshot",
            versions=self.folder / "version",
            boot="this start",
        )


@pytest.fixture
def plane(tmp_path: Path) -> Plane:
    return Plane(tmp_path)


@asynccontextmanager
async def running(publisher: Publisher) -> AsyncIterator[None]:
    task = asyncio.create_task(publisher.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_changes_that_come_together_make_one_snapshot(plane: Plane) -> None:
    publisher = plane.publisher()
    async with running(publisher):
        for plane.pins in range(100):
            publisher.changed()
            await asyncio.sleep(0)
        await until(lambda: bool(plane.sent))
        assert plane.made == 1
        assert plane.sent == [Snapshot(version=1, boot="this start", access=Access(hosts=frozenset({"99"})))]
        assert publisher.snapshot is plane.sent[0]


async def test_the_file_says_what_was_sent_before_it_is_sent(plane: Plane) -> None:
    publisher = plane.publisher()
    seen: list[Snapshot | None] = []
    publisher._send = lambda _snapshot: seen.append(read_snapshot(plane.folder / "snapshot"))
    publisher.publish()
    assert seen == [publisher.snapshot]


def test_what_says_nothing_new_is_not_sent(plane: Plane) -> None:
    publisher = plane.publisher()
    for _ in range(3):
        publisher.publish()
    assert [snapshot.version for snapshot in plane.sent] == [1]
    assert publisher.counts.unchanged == 2
    plane.pins = 1
    publisher.publish()
    assert [snapshot.version for snapshot in plane.sent] == [1, 2]


@pytest.mark.parametrize("fault", [ValueError("no table"), LinkError("too large")])
async def test_when_no_snapshot_can_be_made_the_last_one_stays_and_the_next_change_tries_again(
    plane: Plane, fault: Exception
) -> None:
    publisher = plane.publisher()
    publisher.publish()
    last = publisher.snapshot
    plane.pins, plane.fault = 1, fault
    async with running(publisher):
        publisher.changed()
        await until(lambda: publisher.counts.failed == 1)
        assert publisher.snapshot is last
        plane.fault = None
        publisher.changed()
        await until(lambda: len(plane.sent) == 2)


def test_a_folder_that_cannot_be_written_does_not_stop_snapshots(plane: Plane) -> None:
    publisher = Publisher(
        plane.make, plane.sent.append, path=Path("/proc/none/snapshot"), versions=Path("/proc/none/version"), boot=""
    )
    publisher.publish()
    plane.pins = 1
    publisher.publish()
    assert [snapshot.version for snapshot in plane.sent] == [1, 2]
    assert publisher.counts.unwritten == 2


def test_versions_grow_over_restarts_whichever_file_is_left(plane: Plane) -> None:
    plane.publisher().publish()
    plane.pins = 1
    again = plane.publisher()
    again.publish()
    second = plane.sent[-1].version
    assert second > 1
    (plane.folder / "version").unlink()
    plane.pins = 2
    plane.publisher().publish()
    third = plane.sent[-1].version
    assert third > second
    (plane.folder / "snapshot").unlink()
    plane.pins = 3
    plane.publisher().publish()
    assert plane.sent[-1].version > third


@pytest.mark.parametrize("damage", ["", "x", "9" * 5000])
def test_a_damaged_number_is_like_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "version"
    path.write_text(damage)
    assert Versions(path, 41).next() == 42


@given(st.lists(st.integers(1, 2 * BLOCK), min_size=1, max_size=5))
def test_no_version_is_given_twice_however_often_control_is_killed(
    tmp_path_factory: pytest.TempPathFactory, lives: list[int]
) -> None:
    path = tmp_path_factory.mktemp("versions") / "version"
    given_out = [versions.next() for life in lives for versions in [Versions(path)] for _ in range(life)]
    assert given_out == sorted(set(given_out))


def test_a_snapshot_of_another_start_still_gives_its_number(plane: Plane) -> None:
    write_snapshot(plane.folder / "snapshot", Snapshot(version=500, boot="another start"))
    plane.publisher().publish()
    assert plane.sent[0].version == 501
