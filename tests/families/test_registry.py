from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.operation import Endpoint
from fleetproxy.families import llm, registry
from fleetproxy.families.base import Family
from fleetproxy.families.registry import Registry, find, other, parameter

DIGEST = "sha256:" + "0a" * 32
EVERY = [endpoint for family in registry.BUILT_IN for endpoint in family.endpoints]
LITERAL = [(method, endpoint) for endpoint in EVERY if "{" not in endpoint.path for method in endpoint.methods]


@pytest.mark.parametrize(("method", "endpoint"), LITERAL, ids=lambda value: getattr(value, "name", value))
def test_every_path_of_the_tables_is_found_under_any_spelling(method: str, endpoint: Endpoint) -> None:
    assert find(method, endpoint.path) is endpoint
    spelled = "".join(f"%{ord(letter):02x}" if letter.isalnum() else letter for letter in endpoint.path)
    assert find(method, spelled) is endpoint
    assert find(method, spelled.upper()) is endpoint


def test_names_and_method_path_pairs_are_unique() -> None:
    names = [endpoint.name for endpoint in EVERY]
    assert len(set(names)) == len(names)
    pairs = [(method, endpoint.path) for endpoint in EVERY for method in endpoint.methods]
    assert len(set(pairs)) == len(pairs)
    assert {endpoint.name for endpoint in registry.literal_endpoints()} == {endpoint.name for _, endpoint in LITERAL}


def test_the_tables_agree_with_themselves() -> None:
    for endpoint in llm.family.endpoints:
        assert endpoint.doc
        assert endpoint.methods
        assert not (endpoint.read and endpoint.write)
        assert not (endpoint.upload and (endpoint.has_model or endpoint.read))
        assert endpoint.has_model or not (endpoint.streams_by_default or endpoint.injectable)
        assert not endpoint.streams_by_default or endpoint.marker_stream is not None
        assert not (
            endpoint.dialect != "ollama" and (endpoint.injectable or endpoint.streams_by_default or endpoint.write)
        )
        path = endpoint.forward.decode() or endpoint.path
        assert path.startswith("/api/") == (endpoint.dialect == "ollama") or path == "/"
        assert (endpoint.surface == "family") == endpoint.path.startswith(f"/api/{endpoint.family}/")
        assert endpoint.pinned == ("{worker}" in endpoint.path)


