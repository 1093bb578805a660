from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import Raw
from msgspec.structs import replace

from fleetproxy.core.backend import Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.fleet import (
    Fleet,
    FleetEvent,
    ModelEvent,
    Observation,
    ServerEvent,
    Thresholds,
    compile_table,
)
from fleetproxy.core.names import canonical
from fleetproxy.core.operation import Endpoint, Operation
from fleetproxy.core.selection import Refuse, rank, routes_of
from fleetproxy.core.table import ON_DISK, RESIDENT, Route, RoutingTable

NAMES = ("a", "b", "c")
MODELS = st.sampled_from(
    ["phi", "phi:latest", "Phi", "llama2:7b-q4_0", "llama2:7b", "llama2:7b-fp16", "org/x", "gpt-oss"]
)
RESIDENTS = st.lists(MODELS, max_size=3, unique=True).map(
    lambda names: tuple(ResidentModel(name=name, size_bytes=9, size_vram_bytes=7) for name in names)
)
DISKS = st.lists(MODELS, max_size=4, unique=True).map(lambda names: tuple(DiskModel(name=name) for name in names))
ALIASES = st.dictionaries(st.sampled_from(["x", "y", "z", "phi"]), st.sampled_from(["x", "y", "z", "phi", "org/x"]))


def backend(name: str, **fields: object) -> Backend:
    return Backend(name=name, id=ord(name[0]), column=ord(name[0]), **fields)  # type: ignore[arg-type]


@st.composite
def backends(draw: st.DrawFn, name: str) -> Backend:
    return backend(
        name,
        enabled=draw(st.sampled_from([True, True, False])),
        draining=draw(st.sampled_from([False, False, True])),
        vram_bytes=draw(st.none() | st.integers(0, 30)),
        kind=draw(st.sampled_from(["ollama", "openai"])),
    )


@st.composite
def states(draw: st.DrawFn) -> BackendState:
    return BackendState(
        online=draw(st.booleans()),
        resident=draw(RESIDENTS),
        on_disk=draw(DISKS),
        free_disk_bytes=draw(st.none() | st.integers(0, 5)),
        polled_at_s=draw(st.none() | st.floats(0, 100)),
    )


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    chosen = draw(st.lists(st.sampled_from(NAMES), unique=True))
    known = draw(st.sets(st.sampled_from(NAMES)))
    return Fleet(
        backends=tuple(draw(backends(name)) for name in chosen),
        states={name: draw(states()) for name in chosen if name in known},
    )


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    return Observation(
        backend=draw(st.sampled_from(NAMES)),
        at_s=draw(st.floats(0, 200)),
        reachable=draw(st.booleans()),
        error=draw(st.none() | st.just("refused")),
        version=draw(st.none() | st.just("0.9.1")),
        resident=draw(st.none() | RESIDENTS),
        on_disk=draw(st.none() | DISKS),
    )


# --- apply -----------------------------------------------------------------------------------------------------------


@given(fleets(), observations())
def test_an_observation_applied_again_changes_nothing(fleet: Fleet, seen: Observation) -> None:
    once, _ = fleet.apply(seen)
    assert once.apply(seen) == (once, ())


@given(fleets(), observations(), observations())
def test_an_older_observation_never_wins(fleet: Fleet, one: Observation, other: Observation) -> None:
    older, newer = sorted((replace(one, backend="a"), replace(other, backend="a")), key=lambda seen: seen.at_s)
    after, _ = fleet.apply(newer)
    assert after.apply(older) == (after, ())


@given(fleets(), observations())
def test_an_unknown_backend_changes_nothing(fleet: Fleet, seen: Observation) -> None:
    assert fleet.apply(replace(seen, backend="nobody")) == (fleet, ())


@given(fleets(), observations())
def test_others_are_left_as_they_were(fleet: Fleet, seen: Observation) -> None:
    after, events = fleet.apply(seen)
    assert after.backends == fleet.backends
    assert {name: state for name, state in after.states.items() if name != seen.backend} == {
        name: state for name, state in fleet.states.items() if name != seen.backend
    }
    assert all(event.backend == seen.backend for event in events)


