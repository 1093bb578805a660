from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from fleetproxy.core.backend import Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.fleet import Fleet, compile_table
from fleetproxy.core.presence import with_workers
from fleetproxy.core.table import RoutingTable
from fleetproxy.core.worker import Host, Offer, Worker, backend_of, state_of

MODELS = ("a:1", "b:latest", "c:7b-q4", "c:7b-q8")


@st.composite
def worker_sets(draw: st.DrawFn) -> list[Worker]:
    numbers = draw(st.lists(st.integers(0, 4), unique=True, max_size=4))
    return [
        Worker(
            id=f"w{number}",
            name=f"worker-{number}",
            column=2048 + number,
            offer=Offer(
                models=tuple(draw(st.lists(st.sampled_from(MODELS), unique=True))),
                max_concurrency=draw(st.integers(0, 2)),
                host=Host(backend_family=draw(st.sampled_from(["ollama", "vllm"]))),
            ),
        )
        for number in numbers
    ]


@st.composite
def server_fleets(draw: st.DrawFn) -> Fleet:
    count = draw(st.integers(0, 3))
    backends = tuple(Backend(name=f"server-{n}", id=n, column=n) for n in range(count))
    lists = st.lists(st.sampled_from(MODELS), unique=True)
    states = {
        backend.name: BackendState(
            online=draw(st.booleans()),
            resident=tuple(ResidentModel(name=name) for name in draw(lists)),
            on_disk=tuple(DiskModel(name=name) for name in draw(lists)),
            polled_at_s=1.0,
        )
        for backend in backends
    }
    return Fleet(backends=backends, states=states)


def joined(fleet: Fleet, workers: list[Worker]) -> Fleet:
    return Fleet(
        backends=fleet.backends + tuple(backend_of(worker) for worker in workers),
        states=fleet.states | {worker.name: state_of(worker) for worker in workers},
    )


def by_name(table: RoutingTable) -> dict[str, set[tuple[str, int, str]]]:
    return {
        name: {(table.backends[route.backend].backend.name, route.tier, route.model) for route in routes}
        for name, routes in (table.models | table.aliases).items()
    }


@given(server_fleets(), worker_sets())
def test_it_is_the_table_control_would_have_compiled(fleet: Fleet, workers: list[Worker]) -> None:
    ours = with_workers(compile_table(fleet, {}), workers)
    ordered = sorted(workers, key=lambda worker: worker.column)
    assert ours == compile_table(joined(fleet, ordered), {})


@given(server_fleets(), worker_sets(), worker_sets())
def test_whatever_the_snapshot_knew_only_those_present_are_routed_to(
    fleet: Fleet, known: list[Worker], present: list[Worker]
) -> None:
    table = with_workers(compile_table(joined(fleet, known), {"alias": "a:1"}), present)
    ids = {worker.id for worker in present if worker.offer.slots}
    for routes in (*table.models.values(), *table.aliases.values(), *table.alias_keys.values()):
        assert routes
        for route in routes:
            routed = table.backends[route.backend]
            assert routed.usable
            assert routed.backend.scheme != "hub" or routed.backend.host in ids
    fresh = with_workers(compile_table(fleet, {}), present)
    assert {name: routes for name, routes in by_name(table).items() if name != "alias:latest"} == by_name(fresh)
    assert not table.unavailable & table.models.keys()
    everything = {model for worker in known for model in worker.offer.models}
    for name in compile_table(joined(fleet, known), {}).models:
        assert name in table.models or name in table.unavailable, everything


@given(server_fleets(), worker_sets())
def test_it_changes_nothing_the_second_time(fleet: Fleet, workers: list[Worker]) -> None:
    once = with_workers(compile_table(fleet, {}), workers)
    assert with_workers(once, workers) == once


@given(server_fleets())
def test_without_workers_it_is_the_very_same_table(fleet: Fleet) -> None:
    table = compile_table(fleet, {})
    assert with_workers(table, ()) is table


@given(worker_sets())
def test_workers_of_other_families_do_not_come_in(workers: list[Worker]) -> None:
    table = compile_table(Fleet(), {})
    assert with_workers(table, workers, ("asr",)) is table


def test_an_alias_reaches_a_worker_that_has_its_model() -> None:
    server = Backend(name="s", id=1, column=0)
    state = BackendState(online=True, on_disk=(DiskModel(name="a:1"),))
    table = compile_table(Fleet(backends=(server,), states={"s": state}), {"gpt": "a:1"})
    worker = Worker(id="w", name="w", column=2048, offer=Offer(models=("a:1",), max_concurrency=1))
    merged = with_workers(table, [worker])
    assert [merged.backends[route.backend].backend.name for route in merged.aliases["gpt:latest"]] == ["w", "s"]


def test_every_worker_can_be_pinned_and_a_server_keeps_its_name() -> None:
    server = Backend(name="Box", id=1, column=0)
    table = compile_table(Fleet(backends=(server,)), {})
    workers = [Worker(id="w", name="box", column=2048), Worker(id="x", name="other", column=2049)]
    merged = with_workers(table, workers)
    assert merged.backends[merged.pins["box"]].backend.name == "Box"
    assert merged.backends[merged.pins["other"]].backend.host == "x"


@given(worker_sets())
def test_several_families_come_in_together_as_one_alone_would(workers: list[Worker]) -> None:
    table = compile_table(Fleet(), {})
    speaking = [structs.replace(worker, family="asr") for worker in workers]
    both, alone = with_workers(table, speaking, ("llm", "asr")), with_workers(table, workers)
    assert (both.models, both.alias_keys, both.unavailable) == (alone.models, alone.alias_keys, alone.unavailable)
