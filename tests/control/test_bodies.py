"""Lists kept over time are the lists made anew."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.bodies import Bodies
from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.families.llm import lists
from tests.control.scripted import backend

NAMES = st.sampled_from(["phi:latest", "qwen:7b", "llama3:8b"])
LISTING = st.lists(NAMES, max_size=3, unique=True).map(
    lambda names: msgspec.Raw(msgspec.json.encode([{"name": name, "id": name} for name in names]))
)
STATE = st.builds(
    BackendState,
    online=st.booleans(),
    version=st.sampled_from([None, "0.14.1", "0.9.0"]),
    raw_ps=LISTING,
    raw_tags=LISTING,
    raw_v1_models=LISTING,
)
FLEET = st.lists(STATE, max_size=3).map(
    lambda states: [(backend(f"s{n}", id=n, port=n + 1), state) for n, state in enumerate(states)]
)


@given(st.lists(st.tuples(FLEET, st.booleans()), max_size=6))
def test_whatever_changes_the_lists_are_those_of_the_fleet_as_it_is(
    moments: list[tuple[list[tuple[Backend, BackendState]], bool]],
) -> None:
    kept = Bodies()
    for fleet, hide in moments:
        shown = lists.shown(fleet)
        bodies, model_bodies = kept.make(fleet, hide_backends=hide)
        assert bodies == lists.bodies(shown, hide_backends=hide)
        assert model_bodies == lists.model_bodies(state.raw_v1_models for _, state in shown)


def test_a_list_is_made_anew_only_when_its_own_part_changed() -> None:
    kept = Bodies()
    state = BackendState(online=True, raw_tags=msgspec.Raw(b'[{"name":"a"}]'), raw_ps=msgspec.Raw(b"[]"))
    first, _ = kept.make([(backend(), state)], hide_backends=False)
    loaded = msgspec.structs.replace(
        state, raw_ps=msgspec.Raw(b'[{"name":"a"}]'), raw_tags=msgspec.Raw(bytes(state.raw_tags))
    )
    second, _ = kept.make([(backend(), loaded)], hide_backends=False)
    assert second["/api/tags"] is first["/api/tags"]
    assert second["/api/ps"] != first["/api/ps"]
