from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.backend import Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.explain import explain
from fleetproxy.core.fleet import Fleet, compile_table
from fleetproxy.core.names import canonical
from fleetproxy.core.operation import Operation
from fleetproxy.core.selection import Refuse, Wait, rank
from fleetproxy.core.table import RoutingTable
from fleetproxy.families.registry import find


class Loads:
    def __init__(self, load: dict[int, int], waiting: dict[int, int], out: set[int]) -> None:
        self._load, self._waiting, self._out = load, waiting, out

    def load(self, column: int) -> int:
        return self._load.get(column, 0)

    def waiting(self, column: int) -> int:
        return self._waiting.get(column, 0)

    def tripped(self, column: int) -> bool:
        return column in self._out


def asking(model: str | None, path: str = "/api/chat", **fields: Any) -> Operation:
    endpoint = find("GET" if path == "/api/status" else "POST", path)
    assert endpoint is not None
    return Operation(
        endpoint=endpoint, model=model, canonical=canonical(model) if model is not None else None, **fields
    )


SERVERS: dict[str, tuple[dict[str, Any], BackendState]] = {
    "warm": ({"max_concurrent": 2, "vram_bytes": 9}, BackendState(online=True, resident=(ResidentModel(name="phi"),))),
    "cold": ({"max_concurrent": 1}, BackendState(online=True, on_disk=(DiskModel(name="phi:latest"),))),
    "other": ({"vram_bytes": 5}, BackendState(online=True, on_disk=(DiskModel(name="qwen"),))),
    "vllm": ({"kind": "openai"}, BackendState(online=True, resident=(ResidentModel(name="org/x"),))),
    "down": ({}, BackendState(on_disk=(DiskModel(name="phi"),))),
    "resting": ({"enabled": False}, BackendState(online=True, on_disk=(DiskModel(name="phi"),))),
}


def table_of(names: list[str]) -> RoutingTable:
    backends = tuple(
        Backend(name=name, id=number, column=number, **SERVERS[name][0]) for number, name in enumerate(names)
    )
    return compile_table(Fleet(backends=backends, states={name: SERVERS[name][1] for name in names}), {})


ALL = table_of(list(SERVERS))
OPERATIONS = st.builds(
    asking,
    st.sampled_from([None, "phi", "qwen", "org/x", "nobody"]),
    st.sampled_from(["/api/chat", "/v1/chat/completions", "/api/pull", "/api/create", "/api/status", "/api/show"]),
    pin=st.sampled_from([None, None, "WARM", "down", "nobody"]),
    allowed=st.sampled_from([None, None, frozenset({"phi:latest"}), frozenset({"none"})]),
)
LOADS = st.builds(
    Loads,
    st.dictionaries(st.integers(0, 5), st.integers(0, 3)),
    st.dictionaries(st.integers(0, 5), st.integers(0, 1)),
    st.sets(st.integers(0, 5), max_size=3),
)


@given(st.lists(st.sampled_from(list(SERVERS)), unique=True), OPERATIONS, LOADS, st.integers(0, 99), st.booleans())
def test_an_explanation_tells_the_decision_and_every_server_once(
    names: list[str], operation: Operation, loads: Loads, seed: int, pin_fallback: bool
) -> None:
    table = table_of(names)
    decision = rank(table, operation, loads, Random(seed), pin_fallback=pin_fallback)
    told = explain(table, operation, loads, Random(seed), pin_fallback=pin_fallback)
    assert sorted(one.backend for one in told.considered) == sorted(names)
    placed = [one for one in told.considered if one.place is not None]
    assert told.considered[: len(placed)] == tuple(placed)
    assert [one.place for one in placed] == list(range(1, len(placed) + 1))
    if isinstance(decision, Refuse):
        assert (told.outcome, told.reason, told.message) == ("refuse", decision.error.code, str(decision.error))
        assert not placed
    else:
        assert told.outcome == ("wait" if isinstance(decision, Wait) else "candidates")
        assert (told.reason, told.pin_ignored) == (decision.reason, decision.pin_ignored)
        assert [one.backend for one in placed] == [table.backends[r.backend].backend.name for r in decision.routes]
        expected = ["waited_for"] * len(placed) if told.outcome == "wait" else ["chosen", *["next"] * (len(placed) - 1)]
        assert [one.verdict for one in placed] == expected
    for one in told.considered[len(placed) :]:
        assert one.verdict not in ("chosen", "next", "waited_for")
        assert (one.verdict == "offline") == (one.backend == "down")
        assert (one.verdict == "maintenance") == (one.backend == "resting")


IDLE = Loads({}, {}, set())


def verdicts(operation: Operation, loads: Loads = IDLE) -> dict[str, str]:
    return {one.backend: one.verdict for one in explain(ALL, operation, loads, Random(1)).considered}


@pytest.mark.parametrize(
    ("operation", "loads", "told"),
    [
        (asking("phi"), IDLE, "warm chosen cold next other model_missing vllm dialect"),
        (asking("phi"), Loads({0: 2}, {}, set()), "cold chosen warm full other model_missing vllm dialect"),
        (asking("phi"), Loads({1: 1}, {}, {0}), "cold waited_for warm tripped other model_missing vllm dialect"),
        (
            asking("phi"),
            Loads({0: 2, 1: 1}, {}, set()),
            "warm waited_for cold waited_for other model_missing vllm dialect",
        ),
        (asking("phi", pin="cold"), IDLE, "cold chosen warm not_pinned other not_pinned vllm not_pinned"),
        (asking("phi", pin="vllm"), IDLE, "warm not_pinned cold not_pinned other not_pinned vllm dialect"),
        (asking("phi", pin="nowhere"), IDLE, "warm not_pinned cold not_pinned other not_pinned vllm not_pinned"),
        (asking("nobody"), IDLE, "warm chosen cold not_preferred other not_preferred vllm dialect"),
        (
            asking("org/x", "/v1/chat/completions"),
            IDLE,
            "vllm chosen warm model_missing cold model_missing other model_missing",
        ),
        (
            asking("phi", allowed=frozenset({"x"})),
            IDLE,
            "warm not_allowed cold not_allowed other model_missing vllm dialect",
        ),
        (asking(None, "/api/status"), IDLE, "warm chosen cold next other next vllm dialect"),
    ],
)
def test_who_lost_and_why(operation: Operation, loads: Loads, told: str) -> None:
    words = iter(told.split())
    expected = dict(zip(words, words, strict=True)) | {"down": "offline", "resting": "maintenance"}
    assert verdicts(operation, loads) == expected


def test_servers_are_shown_as_they_stood() -> None:
    told = explain(ALL, asking("phi"), Loads({0: 1}, {0: 0, 1: 2}, {2}), Random(1))
    by_name = {one.backend: one for one in told.considered}
    warm, cold, other = by_name["warm"], by_name["cold"], by_name["other"]
    assert (warm.tier, warm.model, warm.in_flight, warm.slots, warm.free_vram_bytes) == ("resident", "phi", 1, 2, 9)
    assert (cold.tier, cold.model, cold.waiting) == ("on_disk", "phi:latest", 2)
    assert (other.tier, other.model, other.tripped) == ("not_listed", None, True)
