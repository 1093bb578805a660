"""Passive health of one process: who is kept out, when somebody may try again, and what control is told."""

from __future__ import annotations

from fleetproxy.core.backend import Backend
from fleetproxy.core.breaker import State
from fleetproxy.core.table import Limits, RoutedBackend, RoutingTable, Snapshot
from fleetproxy.errors import BackendReset, ConnectFailed, WorkerBusy
from fleetproxy.proxy.trips import Trips

BACKENDS = tuple(Backend(name=name, id=column, column=column) for column, name in enumerate("abc"))
A, B, C = BACKENDS


class Stage:
    """Trips with a clock of its own and a memory of what was told."""

    def __init__(self, *names: Backend) -> None:
        self.now_s = 0.0
        self.told: list[tuple[str, str]] = []
        self.trips = Trips(lambda: self.now_s, lambda: 1000.0 + self.now_s, lambda *seen: self.told.append(seen))
        table = RoutingTable(backends=tuple(RoutedBackend(backend=known, usable=True, online=True) for known in names))
        self.trips.publish(Snapshot(table=table, limits=Limits(eject_failures=2, eject_s=30.0, eject_max_s=100.0)))

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.trips.cool()


def test_failures_in_a_row_keep_a_server_out_and_control_is_told() -> None:
    stage = Stage(A, B)
    stage.trips.failed(A, BackendReset())
    stage.trips.answered(A, 200, [])
    stage.trips.failed(A, BackendReset())
    assert stage.trips.out == frozenset()
    stage.trips.answered(A, 503, [])
    assert stage.trips.out == {A.column}
    assert stage.told == [("a", "backend_reset"), ("a", "backend_reset"), ("a", "ejected")]


def test_one_request_probes_a_server_whose_time_is_over() -> None:
    stage = Stage(A, B)
    for _ in range(2):
        stage.trips.failed(A, ConnectFailed())
    stage.trips.probing(A.column)
    assert stage.trips.states() == {A.column: State.OPEN}
    stage.wait(30.0)
    assert stage.trips.out == frozenset()
    stage.trips.probing(A.column)
    assert stage.trips.out == {A.column}
    stage.trips.probing(B.column)
    assert stage.trips.out == {A.column}
    stage.trips.answered(A, 200, [])
    assert stage.trips.out == frozenset()
    assert stage.told[-1] == ("a", "recovered")


def test_a_probe_that_fails_keeps_it_out_twice_as_long_and_one_that_says_nothing_is_repeated() -> None:
    stage = Stage(A, B)
    for _ in range(2):
        stage.trips.failed(A, ConnectFailed())
    stage.wait(30.0)
    stage.trips.probing(A.column)
    stage.wait(1.0)  # its caller left: nothing was learnt
    assert stage.trips.out == frozenset()
    stage.trips.probing(A.column)
    stage.trips.failed(A, ConnectFailed())
    stage.wait(59.0)
    assert stage.trips.out == {A.column}
    stage.wait(1.0)
    assert stage.trips.out == frozenset()


def test_somebody_is_always_left_to_ask() -> None:
    stage = Stage(A, B)
    for known in (A, B):
        for _ in range(2):
            stage.trips.failed(known, ConnectFailed())
    assert stage.trips.out == frozenset()
    assert stage.trips.states() == {A.column: State.OPEN, B.column: State.OPEN}


def test_servers_that_are_gone_are_forgotten() -> None:
    stage = Stage(A, B, C)
    for _ in range(2):
        stage.trips.failed(A, ConnectFailed())
    table = RoutingTable(backends=(RoutedBackend(backend=B, usable=True, online=True),))
    stage.trips.publish(Snapshot(table=table))
    assert stage.trips.states() == {}
    assert stage.trips.out == frozenset()


def test_a_server_that_asks_for_time_gets_it_up_to_a_minute() -> None:
    stage = Stage(A, B)
    stage.trips.answered(A, 429, [(b"retry-after", b"100000")])
    assert stage.trips.out == {A.column}
    stage.wait(60.0)
    assert stage.trips.out == frozenset()
    for value in (b"soon", b"-1"):
        stage.trips.answered(B, 429, [(b"retry-after", value)])
    assert stage.trips.out == frozenset()


def test_a_worker_without_room_is_none_the_worse() -> None:
    stage = Stage(A, B)
    for _ in range(5):
        stage.trips.failed(A, WorkerBusy())
    assert stage.trips.out == frozenset()
    assert stage.told == []