@given(st.lists(observations(), max_size=12))
def test_events_retell_the_history(history: list[Observation]) -> None:
    """Whoever adds up loaded and unloaded, online and offline, arrives at the state."""
    fleet = Fleet(backends=(backend("a"),))
    told: set[str] | None = None
    online: bool | None = None
    for tick, drawn in enumerate(history, 1):
        seen = replace(drawn, backend="a", at_s=float(tick))
        fleet, events = fleet.apply(seen)
        state = fleet.state("a")
        if told is None:
            assert not any(isinstance(event, ModelEvent) for event in events)
            told = {model.name for model in state.resident} if state.resident_known else None
        if online is None:
            assert not any(isinstance(event, ServerEvent) for event in events)
            online = state.online
        for event in events:
            assert (event.at_s, event.server_id) == (tick, ord("a"))
            match event:
                case ModelEvent(kind="loaded"):
                    assert told is not None
                    assert event.model not in told
                    assert (event.size_bytes, event.vram_bytes) == (9, 7)
                    told.add(event.model)
                case ModelEvent():
                    assert told is not None
                    told.remove(event.model)
                case ServerEvent(kind="deploy"):
                    pass  # told of below
                case ServerEvent():
                    assert event.kind == ("offline" if online else "online")
                    assert event.detail == seen.error
                    online = not online
        assert online == state.online
        assert told is None or told == {model.name for model in state.resident}


def seen(reachable: bool, at_s: float, **fields: object) -> Observation:
    return Observation(backend="a", at_s=at_s, reachable=reachable, **fields)  # type: ignore[arg-type]


def run(fleet: Fleet, polls: str, thresholds: Thresholds = Thresholds()) -> tuple[Fleet, list[FleetEvent]]:
    """Polls as text: "+" reached, "-" not."""
    events: list[FleetEvent] = []
    for tick, poll in enumerate(polls, 1):
        fleet, new = fleet.apply(seen(poll == "+", float(tick)), thresholds)
        events += new
    return fleet, events


@pytest.mark.parametrize(
    ("polls", "online", "kinds"),
    [
        ("+", True, []),
        ("-", False, []),
        ("+--", True, []),
        ("+---", False, ["offline"]),
        ("+--+--+--", True, []),
        ("-+", False, []),
        ("-++", True, ["online"]),
        ("-+-+-+", False, []),
        ("+---+-+", False, ["offline"]),
        ("+---++---++", True, ["offline", "online", "offline", "online"]),
    ],
)
def test_sides_change_after_three_failures_and_two_successes(polls: str, online: bool, kinds: list[str]) -> None:
    fleet, events = run(Fleet(backends=(backend("a"),)), polls)
    assert fleet.state("a").online is online
    assert [event.kind for event in events] == kinds


def test_thresholds_are_an_argument() -> None:
    _, events = run(Fleet(backends=(backend("a"),)), "+-+", Thresholds(offline=1, online=1))
    assert [event.kind for event in events] == ["offline", "online"]


def test_another_version_is_a_deploy_and_an_unknown_one_is_none() -> None:
    told = [
        (True, None), (True, "0.12.3"), (True, None), (True, "0.12.3"), (False, None), (False, None), (False, None),
        (True, "0.12.3"), (True, "0.13.0"), (True, "0.13.0"), (False, None), (False, None), (False, None),
        (True, "0.12.3"),
    ]  # fmt: skip
    for kind, name in (("ollama", "Ollama "), ("openai", "")):
        fleet = Fleet(backends=(backend("a", kind=kind),))
        deploys = []
        for tick, (reachable, version) in enumerate(told, 1):
            fleet, events = fleet.apply(seen(reachable, float(tick), version=version))
            deploys += [(event.at_s, event.detail) for event in events if event.kind == "deploy"]
        assert deploys == [(9.0, f"{name}0.12.3 -> 0.13.0"), (14.0, f"{name}0.13.0 -> 0.12.3")]


def test_a_server_in_maintenance_goes_offline_for_that_reason() -> None:
    _, events = run(Fleet(backends=(backend("a", enabled=False),)), "+---")
    assert [event.detail for event in events if isinstance(event, ServerEvent)] == ["maintenance"]


def test_a_list_not_told_this_time_stands() -> None:
    models = (ResidentModel(name="phi", size_vram_bytes=3),)
    disk = (DiskModel(name="phi"),)
    fleet, _ = Fleet(backends=(backend("a"),)).apply(
        seen(True, 1, resident=models, on_disk=disk, version="0.9", raw_tags=Raw(b"[1]"), free_disk_bytes=5)
    )
    fleet, events = fleet.apply(seen(True, 2, error="/api/ps answered 500"))
    state = fleet.state("a")
    assert events == ()
    assert (state.resident, state.on_disk, state.version, state.free_disk_bytes) == (models, disk, "0.9", 5)
    assert bytes(state.raw_tags) == b"[1]"
    assert state.last_error == "/api/ps answered 500"
    assert state.vram_used_bytes == 3


