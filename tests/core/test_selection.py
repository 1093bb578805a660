from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from fleetproxy.core.backend import DIALECTS, Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.fleet import Fleet, compile_table
from fleetproxy.core.names import canonical
from fleetproxy.core.operation import Endpoint, Operation
from fleetproxy.core.selection import (
    Candidates,
    Decision,
    Refuse,
    Wait,
    is_full,
    place_of,
    rank,
    renames,
    routes_of,
    speaks,
)
from fleetproxy.core.table import RESIDENT, Route, RoutingTable
from fleetproxy.errors import (
    BadRequest,
    DialectUnspoken,
    Forbidden,
    ModelUnknown,
    NoBackend,
    ServerUnavailable,
    ServerUnknown,
)
from fleetproxy.families.registry import find

MODELS = ("phi", "phi:latest", "llama2:7b-q4_0", "llama2:7b", "org/x")
ASKED = st.sampled_from([*MODELS, "llama2:7b-fp16", "alias", "nobody"])


def endpoint(method: str, path: str) -> Endpoint:
    found = find(method, path)
    assert found is not None
    return found


CHAT, V1_CHAT, MESSAGES = (endpoint("POST", path) for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"))
SHOW, PULL, CREATE = (endpoint("POST", path) for path in ("/api/show", "/api/pull", "/api/create"))
STATUS = endpoint("GET", "/api/status")
ENDPOINTS = st.sampled_from([CHAT, V1_CHAT, MESSAGES, SHOW, PULL, CREATE, STATUS])


class Loads:
    """Loads as dictionaries by column."""

    def __init__(
        self, load: dict[int, int] | None = None, waiting: dict[int, int] | None = None, out: Any = ()
    ) -> None:
        self.loads, self.waits, self.out = load or {}, waiting or {}, frozenset(out)

    def load(self, column: int) -> int:
        return self.loads.get(column, 0)

    def waiting(self, column: int) -> int:
        return self.waits.get(column, 0)

    def tripped(self, column: int) -> bool:
        return column in self.out


IDLE = Loads()


def backend(name: str, column: int, **fields: Any) -> Backend:
    return Backend(name=name, id=column, column=column, **fields)


@st.composite
def tables(draw: st.DrawFn) -> RoutingTable:
    names = draw(st.lists(st.sampled_from(["A", "b", "c", "d"]), unique=True))
    model_lists = st.lists(st.sampled_from(MODELS), max_size=3, unique=True)
    backends, states = [], {}
    for column, name in enumerate(names):
        backends.append(
            backend(
                name,
                column,
                kind=draw(st.sampled_from(["ollama", "openai", "worker"])),
                max_concurrent=draw(st.none() | st.integers(1, 3)),
                vram_bytes=draw(st.none() | st.integers(0, 3)),
                enabled=draw(st.sampled_from([True, True, True, False])),
            )
        )
        states[name] = BackendState(
            online=draw(st.sampled_from([True, True, True, False])),
            resident=tuple(ResidentModel(name=model) for model in draw(model_lists)),
            on_disk=tuple(DiskModel(name=model) for model in draw(model_lists)),
            free_disk_bytes=draw(st.none() | st.integers(0, 3)),
        )
    return compile_table(Fleet(backends=tuple(backends), states=states), {"alias": "phi"})


@st.composite
def load_boards(draw: st.DrawFn) -> Loads:
    columns = range(4)
    return Loads(
        {column: draw(st.integers(0, 3)) for column in columns},
        {column: draw(st.sampled_from([0, 0, 0, 1])) for column in columns},
        draw(st.sets(st.sampled_from(columns), max_size=2)),
    )


def asking(endpoint: Endpoint, model: str | None, **fields: Any) -> Operation:
    name = canonical(model) if model is not None else None
    return Operation(endpoint=endpoint, model=model, canonical=name, **fields)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    chosen = draw(ENDPOINTS)
    return asking(
        chosen,
        draw(st.none() | ASKED) if chosen.has_model else None,
        pin=draw(st.sampled_from([None, None, None, "a", "B", "zz"])),
        affinity=draw(st.sampled_from([None, "me", "you"])),
        allowed=draw(st.none() | st.none() | st.sets(ASKED.map(canonical)).map(frozenset)),
    )


RANDOMS = st.integers(0, 2**32).map(Random)


def routes(decision: Decision) -> tuple[Route, ...]:
    return () if isinstance(decision, Refuse) else decision.routes


def columns(table: RoutingTable, decision: Decision) -> tuple[int, ...]:
    return tuple(table.backends[route.backend].backend.column for route in routes(decision))


def by_model(operation: Operation) -> bool:
    """Plainly by the model's tiers: no pin, no other placement, no restriction."""
    return operation.pin is None and operation.endpoint.placement == "model" and operation.allowed is None


# --- laws ------------------------------------------------------------------------------------------------------------


@given(tables(), operations(), load_boards(), RANDOMS, st.booleans())
def test_only_usable_candidates_that_speak_the_dialect_each_once(
    table: RoutingTable, operation: Operation, loads: Loads, rng: Random, pin_fallback: bool
) -> None:
    decision = rank(table, operation, loads, rng, pin_fallback=pin_fallback)
    chosen = routes(decision)
    assert isinstance(decision, Refuse) == (not chosen)
    assert max(Counter(route.backend for route in chosen).values(), default=1) == 1
    for route in chosen:
        routed = table.backends[route.backend]
        assert routed.usable
        assert operation.endpoint.dialect in DIALECTS[routed.backend.kind]
        assert not (operation.endpoint.path.startswith("/api/") and routed.backend.kind != "ollama")


@given(tables(), operations(), load_boards(), st.integers(0, 99))
def test_same_seed_same_order(table: RoutingTable, operation: Operation, loads: Loads, seed: int) -> None:
    one, other = (rank(table, operation, loads, Random(seed)) for _ in range(2))
    assert repr(one) == repr(other)


@given(tables(), operations(), load_boards(), RANDOMS)
def test_full_servers_are_waited_for_and_never_asked(
    table: RoutingTable, operation: Operation, loads: Loads, rng: Random
) -> None:
    decision = rank(table, operation, loads, rng)
    if not operation.endpoint.generates:
        assert not isinstance(decision, Wait)
        return
    for route in routes(decision):
        assert is_full(table.backends[route.backend].backend, loads) == isinstance(decision, Wait)
    if isinstance(decision, Candidates):
        assert not {route.backend for route in decision.routes} & {route.backend for route in decision.full}
        for route in decision.full:
            routed = table.backends[route.backend]
            assert routed.usable
            assert is_full(routed.backend, loads)
            assert operation.endpoint.dialect in DIALECTS[routed.backend.kind]
            assert operation.allowed is None or canonical(route.model) in operation.allowed
    if isinstance(decision, Wait):
        assert decision.columns == columns(table, decision)


@given(tables(), operations(), load_boards())
def test_more_load_never_ranks_earlier(table: RoutingTable, operation: Operation, loads: Loads) -> None:
    before = routes(rank(table, operation, loads, Random(1)))
    for place, route in enumerate(before):
        column = table.backends[route.backend].backend.column
        busier = Loads({**loads.loads, column: loads.load(column) + 1}, loads.waits, loads.out)
        decision = rank(table, operation, busier, Random(1))
        after = [later.backend for later in routes(decision)]
        if isinstance(decision, Wait) == isinstance(rank(table, operation, loads, Random(1)), Wait):
            assert route.backend not in after or after.index(route.backend) >= place


@given(tables(), operations(), load_boards(), RANDOMS)
def test_a_tripped_server_comes_after_every_other_and_never_instead_of_the_line(
    table: RoutingTable, operation: Operation, loads: Loads, rng: Random
) -> None:
    assume(by_model(operation))
    tripped = [loads.tripped(column) for column in columns(table, rank(table, operation, loads, rng))]
    assert tripped == sorted(tripped)
    listed = [
        table.backends[route.backend].backend
        for route in routes_of(table, operation)
        if speaks(table.backends[route.backend].backend, operation.endpoint.dialect)
    ]
    if listed and tripped[0]:
        assert all(loads.tripped(known.column) for known in listed)


@given(tables(), operations(), load_boards(), RANDOMS)
def test_memory_before_disk_among_equally_sound_servers(
    table: RoutingTable, operation: Operation, loads: Loads, rng: Random
) -> None:
    assume(by_model(operation))
    decision = rank(table, operation, loads, rng)
    tiers = [route.tier for route in routes(decision)]
    keyed = list(zip(map(loads.tripped, columns(table, decision)), tiers, strict=True))
    assert keyed == sorted(keyed)


@given(tables(), operations(), load_boards(), RANDOMS)
def test_a_listed_model_goes_to_servers_that_list_it(
    table: RoutingTable, operation: Operation, loads: Loads, rng: Random
) -> None:
    assume(by_model(operation))
    listed = {
        route
        for route in routes_of(table, operation)
        if speaks(table.backends[route.backend].backend, operation.endpoint.dialect)
    }
    chosen = set(routes(rank(table, operation, loads, rng)))
    if listed:
        assert chosen
        assert chosen <= listed


@given(tables(), st.sampled_from(["me", "you", None]), load_boards(), st.data())
def test_affinity_is_stable_when_an_unrelated_server_leaves(
    table: RoutingTable, caller: str | None, loads: Loads, data: st.DataObject
) -> None:
    operation = asking(CREATE, "new", affinity=caller)
    before = rank(table, operation, IDLE, Random(1))
    assume(isinstance(before, Candidates) and len(table.backends) > 1)
    [route] = routes(before)
    leaver = data.draw(st.sampled_from([i for i in range(len(table.backends)) if i != route.backend]))
    left = tuple(replace(routed, usable=routed.usable and i != leaver) for i, routed in enumerate(table.backends))
    assert rank(replace(table, backends=left), operation, loads, Random(2)) == Candidates((route,), "affinity")


@given(tables(), operations(), load_boards(), RANDOMS, st.booleans())
def test_what_is_not_allowed_is_served_under_no_name(
    table: RoutingTable, operation: Operation, loads: Loads, rng: Random, pin_fallback: bool
) -> None:
    assume(operation.allowed is not None)
    decision = rank(table, operation, loads, rng, pin_fallback=pin_fallback)
    allowed = operation.allowed or frozenset()
    if operation.canonical is not None:
        assert all(canonical(route.model) in allowed for route in routes(decision))
    elif operation.endpoint.has_model:
        assert isinstance(decision, Refuse)
    if isinstance(decision, Wait):
        assert decision.columns == columns(table, decision)


@given(tables(), load_boards(), RANDOMS, ASKED)
def test_a_forbidden_model_and_a_missing_one_look_the_same(
    table: RoutingTable, loads: Loads, rng: Random, model: str
) -> None:
    decision = rank(table, asking(CHAT, model, allowed=frozenset({"other:1"})), loads, rng)
    assert isinstance(decision, Refuse)
    assert type(decision.error) is ModelUnknown
    assert str(decision.error) == str(ModelUnknown(model))


# --- stories ---------------------------------------------------------------------------------------------------------


def fleet_of(**servers: tuple[Backend, str]) -> RoutingTable:
    """Servers with their models: "model" on disk, "+model" in memory too, "!" in front: the server is offline."""
    states = {}
    for known, models in servers.values():
        words = models.lstrip("!").split()
        states[known.name] = BackendState(
            online=not models.startswith("!"),
            resident=tuple(ResidentModel(name=word[1:]) for word in words if word.startswith("+")),
            on_disk=tuple(DiskModel(name=word.lstrip("+")) for word in words),
        )
    return compile_table(Fleet(backends=tuple(known for known, _ in servers.values()), states=states), {"gpt": "phi"})


def names(table: RoutingTable, decision: Decision) -> str:
    return " ".join(table.backends[route.backend].backend.name for route in routes(decision))


@pytest.mark.parametrize(
    ("loads", "kind", "order", "reason"),
    [
        (Loads(), Candidates, "a b c", "model_loaded"),
        (Loads({0: 1}), Candidates, "b a c", "model_loaded"),
        (Loads({0: 2}), Candidates, "b c", "model_loaded"),
        (Loads({0: 2, 1: 4}), Candidates, "c", "model_available_busy_redirect"),
        (Loads({0: 2, 1: 4, 2: 1}), Wait, "a b c", "model_loaded_busy"),
        (Loads({}, {0: 1}), Candidates, "b c", "model_loaded"),
        (Loads({}, {}, {0}), Candidates, "b c a", "model_loaded"),
        (Loads({}, {}, {0, 1}), Candidates, "c a b", "model_available"),
        (Loads({1: 4}, {}, {0}), Candidates, "c a", "model_available_busy_redirect"),
        (Loads({1: 4, 2: 1}, {}, {0}), Wait, "b c", "model_loaded_busy"),
        (Loads({0: 2, 1: 4, 2: 1}, {}, {0, 1, 2}), Wait, "a b c", "model_loaded_busy"),
    ],
)
def test_who_is_asked_first(loads: Loads, kind: type, order: str, reason: str) -> None:
    table = fleet_of(
        a=(backend("a", 0, max_concurrent=2, vram_bytes=9), "+phi"),
        b=(backend("b", 1, max_concurrent=4, vram_bytes=5), "+phi"),
        c=(backend("c", 2, max_concurrent=1, vram_bytes=99), "phi"),
    )
    decision = rank(table, asking(CHAT, "phi"), loads, Random(1))
    assert type(decision) is kind
    assert names(table, decision) == order
    assert not isinstance(decision, Refuse)
    assert decision.reason == reason


def test_loads_compare_by_slots_only_where_all_have_some() -> None:
    def order(first: int | None) -> str:
        table = fleet_of(
            a=(backend("a", 0, max_concurrent=first, vram_bytes=1), "+phi"),
            b=(backend("b", 1, max_concurrent=4, vram_bytes=2), "+phi"),
        )
        return names(table, rank(table, asking(CHAT, "phi"), Loads({0: 1, 1: 3}), Random(1)))

    assert order(3) == "a b"
    assert order(1) == "b"
    assert order(None) == "a b"


def test_full_servers_are_kept_in_mind_for_when_the_free_ones_fail() -> None:
    table = fleet_of(a=(backend("a", 0, max_concurrent=1), "+phi"), b=(backend("b", 1, max_concurrent=1), "+phi"))
    decision = rank(table, asking(CHAT, "phi"), Loads({0: 1}), Random(1))
    assert isinstance(decision, Candidates)
    assert ([route.backend for route in decision.routes], [route.backend for route in decision.full]) == ([1], [0])


def test_equals_are_drawn_at_random() -> None:
    table = fleet_of(a=(backend("a", 0), "+phi"), b=(backend("b", 1), "+phi"))
    rng = Random(7)
    firsts = Counter(names(table, rank(table, asking(CHAT, "phi"), IDLE, rng))[0] for _ in range(200))
    assert set(firsts) == {"a", "b"}
    assert min(firsts.values()) > 50


@pytest.mark.parametrize(
    ("asked", "order", "model", "reason"),
    [
        ("phi", "a", "phi:latest", "model_loaded"),
        ("PHI:latest", "a", "phi:latest", "model_loaded"),
        ("gpt", "a", "phi:latest", "model_loaded"),
        ("llama2:7b-q8_0", "b", "llama2:7b-q4_0", "model_available"),
        ("llama2", "b", "llama2", "fallback_most_vram"),
        ("nobody", "b", "nobody", "fallback_most_vram"),
    ],
)
def test_models_are_found_under_their_names(asked: str, order: str, model: str, reason: str) -> None:
    table = fleet_of(
        a=(backend("a", 0, vram_bytes=1), "+phi:latest"),
        b=(backend("b", 1, vram_bytes=2), "llama2:7b-q4_0"),
        c=(backend("c", 2), "else"),
    )
    decision = rank(table, asking(CHAT, asked), IDLE, Random(1))
    assert names(table, decision) == order
    assert isinstance(decision, Candidates)
    assert (decision.routes[0].model, decision.reason) == (model, reason)


@pytest.mark.parametrize(("models", "reason"), [("+phi", "model_loaded_busy"), ("phi", "model_available_busy")])
def test_a_single_server_that_is_full_is_waited_for(models: str, reason: str) -> None:
    table = fleet_of(a=(backend("a", 5, max_concurrent=1), models))
    decision = rank(table, asking(CHAT, "phi"), Loads({5: 1}), Random(1))
    assert isinstance(decision, Wait)
    assert (decision.columns, decision.reason) == ((5,), reason)
    assert isinstance(rank(table, asking(SHOW, "phi"), Loads({5: 1}), Random(1)), Candidates)


def test_on_disk_servers_that_are_full_are_waited_for_too() -> None:
    table = fleet_of(
        a=(backend("a", 0, max_concurrent=1), "phi"), b=(backend("b", 1, max_concurrent=1, vram_bytes=1), "phi")
    )
    decision = rank(table, asking(CHAT, "phi"), Loads({0: 1, 1: 1}), Random(1))
    assert isinstance(decision, Wait)
    assert (decision.columns, decision.reason) == ((1, 0), "model_available_busy")


def test_stock_workers_are_never_asked_for_what_they_do_not_list() -> None:
    worker = backend("w", 0, kind="worker", scheme="hub", vram_bytes=100)
    alone = rank(fleet_of(w=(worker, "phi")), asking(V1_CHAT, "nobody"), IDLE, Random(1))
    assert isinstance(alone, Refuse)
    assert isinstance(alone.error, ModelUnknown)
    table = fleet_of(w=(worker, "phi"), s=(backend("s", 1, vram_bytes=1), "else"))
    assert names(table, rank(table, asking(V1_CHAT, "nobody"), IDLE, Random(1))) == "s"


def test_an_unlisted_model_waits_for_the_one_server_that_is_asked() -> None:
    table = fleet_of(a=(backend("a", 0, max_concurrent=1), "phi"))
    decision = rank(table, asking(CHAT, "nobody"), Loads({0: 1}), Random(1))
    assert isinstance(decision, Wait)
    assert decision.reason == "fallback_most_vram"


@pytest.mark.parametrize(
    ("models", "operation", "error"),
    [
        ("!phi", asking(CHAT, "phi"), NoBackend),
        ("!phi", asking(CHAT, "other"), NoBackend),
        ("!phi", asking(PULL, "phi"), NoBackend),
        ("!phi", asking(CREATE, "phi"), NoBackend),
        ("!phi", asking(STATUS, None), NoBackend),
        ("phi", asking(CHAT, "phi", pin="b"), ServerUnknown),
        ("!phi", asking(CHAT, "phi", pin="A"), ServerUnavailable),
    ],
)
def test_refusals_say_why(models: str, operation: Operation, error: type) -> None:
    decision = rank(fleet_of(a=(backend("a", 0), models)), operation, IDLE, Random(1))
    assert isinstance(decision, Refuse)
    assert type(decision.error) is error


def test_a_model_of_unavailable_servers_is_no_unknown_model() -> None:
    table = fleet_of(a=(backend("a", 0), "!phi"), b=(backend("b", 1), "other"))
    for operation in (asking(CHAT, "gpt"), asking(CHAT, "phi", allowed=frozenset({"phi:latest"}))):
        decision = rank(table, operation, IDLE, Random(1))
        assert isinstance(decision, Refuse)
        assert type(decision.error) is NoBackend
        assert "offline" in str(decision.error)
        assert decision.error.status == 503


def test_native_paths_never_go_to_openai_servers() -> None:
    table = fleet_of(a=(backend("a", 0, kind="openai"), "+phi"), b=(backend("b", 1), "other"))
    refused = rank(table, asking(CHAT, "phi"), IDLE, Random(1))
    assert isinstance(refused, Refuse)
    assert type(refused.error) is DialectUnspoken
    assert names(table, rank(table, asking(V1_CHAT, "phi"), IDLE, Random(1))) == "a"
    assert names(table, rank(table, asking(MESSAGES, "phi"), IDLE, Random(1))) == "a"
    pinned = rank(table, asking(CHAT, "phi", pin="a"), IDLE, Random(1))
    assert isinstance(pinned, Refuse)
    assert type(pinned.error) is BadRequest
    assert str(pinned.error) == "endpoint /api/chat is not supported on server a"


def test_a_pin_forces_its_server_or_falls_back_aloud() -> None:
    table = fleet_of(
        a=(backend("Big A", 0, max_concurrent=1), "!phi"),
        b=(backend("b", 1, max_concurrent=1), "+PHI:latest"),
    )
    pinned = rank(table, asking(CHAT, "phi", pin="B"), IDLE, Random(1), pin_fallback=True)
    assert pinned == Candidates((Route(1, RESIDENT, "PHI:latest"),), "pinned_by_header")
    busy = rank(table, asking(CHAT, "unheard", pin="b"), Loads({1: 1}), Random(1))
    assert busy == Wait((1,), (Route(1, RESIDENT, "unheard"),), "pinned_by_header")
    for pin in ("big a", "nobody"):
        fallen = rank(table, asking(CHAT, "phi", pin=pin), IDLE, Random(1), pin_fallback=True)
        assert isinstance(fallen, Candidates)
        assert (names(table, fallen), fallen.reason, fallen.pin_ignored) == ("b", "model_loaded", True)
    assert isinstance(rank(table, asking(CHAT, "phi", pin="x"), IDLE, Random(1)), Refuse)
    none = rank(fleet_of(), asking(CHAT, "phi", pin="x"), IDLE, Random(1), pin_fallback=True)
    assert isinstance(none, Refuse)
    assert type(none.error) is NoBackend


def test_a_pull_goes_where_there_is_room() -> None:
    free_disk = {"a": None, "b": 5, "c": 9, "d": None}
    states = {name: BackendState(online=True, free_disk_bytes=free) for name, free in free_disk.items()}
    backends = [backend(name, column, vram_bytes=9 * column) for column, name in enumerate("abcd")]
    table = compile_table(Fleet(backends=tuple(backends), states=states), {})
    assert names(table, rank(table, asking(PULL, "new"), IDLE, Random(1))) == "c b d a"
    assert names(table, rank(table, asking(PULL, "new"), Loads(out={2}), Random(1))) == "b d a c"
    assert names(table, rank(table, asking(PULL, "new", pin="A"), IDLE, Random(1))) == "a"


def test_paths_without_a_model_go_to_the_first_server_that_speaks_them() -> None:
    table = fleet_of(
        a=(backend("a", 0, kind="openai", max_concurrent=1), ""), b=(backend("b", 1, max_concurrent=1), "")
    )
    assert names(table, rank(table, asking(STATUS, None), IDLE, Random(1))) == "b"
    assert names(table, rank(table, asking(V1_CHAT, None), IDLE, Random(1))) == "a b"
    assert names(table, rank(table, asking(V1_CHAT, None), Loads(out={0}), Random(1))) == "b a"
    assert names(table, rank(table, asking(V1_CHAT, None), Loads({0: 1}), Random(1))) == "b"
    full = rank(table, asking(V1_CHAT, None), Loads({0: 1, 1: 1}), Random(1))
    assert isinstance(full, Wait)
    assert full.columns == (0, 1)


def test_keys_for_some_models_get_no_others() -> None:
    table = fleet_of(
        a=(backend("a", 0, max_concurrent=1), "+llama2:7b-q4_0"),
        b=(backend("b", 1, max_concurrent=1), "llama2:7b-fp16"),
    )
    some = frozenset({"llama2:7b-fp16"})
    asked = asking(CHAT, "llama2:7b", allowed=some)
    assert names(table, rank(table, asked, IDLE, Random(1))) == "b"
    waiting = rank(table, asked, Loads({0: 1, 1: 1}), Random(1))
    assert isinstance(waiting, Wait)
    assert waiting.columns == (1,)
    nameless = rank(table, asking(CHAT, None, allowed=some), IDLE, Random(1))
    assert isinstance(nameless, Refuse)
    assert type(nameless.error) is Forbidden
    assert isinstance(rank(table, asking(STATUS, None, allowed=some), IDLE, Random(1)), Candidates)


@pytest.mark.parametrize(
    ("kind", "asked", "served", "renamed"),
    [
        ("ollama", "phi", "phi:latest", False),
        ("ollama", "PHI", "phi:latest", False),
        ("ollama", "gpt", "phi:latest", True),
        ("openai", "phi", "phi", False),
        ("openai", "phi:latest", "phi", True),
        ("worker", "org/x", "Org/X", True),
    ],
)
def test_only_ollama_knows_its_models_by_every_spelling(kind: Any, asked: str, served: str, renamed: bool) -> None:
    assert renames(backend("a", 0, kind=kind), asking(CHAT, asked), Route(0, RESIDENT, served)) is renamed


def test_a_place_is_a_workers_id_or_a_name() -> None:
    table = fleet_of(a=(backend("A", 0), ""), w=(backend("w", 1, kind="worker", scheme="hub", host="id-1"), ""))
    assert [place_of(table, name) for name in ("a", "id-1", "W", "ID-1", "127.0.0.1")] == [0, 1, 1, None, None]
