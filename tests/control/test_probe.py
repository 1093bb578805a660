"""One poll of one server: what counts as up, what is kept, how much is asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.control.probe import probe
from fleetproxy.errors import BackendTimeout, BadResponse, ConnectFailed
from fleetproxy.families.llm.listings import Listing
from tests.control.scripted import OLLAMA, OPENAI, Answer, Said, Servers, backend

GARBAGE = Answer(200, b"<html>It works!</html>")


def names(listing: Listing | None) -> list[str] | None:
    return None if listing is None else [name for name, _ in listing.entries]


async def test_an_ollama_server_tells_everything() -> None:
    servers = Servers(gpu=OLLAMA)
    found = await probe(servers, backend(), 5.0, set())
    assert (found.reachable, found.error, found.version) == (True, None, "0.14.1")
    assert names(found.resident) == ["phi:latest"]
    assert names(found.on_disk) == names(found.v1_models) == ["phi:latest", "qwen:0.5b"]
    assert servers.most["gpu"] == 1


async def test_an_openai_server_tells_everything() -> None:
    found = await probe(Servers(gpu=OPENAI), backend(kind="openai"), 5.0, set())
    assert (found.reachable, found.error, found.version) == (True, None, "0.9")
    assert names(found.v1_models) == ["mistral"]
    assert (found.resident, found.on_disk) == (None, None)


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("failure", [ConnectFailed("refused"), BackendTimeout("silent"), BadResponse("no HTTP")])
async def test_a_server_that_does_not_answer_is_asked_once(kind: str, failure: Said) -> None:
    dead = dict.fromkeys(OLLAMA | OPENAI, failure)
    servers = Servers(gpu=dead)
    found = await probe(servers, backend(kind=kind), 5.0, set())
    assert not found.reachable
    assert str(failure) in str(found.error)
    assert len(servers.asked) == 1


@pytest.mark.parametrize("broken", [Answer(500), Answer(404), GARBAGE, Answer(200, b'{"models":7}')])
async def test_a_failed_list_alone_leaves_the_server_up_and_the_list_unknown(broken: Answer) -> None:
    found = await probe(Servers(gpu=OLLAMA | {"/api/ps": broken}), backend(), 5.0, set())
    assert found.reachable
    assert found.resident is None
    assert found.on_disk is not None
    assert "/api/ps" in str(found.error)


async def test_a_server_that_hangs_halfway_is_not_asked_for_the_rest() -> None:
    servers = Servers(gpu=OLLAMA | {"/api/tags": BackendTimeout("silent")})
    found = await probe(servers, backend(), 5.0, set())
    assert servers.paths() == ["/api/version", "/api/tags"]
    assert found.reachable, "it said its version"
    assert (found.on_disk, found.resident, found.v1_models) == (None, None, None)


async def test_something_else_on_the_port_is_not_an_ollama_server() -> None:
    found = await probe(Servers(gpu=dict.fromkeys(OLLAMA, GARBAGE)), backend(), 5.0, set())
    assert not found.reachable
    assert "no JSON object" in str(found.error)


async def test_an_ollama_server_without_a_version_is_known_by_its_lists() -> None:
    for said in (Answer(404), Answer(200, b"{}"), GARBAGE):
        assert (await probe(Servers(gpu=OLLAMA | {"/api/version": said}), backend(), 5.0, set())).reachable


@pytest.mark.parametrize(("key", "advice"), [(None, "set api_key"), ("secret", "check api_key")])
async def test_a_refused_key_is_said_with_what_to_do(key: str | None, advice: str) -> None:
    refusing = dict.fromkeys(OLLAMA | OPENAI, Answer(401))
    for kind in ("ollama", "openai"):
        found = await probe(Servers(gpu=refusing), backend(kind=kind, api_key=key), 5.0, set())
        assert not found.reachable
        assert advice in str(found.error)
        assert "secret" not in str(found.error)


async def test_a_model_that_is_still_loading_makes_its_server_not_ready() -> None:
    found = await probe(Servers(gpu=OPENAI | {"/health": Answer(503)}), backend(kind="openai"), 5.0, set())
    assert not found.reachable
    assert "not ready" in str(found.error)


@pytest.mark.parametrize("said", [Answer(404), Answer(405), Answer(302)])
async def test_optional_paths_a_server_lacks_are_not_asked_again(said: Answer) -> None:
    servers = Servers(gpu=OPENAI | {"/health": said, "/version": said})
    absent: set[str] = set()
    for _ in range(3):
        assert (await probe(servers, backend(kind="openai"), 5.0, absent)).reachable
    assert servers.paths() == ["/health", "/v1/models", "/version", "/v1/models", "/v1/models"]
    assert absent == {"/health", "/version"}


async def test_an_old_ollama_server_without_v1_is_up() -> None:
    servers = Servers(gpu=OLLAMA | {"/v1/models": Answer(404)})
    found = await probe(servers, backend(), 5.0, set())
    assert (found.reachable, found.error, found.v1_models) == (True, None, None)


async def test_a_strange_version_does_not_take_a_server_down() -> None:
    for said in (GARBAGE, Answer(500), BackendTimeout("silent")):
        found = await probe(Servers(gpu=OPENAI | {"/version": said}), backend(kind="openai"), 5.0, set())
        assert (found.reachable, found.version) == (True, None)


SAID = st.one_of(
    st.builds(Answer, st.sampled_from([200, 204, 302, 401, 404, 500, 503]), st.binary(max_size=30)),
    st.sampled_from([*OLLAMA.values(), *OPENAI.values()]),
    st.builds(ConnectFailed, st.just("refused")),
    st.builds(BadResponse, st.just("no HTTP")),
)


@given(st.dictionaries(st.sampled_from([*OLLAMA, *OPENAI]), SAID), st.sampled_from(["ollama", "openai"]))
async def test_whatever_a_server_does_a_poll_ends_with_an_answer(paths: dict[str, Said], kind: str) -> None:
    found = await probe(Servers(gpu=paths), backend(kind=kind), 5.0, set())
    assert found.reachable or found.error
    if found.reachable and kind == "openai":
        assert found.v1_models is not None
