"""Columns of the load board: one server each, and no reuse while anybody may still count."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from fleetproxy.control import columns as module
from fleetproxy.control.columns import Columns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "columns"


def test_servers_keep_their_columns_and_newcomers_get_new_ones(path: Path) -> None:
    columns = Columns(path, "boot")
    assert columns.assign(["a", "b"]) == {"a": 0, "b": 1}
    assert columns.assign(["b", "c", "b"]) == {"b": 1, "c": 2}
    assert columns.assign(["a", "b", "c"]) == {"a": 3, "b": 1, "c": 2}


def test_a_restarted_control_goes_on_with_the_map_of_this_start(path: Path) -> None:
    first = Columns(path, "boot")
    first.assign(["a", "b", "c"])
    first.assign(["c"])
    first.published(7)
    assert Columns(path, "boot").assign(["c", "d"]) == {"c": 2, "d": 3}
    assert Columns(path, "boot").resting == 2
    assert Columns(path, "next start").assign(["c"]) == {"c": 0}


@pytest.mark.parametrize("damage", [b"", b"\xc1", b"\x80"])
def test_a_damaged_map_is_like_none(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    assert Columns(path, "boot").assign(["a"]) == {"a": 0}


def test_when_all_columns_are_taken_a_server_gets_none_until_one_is_free(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COLUMNS", 2)
    columns = Columns(path, "boot")
    assert columns.assign(["a", "b", "c"]) == {"a": 0, "b": 1}
    assert columns.assign(["b", "c"]) == {"b": 1}
    columns.reclaim(lambda _version: True, lambda _column: 0)
    assert columns.assign(["b", "c"]) == {"b": 1}, "no snapshot without it has been made yet"
    columns.published(3)
    columns.reclaim(lambda version: version < 3, lambda _column: 0)
    assert columns.assign(["b", "c"]) == {"b": 1}, "a process still uses an older snapshot"
    columns.reclaim(lambda _version: True, lambda _column: 1)
    assert columns.assign(["b", "c"]) == {"b": 1}, "somebody still counts there"
    columns.reclaim(lambda _version: True, lambda _column: 0)
    assert columns.assign(["b", "c"]) == {"b": 1, "c": 0}


class Board(RuleBasedStateMachine):
    """Servers come and go, processes lag behind, requests end late, control dies: a column never means two servers."""

    requests = Bundle("requests")

    @initialize(folder=st.uuids())
    def start(self, folder: object) -> None:
        self.path = self.root / str(folder)
        self.columns = Columns(self.path, "boot")
        self.version = 0
        self.published: dict[str, int] = {}
        #: Snapshot each process uses: (version, name -> column).
        self.processes: list[tuple[int, dict[str, int]]] = [(0, {}), (0, {})]
        self.load: dict[int, list[str]] = {}

    @rule(names=st.sets(st.sampled_from("abcdef")))
    def publish(self, names: set[str]) -> None:
        self.published = self.columns.assign(sorted(names))
        self.version += 1
        self.columns.published(self.version)

    @rule(process=st.integers(0, 1))
    def acknowledge(self, process: int) -> None:
        self.processes[process] = (self.version, self.published)

    @rule(target=requests, process=st.integers(0, 1), pick=st.integers(0, 5))
    def begin(self, process: int, pick: int) -> tuple[int, str] | None:
        routes = sorted(self.processes[process][1].items())
        if not routes:
            return None
        name, column = routes[pick % len(routes)]
        self.load.setdefault(column, []).append(name)
        return column, name

    @rule(request=consumes(requests))
    def end(self, request: tuple[int, str] | None) -> None:
        if request is not None:
            self.load[request[0]].remove(request[1])

    @rule()
    def reclaim(self) -> None:
        self.columns.reclaim(
            lambda version: all(used >= version for used, _ in self.processes),
            lambda column: len(self.load.get(column, ())),
        )

    @rule()
    def restart(self) -> None:
        self.columns = Columns(self.path, "boot")

    @invariant()
    def each_column_counts_one_server(self) -> None:
        for names in getattr(self, "load", {}).values():
            assert len(set(names)) <= 1

    @invariant()
    def no_two_servers_share(self) -> None:
        columns = list(getattr(self, "published", {}).values())
        assert len(set(columns)) == len(columns)


def test_a_column_never_counts_two_servers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COLUMNS", 4)
    Board.root = tmp_path  # type: ignore[attr-defined]
    case = Board.TestCase
    case.settings = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    case().runTest()
