"""nfrx's surface: which paths there are, its lists, its words."""

from __future__ import annotations

import json
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy import errors
from fleetproxy.core.backend import Backend, BackendState, DiskModel
from fleetproxy.core.fleet import Fleet, compile_table
from fleetproxy.core.table import RoutingTable
from fleetproxy.core.worker import Offer, Worker, backend_of, state_of
from fleetproxy.families import registry
from fleetproxy.families.llm import errors as dialect_errors
from fleetproxy.families.llm import nfrx

POSTS = ["chat/completions", "completions", "responses", "embeddings"]


@pytest.mark.parametrize("prefix", ["/api/llm", "/api/llm/id/w1", "/api/llm/id/gpu%201"])
@pytest.mark.parametrize("path", POSTS)
def test_every_post_is_asked_at_the_plain_path(prefix: str, path: str) -> None:
    endpoint = registry.find("POST", f"{prefix}/v1/{path}")
    assert endpoint is not None
    plain = registry.find("POST", f"/v1/{path}")
    assert plain is not None
    assert endpoint.forward == plain.path.encode()
    assert endpoint.pinned == ("/id/" in prefix)
    same = ("dialect", "shape", "has_model", "generates", "marker_stream", "patient", "read", "write", "model_keys")
    assert [getattr(endpoint, field) for field in same] == [getattr(plain, field) for field in same]
    assert (endpoint.surface, endpoint.voice, endpoint.family) == ("family", "nfrx", "llm")


def test_other_paths_of_the_family_are_nobodys() -> None:
    for path in ("/api/llm/v1/files", "/api/llm", "/api/llm/v1", "/api/llm/id/w1", "/api/llm/id//v1/models"):
        assert registry.find("POST", path) is None
    assert registry.find("PUT", "/api/llm/v1/models") is None
    assert set(registry.methods("/api/llm/v1/models")) == {"GET", "HEAD"}
    assert registry.methods("/api/llm/id/w/v1/responses") == ("POST",)
    assert registry.methods("/v1/models") == registry.methods("/nothing") == ()


@given(st.text(min_size=1, max_size=20).filter(lambda name: "/" not in name))
def test_a_worker_is_found_in_its_path_however_it_is_written(name: str) -> None:
    name = name.encode("utf-8", "replace").decode()
    path = f"/api/llm/id/{quote(name, safe='')}/v1/models"
    assert registry.find("GET", path) is not None
    assert nfrx.worker_of(path) == name


def table_of(**models: tuple[str, ...]) -> RoutingTable:
    """Backends by name, with the models each lists."""
    backends = tuple(Backend(name=name, id=place, column=place) for place, name in enumerate(models))
    states = {name: BackendState(online=True, on_disk=tuple(map(DiskModel, listed))) for name, listed in models.items()}
    return compile_table(Fleet(backends=backends, states=states), {})


def test_models_are_listed_once_with_all_who_have_them() -> None:
    table = table_of(Beta=("m1", "m3"), Alpha=("m1", "m2"))
    listed = nfrx.entries(table, {"m1": 5, "m2": 6}, 9)
    assert json.loads(nfrx.body(listed)) == {
        "object": "list",
        "data": [
            {"id": "m1", "object": "model", "created": 5, "owned_by": "Alpha,Beta"},
            {"id": "m2", "object": "model", "created": 6, "owned_by": "Alpha"},
            {"id": "m3", "object": "model", "created": 9, "owned_by": "Beta"},
        ],
    }
    assert list(nfrx.entries(table, {}, 9, only=0)) == ["m1", "m3"]
    assert {json.loads(entry)["owned_by"] for entry in nfrx.entries(table, {}, 9, hide_backends=True).values()} == {
        "fleetproxy"
    }


def test_nobody_there_is_an_empty_list() -> None:
    assert nfrx.body(nfrx.entries(RoutingTable(), {}, 9)) == b'{"object":"list","data":[]}'


def test_a_stock_workers_models_are_on_the_main_list_too() -> None:
    worker = Worker(
        id="w1", name="gpu", column=1, offer=Offer(models=("a", "b"), max_concurrency=1), connected_at_s=7.5
    )
    assert msgspec.json.decode(state_of(worker).raw_v1_models) == [
        {"id": name, "object": "model", "created": 7, "owned_by": "gpu"} for name in ("a", "b")
    ]
    assert backend_of(worker).host == "w1"


@given(st.text(max_size=30), st.integers(0, 10**6))
def test_a_queue_event_is_one_event_whatever_the_model_is_called(model: str, position: int) -> None:
    model = model.encode("utf-8", "replace").decode()
    event = nfrx.queue_event("id-1", model, position)
    first, second, *rest = event.split(b"\n")
    assert first == b"event: nfrx.queue"
    assert rest == [b"", b""]
    assert json.loads(second.removeprefix(b"data: ")) == {
        "type": "nfrx.queue",
        "request_id": "id-1",
        "model": model,
        "position": position,
    }


WORDS = {
    errors.Unauthorized(): (401, "unauthorized"),
    errors.QueueFull(): (503, "worker_busy"),
    errors.WorkerBusy(): (503, "worker_busy"),
    errors.NoBackend(): (503, "no_worker"),
    errors.ServerUnknown(): (404, "no_worker"),
    errors.ModelUnknown("m"): (404, "model_not_found"),
    errors.BackendReset(): (502, "upstream_error"),
    errors.BackendLost(): (502, "upstream_error"),
    errors.BackendTimeout(): (504, "timeout"),
    errors.Draining(): (503, "draining"),
    errors.BadJson(): (400, "bad_request"),
}


@pytest.mark.parametrize("error", WORDS, ids=lambda error: error.code)
def test_errors_are_openais_objects_with_nfrxs_words(error: errors.FleetError) -> None:
    said = json.loads(dialect_errors.body("nfrx", error, "id-1"))
    assert (error.status, said["error"]["code"]) == WORDS[error]
    assert said["error"] == json.loads(dialect_errors.body("openai", error, "id-1"))["error"] | {
        "code": said["error"]["code"]
    }
    endpoint = registry.find("POST", "/api/llm/v1/chat/completions")
    assert endpoint is not None
    [line] = dialect_errors.event(endpoint, error, "id-1").split(b"\n\n")[1:-1]
    assert json.loads(line.removeprefix(b"data: ")) == said


def test_a_responses_stream_ends_with_nfrxs_word_too() -> None:
    endpoint = registry.find("POST", "/api/llm/v1/responses")
    assert endpoint is not None
    said = dialect_errors.event(endpoint, errors.BackendLost(), "id-1")
    assert json.loads(said.split(b"data: ")[1])["code"] == "upstream_error"
