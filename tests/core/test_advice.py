from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.advice import (
    GIB,
    Demand,
    Shelf,
    affinities,
    consider_adding,
    consider_removing,
    family_of,
    oversized,
)
from fleetproxy.core.backend import DiskModel
from fleetproxy.core.residency import Stay

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def shelf(server_id: int, *models: str, memory_gb: int | None = 24, size_gb: float = 4) -> Shelf:
    memory = None if memory_gb is None else memory_gb * GIB
    return Shelf(
        server_id, f"gpu{server_id}", memory, tuple(DiskModel(name=m, size_bytes=int(size_gb * GIB)) for m in models)
    )


def stay(server_id: int, model: str, loads: int) -> Stay:
    return Stay(
        server_id=server_id,
        server=f"gpu{server_id}",
        model=model,
        loaded_s=60,
        loads=loads,
        unloads=loads,
        last_seen=NOW,
    )


def test_copies_that_only_churn_should_go() -> None:
    shelves = [shelf(1, "phi", "llama"), shelf(2, "phi")]
    found = consider_removing(
        shelves, [stay(1, "phi", 20), stay(1, "llama", 20), stay(2, "phi", 4)], {(1, "phi"): 2}, {}
    )
    assert [(one.model_name, one.server_name, one.churn_score, one.available_on) for one in found] == [
        ("phi", "gpu1", 18, ("gpu1", "gpu2"))
    ]


def test_copies_that_are_used_stay() -> None:
    shelves = [shelf(1, "phi"), shelf(2, "phi")]
    assert consider_removing(shelves, [stay(1, "phi", 20)], {(1, "phi"): 3}, {}) == []
    assert consider_removing(shelves, [stay(9, "phi", 20), stay(1, "gone", 20)], {}, {}) == []


def test_models_busier_than_their_servers_want_a_copy() -> None:
    shelves = [shelf(1, "phi"), shelf(2)]
    busy = Demand(requests=100, avg_duration_ms=30_000, busiest_minute=5)
    (found,) = consider_adding(shelves, {"phi": busy, "nowhere": busy})
    assert (found.model_name, found.server_name, found.server_id, found.churn_score) == ("phi", "", 0, 2.5)
    assert consider_adding(shelves, {"phi": Demand(9, 30_000, 9)}) == []
    assert consider_adding([shelf(1, "phi"), shelf(2, "phi")], {"phi": busy}) == []
    assert consider_adding(shelves, {"phi": Demand(100, 30_000, 2)}) == []


def test_models_too_large_for_a_server_worst_first() -> None:
    shelves = [
        shelf(1, "a", size_gb=20),
        shelf(2, "b", size_gb=19),
        shelf(3, "c", size_gb=23),
        shelf(4, "d", memory_gb=None),
    ]
    assert [(one.model_name, one.usage_percent, one.server_ram_gb) for one in oversized(shelves)] == [
        ("c", 95.8, 24.0),
        ("a", 83.3, 24.0),
    ]


def test_families_come_from_the_server_else_from_the_name() -> None:
    assert family_of("qwen3-coder:30b", {}) == "qwen3"
    assert family_of("nomic-embed-text", {}) == "nomic"
    assert family_of("Llama3:8b", {"Llama3:8b": "llama"}) == "llama"


def test_services_that_use_a_relative_might_want_the_new_model() -> None:
    use = [("chat", "llama3:8b", 50), ("bot", "llama3.1:8b", 9), ("ocr", "minicpm", 99), ("chat", "llama3.2:3b", 1)]
    found = affinities("llama3.2:3b", {}, use)
    assert [(one.source, one.current_model) for one in found] == [("chat", "llama3:8b")]


@given(
    st.text(max_size=20), st.lists(st.tuples(st.text(max_size=5), st.text(max_size=20), st.integers(0, 9)), max_size=30)
)
def test_nobody_is_told_to_upgrade_to_what_they_use(model: str, use: list[tuple[str, str, int]]) -> None:
    found = affinities(model, {}, use)
    assert all(one.current_model != model for one in found)
    assert len(found) <= 20