def test_models_told_for_the_first_time_are_no_news_even_later() -> None:
    fleet, _ = Fleet(backends=(backend("a"),)).apply(seen(True, 1))
    fleet, events = fleet.apply(seen(True, 2, resident=(ResidentModel(name="phi"),)))
    assert events == ()
    _, events = fleet.apply(seen(True, 3, resident=()))
    assert [event.kind for event in events] == ["unloaded"]


def test_what_a_server_held_in_memory_goes_and_comes_with_it() -> None:
    model = (ResidentModel(name="phi"),)
    fleet, _ = Fleet(backends=(backend("a"),)).apply(seen(True, 1, resident=model, raw_ps=Raw(b"[1]")))
    kinds = []
    for tick, reachable in enumerate([False, False, False, True, True], 2):
        fleet, events = fleet.apply(seen(reachable, tick, resident=model if reachable else None))
        kinds.append([event.kind for event in events])
        assert bool(fleet.state("a").resident) == (bytes(fleet.state("a").raw_ps) == b"[1]") or reachable
    assert kinds == [[], [], ["offline", "unloaded"], [], ["online", "loaded"]]


# --- members ---------------------------------------------------------------------------------------------------------


def test_a_backend_keeps_its_state_while_it_stays_where_it_is() -> None:
    fleet, _ = run(Fleet(backends=(backend("a"), backend("b"))), "+")
    again = fleet.of([backend("a", max_concurrent=3), backend("c")])
    assert [known.name for known in again.backends] == ["a", "c"]
    assert again.state("a") == fleet.state("a")
    moved = fleet.of([backend("a", port=1)])
    assert moved.state("a") == BackendState()
    assert moved.of([]).states == {}


# --- compile_table ---------------------------------------------------------------------------------------------------


def all_routes(table: RoutingTable) -> list[tuple[str, tuple[Route, ...]]]:
    return [*table.models.items(), *table.aliases.items(), *table.alias_keys.items()]


@given(fleets(), ALIASES)
def test_every_route_exists_and_is_usable_and_each_backend_stands_once(fleet: Fleet, aliases: dict[str, str]) -> None:
    table = compile_table(fleet, aliases)
    assert len(table.backends) == len(fleet.backends)
    for _, routes in all_routes(table):
        assert routes
        assert len({route.backend for route in routes}) == len(routes)
        assert sorted(routes, key=lambda route: (route.tier, route.backend)) == list(routes)
        for route in routes:
            routed = table.backends[route.backend]
            state = fleet.state(routed.backend.name)
            listed = state.resident if route.tier == RESIDENT else state.on_disk
            assert routed.usable
            assert route.model in {model.name for model in listed}
    for name, routes in table.models.items():
        assert all(canonical(route.model) == name for route in routes)


@given(fleets(), ALIASES)
def test_no_model_is_lost(fleet: Fleet, aliases: dict[str, str]) -> None:
    table = compile_table(fleet, aliases)
    for index, known in enumerate(fleet.backends):
        state = fleet.state(known.name)
        usable = state.online and known.enabled and not known.draining
        assert table.backends[index].usable == usable
        for model in (*state.resident, *state.on_disk):
            name = canonical(model.name)
            if usable:
                assert index in {route.backend for route in table.models[name]}
            else:
                assert name in table.models or name in table.unavailable
    assert not table.unavailable & table.models.keys()


@given(fleets(), ALIASES)
def test_equal_fleets_give_equal_tables(fleet: Fleet, aliases: dict[str, str]) -> None:
    again = Fleet(backends=tuple(fleet.backends), states=dict(reversed(fleet.states.items())))
    assert compile_table(fleet, aliases) == compile_table(again, dict(reversed(aliases.items())))


@given(fleets(), ALIASES)
def test_aliases_end_at_a_model_and_never_loop(fleet: Fleet, aliases: dict[str, str]) -> None:
    table = compile_table(fleet, aliases)
    for alias, routes in table.aliases.items():
        assert routes in table.models.values()
        assert alias in {canonical(name) for name in aliases}
    assert compile_table(fleet, {"x": "y", "y": "x"}).aliases == {}


PHI = BackendState(online=True, on_disk=(DiskModel(name="phi:latest"),))


def test_chains_of_aliases_lead_to_the_first_model_that_is_served() -> None:
    fleet = Fleet(
        backends=(backend("a"), backend("b")), states={"a": PHI, "b": BackendState(on_disk=(DiskModel("q"),))}
    )
    table = compile_table(fleet, {"gpt-4o": "best", "best": "PHI", "old": "q", "q": "phi", "gone": "nowhere"})
    phi = (Route(0, ON_DISK, "phi:latest"),)
    assert table.models == {"phi:latest": phi}
    assert table.aliases == dict.fromkeys(("gpt-4o:latest", "best:latest", "old:latest", "q:latest"), phi)
    assert table.unavailable == {"q:latest"}
    assert compile_table(fleet, {"old": "q"}).unavailable == {"q:latest", "old:latest"}


