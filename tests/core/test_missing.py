from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.backend import Backend, BackendState, DiskModel, ResidentModel
from fleetproxy.core.fleet import Fleet, compile_table
from fleetproxy.core.missing import MAX_NAMES, model_unknown, near, pull_recommendation
from fleetproxy.core.names import canonical
from fleetproxy.core.operation import Operation
from fleetproxy.core.table import Route, RoutingTable
from fleetproxy.families.registry import find

GIB = 1024**3


def asking(model: str | None, path: str = "/api/chat", allowed: frozenset[str] | None = None) -> Operation:
    endpoint = find("POST", path)
    assert endpoint is not None
    name = canonical(model) if model is not None else None
    return Operation(endpoint=endpoint, model=model, canonical=name, allowed=allowed)


def fleet(**servers: dict[str, Any]) -> RoutingTable:
    backends = tuple(Backend(name=name, id=1, column=1, **fields) for name, fields in servers.items())
    state = BackendState(
        online=True,
        resident=(ResidentModel(name="phi:3b", size_vram_bytes=2 * GIB),),
        on_disk=(DiskModel(name="llama3.1:8b"), DiskModel(name="mistral")),
    )
    return compile_table(Fleet(backends=backends, states={known.name: state for known in backends}), {})


def test_names_like_the_one_asked_are_suggested() -> None:
    table = fleet(a={})
    assert near(table, asking("llama3:8b")) == ("llama3.1:8b",)
    assert near(table, asking("mistrall")) == ("mistral",)
    assert near(table, asking("qwen")) == ()
    assert near(table, asking(None)) == ()
    assert near(table, asking("llama3:8b", allowed=frozenset({"mistral:latest"}))) == ()


@given(st.text(max_size=20), st.frozensets(st.sampled_from(["phi:3b", "llama3.1:8b", "mistral:latest"])))
def test_only_models_the_caller_may_use_are_named(model: str, allowed: frozenset[str]) -> None:
    assert {canonical(name) for name in near(fleet(a={}), asking(model, allowed=allowed))} <= allowed


def test_a_fleet_of_very_many_models_gets_no_suggestions() -> None:
    table = RoutingTable(models={f"m{number}:latest": (Route(0, 0, "m"),) for number in range(MAX_NAMES + 1)})
    assert near(table, asking("m1")) == ()


@pytest.mark.parametrize("hide", [True, False])
def test_an_unknown_model_says_where_it_could_be_pulled_to(hide: bool) -> None:
    table = fleet(
        small={"vram_bytes": 8 * GIB},
        big={"vram_bytes": 24 * GIB, "host": "10.0.0.2"},
        tiny={"vram_bytes": 4 * GIB},
        unknown={},
        maintenance={"vram_bytes": 99 * GIB, "enabled": False},
        vllm={"vram_bytes": 99 * GIB, "kind": "openai"},
    )
    error = model_unknown(table, asking("Qwen:7b"), hide_backends=hide)
    assert str(error) == "model 'Qwen:7b' not found on any available server"
    assert error.details["hint"] == 'To download this model, POST /api/pull with {"model": "Qwen:7b"}'
    if hide:
        assert "pull_recommendation" not in error.details
    else:
        assert error.details["pull_recommendation"] == {
            "serverName": "big",
            "serverHost": "10.0.0.2:11434",
            "totalRamGb": 24.0,
            "freeVramGb": 22.0,
            "loadedModels": ["phi:3b"],
            "reason": "Most free VRAM (22 GB of 24 GB)",
        }


def test_other_dialects_and_fleets_without_known_memory_recommend_nothing() -> None:
    assert model_unknown(fleet(a={"vram_bytes": GIB}), asking("x", "/v1/chat/completions")).details == {}
    assert pull_recommendation(fleet(a={})) is None
    assert pull_recommendation(RoutingTable()) is None


def test_the_text_names_what_is_near() -> None:
    assert str(model_unknown(fleet(a={}), asking("llama3:8b"))) == (
        "model 'llama3:8b' not found on any available server; did you mean llama3.1:8b?"
    )