@pytest.mark.parametrize(
    ("method", "path", "name", "model"),
    [
        ("GET", "/v1/models/phi", "v1_model", "phi"),
        ("HEAD", "/v1/models/phi:latest", "v1_model", "phi:latest"),
        ("GET", "/v1/models/org/x:7b", "v1_model", "org/x:7b"),
        ("GET", "/v1/models/org%2Fx%3A7b", "v1_model", "org/x:7b"),
        ("GET", "/v1/models/hf.co/a/b/c%20d", "v1_model", "hf.co/a/b/c d"),
        ("GET", "/v1/models/%E4", "v1_model", "\ufffd"),
        ("HEAD", f"/api/blobs/{DIGEST}", "blob_check", DIGEST),
        ("POST", f"/api/blobs/{DIGEST}", "blob_upload", DIGEST),
        ("POST", f"/api/blobs/{DIGEST.replace(':', '%3A')}", "blob_upload", DIGEST),
        ("POST", f"/api/blobs/{DIGEST.replace(':', '-').upper().replace('SHA', 'sha')}", "blob_upload", None),
        ("DELETE", "/api/user/keys/a%2Bb", "user_key", "a+b"),
    ],
)
def test_parameters_are_read_raw_or_encoded(method: str, path: str, name: str, model: str | None) -> None:
    endpoint = find(method, path)
    assert endpoint is not None
    assert endpoint.name == name
    if model is not None:
        assert parameter(endpoint, path) == model


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20), st.booleans())
def test_any_model_id_is_found_again(model: str, keep_slashes: bool) -> None:
    path = "/v1/models/" + quote(model, safe="/:" if keep_slashes else "")
    endpoint = find("GET", path)
    assert endpoint is not None
    assert endpoint.name == "v1_model"
    assert parameter(endpoint, path) == model


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("PUT", "/api/chat", "api_other"),
        ("GET", "/api/delete", "api_other"),
        ("POST", "/api/tags", "api_other"),
        ("GET", "/api/new-thing", "api_other"),
        ("PATCH", "/api/new/deep/thing", "api_other"),
        ("GET", "/v1/files", "v1_other"),
        ("POST", "/v1/chat/completions/x", "v1_other"),
        ("DELETE", "/v1/models/phi", "v1_other"),
        ("GET", "/v1/responses/resp_1", "v1_other"),
        ("POST", "/v1/messages/batches", "v1_messages_other"),
        ("GET", "/v1/messages", "v1_other"),
        ("POST", "/api/chat/", "api_other"),
        ("POST", "/API/chat", None),
        ("GET", "/v2/x", None),
        ("GET", "/v1/", None),
        ("GET", "/v1", None),
        ("GET", "/api/", None),
        ("GET", "/api", None),
        ("PUT", "/", None),
        ("GET", "", None),
        ("POST", "/api/llm/nothing", None),
        ("GET", "/api/transfer", None),
        ("GET", "/api/asr/v1/nothing", None),
        ("POST", "/api/blobs/sha256:../../etc/passwd", None),
        ("POST", "/api/blobs/sha256:" + "0" * 63, None),
        ("POST", "/api/blobs/" + "0" * 64, None),
        ("GET", f"/api/blobs/{DIGEST}", None),
        ("POST", f"/api/%62lobs/{DIGEST}x", None),
    ],
)
def test_the_unlisted_goes_through_but_for_what_is_nobodys(method: str, path: str, name: str | None) -> None:
    endpoint = find(method, path)
    assert (endpoint.name if endpoint is not None else None) == name
    if endpoint is not None:
        assert not endpoint.read
        assert endpoint.lenient


@pytest.mark.parametrize("path", ["/api/pul%6c", "/api/%70ull", "/%61pi/pull", "/api/%50ull"])
def test_no_spelling_slips_past_a_guard(path: str) -> None:
    endpoint = find("POST", path)
    if path == "/api/%50ull":  # a capital letter: another path to every server
        assert endpoint is not None
        assert endpoint.name == "api_other"
    else:
        assert endpoint is not None
        assert endpoint.write


@given(st.sampled_from(["GET", "POST", "DELETE"]), st.text("/apiv1chtmodels{}%4F.:-", max_size=30))
def test_any_path_is_found_or_not_and_nothing_else(method: str, path: str) -> None:
    endpoint = find(method, path)
    assert endpoint is None or endpoint.path.startswith("/")
    assert other(path) is None or path.startswith(("/api/", "/v1/"))


def test_two_families_may_not_claim_one_path() -> None:
    rival = Family(name="rival", summary="", endpoints=(Endpoint(name="x", methods=("POST",), path="/api/chat"),))
    with pytest.raises(ValueError, match="POST /api/chat is in two endpoint tables"):
        Registry((llm.family, rival))


def test_templates_of_other_families_are_found() -> None:
    path = "/api/other/id/{id}/v1/models/{id}"
    one = Endpoint(name="one", methods=("GET",), path=path, family="other")
    found = Registry((Family(name="other", summary="", endpoints=(one,)),))
    assert found.find("GET", "/api/other/id/w-1/v1/models/org/x") is one
    assert parameter(one, "/api/other/id/w-1/v1/models/org/x") == "org/x"
    assert found.find("GET", "/api/other/id/w/1/v1/models") is not one
    assert list(found.literal_endpoints()) == []


@pytest.mark.parametrize(
    ("path", "there"), [("/rerank", True), ("/v2/x", True), ("/api/blobs/x", False), ("/v1/", False)]
)
def test_only_paths_outside_the_dialects_are_let_through_by_the_operator(path: str, there: bool) -> None:
    found = registry.passthrough(path)
    assert (found is not None) == there
    assert found is None or (found.dialect, found.read) == ("openai", False)