def test_models_of_one_size_share_an_alias_key_and_memory_comes_before_disk() -> None:
    disk = tuple(DiskModel(name=name) for name in ("llama2:7b-q4_0", "llama2:7b-fp16", "gpt-oss", "phi"))
    fleet = Fleet(
        backends=(backend("a"), backend("b")),
        states={
            "a": BackendState(online=True, on_disk=disk),
            "b": BackendState(online=True, on_disk=disk, resident=(ResidentModel(name="llama2:7b-fp16"),)),
        },
    )
    assert compile_table(fleet, {}).alias_keys == {
        "llama2:7b": (Route(1, RESIDENT, "llama2:7b-fp16"), Route(0, ON_DISK, "llama2:7b-q4_0"))
    }


def test_disk_listed_first_does_not_hide_what_is_in_memory() -> None:
    state = BackendState(
        online=True,
        resident=(ResidentModel(name="llama2:7b-fp16"),),
        on_disk=(DiskModel(name="llama2:7b-q4_0"), DiskModel(name="llama2:7b-fp16")),
    )
    table = compile_table(Fleet(backends=(backend("a"),), states={"a": state}), {})
    assert table.alias_keys["llama2:7b"] == (Route(0, RESIDENT, "llama2:7b-fp16"),)


@pytest.mark.parametrize(("total", "free"), [(None, None), (10, 3), (5, 0)])
def test_free_memory_is_what_is_left_of_a_known_total(total: int | None, free: int | None) -> None:
    state = BackendState(online=True, resident=(ResidentModel(name="m", size_vram_bytes=7),))
    fleet = Fleet(backends=(backend("A", vram_bytes=total),), states={"A": state})
    table = compile_table(fleet, {})
    assert table.backends[0].free_vram_bytes == free
    assert table.pins == {"a": 0}


def test_of_two_servers_with_one_name_the_first_is_pinned() -> None:
    assert compile_table(Fleet(backends=(backend("A"), backend("a"))), {}).pins == {"a": 0}


class NoLoads:
    """Nobody is at work."""

    def load(self, column: int) -> int:
        return 0

    def waiting(self, column: int) -> int:
        return 0

    def tripped(self, column: int) -> bool:
        return False


V1_CHAT = Endpoint(name="x", methods=("POST",), path="/v1/chat/completions", dialect="openai", generates=True)


class FleetHistory(RuleBasedStateMachine):
    """Members come and go, polls come in late and twice; the table always fits the fleet."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.clock = 0.0

    @rule(members=st.lists(st.sampled_from(NAMES), unique=True), port=st.sampled_from([1, 2]))
    def configure(self, members: list[str], port: int) -> None:
        self.fleet = self.fleet.of(backend(name, port=port) for name in members)

    @rule(seen=observations(), late=st.booleans())
    def poll(self, seen: Observation, late: bool) -> None:
        self.clock += 1
        self.fleet, _ = self.fleet.apply(replace(seen, at_s=self.clock - 5 * late))

    @invariant()
    def states_are_of_members(self) -> None:
        assert self.fleet.states.keys() <= {known.name for known in self.fleet.backends}

    @invariant()
    def offline_only_after_failures(self) -> None:
        for state in self.fleet.states.values():
            if not state.online:
                assert state.consecutive_failures or state.consecutive_successes < Thresholds().online

    @invariant()
    def the_table_has_usable_routes_only(self) -> None:
        table = compile_table(self.fleet, {})
        for _, routes in all_routes(table):
            assert all(table.backends[route.backend].usable for route in routes)

    @invariant()
    def whatever_a_usable_server_lists_is_served_by_one_that_lists_it(self) -> None:
        table = compile_table(self.fleet, {"alias": "phi"})
        for asked in ("phi", "Phi:latest", "llama2:7b", "alias", "nobody"):
            operation = Operation(endpoint=V1_CHAT, model=asked, canonical=canonical(asked))
            decision = rank(table, operation, NoLoads(), Random(1))
            listed = {route.backend for route in routes_of(table, operation)}
            if isinstance(decision, Refuse):
                assert not listed
                assert not any(routed.usable for routed in table.backends) or asked != "nobody"
            else:
                assert {route.backend for route in decision.routes} == listed or not listed
                assert all(table.backends[route.backend].usable for route in decision.routes)


TestFleetHistory = FleetHistory.TestCase
