from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.families.llm import lists

NAMES = st.sampled_from(["phi:latest", "phi", "llama3:8b", "org/x", "ä", ""])
DIGESTS = st.sampled_from(["", "d1", "d2"])
ENTRIES = st.fixed_dictionaries(
    {"name": NAMES, "digest": DIGESTS},
    optional={"model": NAMES, "size": st.integers(0, 9), "details": st.just({"n": [1, {"x": "}"}]})},
)
IDS = st.fixed_dictionaries({"id": NAMES}, optional={"object": st.just("model"), "owned_by": st.text(max_size=3)})
GARBAGE = st.sampled_from([1, "x", None, [], {"name": 3}, {"id": []}, {}, {"digest": "d"}])


def raw(entries: list[Any]) -> Raw:
    return Raw(json.dumps(entries, ensure_ascii=False, separators=(", ", " : ")).encode())


def server(name: str, ps: list[Any], **fields: Any) -> lists.Known:
    return Backend(name=name, id=1, column=1, **fields), BackendState(online=True, raw_ps=raw(ps))


ARRAYS = st.lists(st.lists(ENTRIES | GARBAGE, max_size=5), max_size=4)
ID_ARRAYS = st.lists(st.lists(IDS | GARBAGE, max_size=5), max_size=4)


def named(entry: Any) -> str:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key, ""), str) for key in ("name", "id")):
        return ""
    return entry.get("name") or entry.get("model") or ""


@given(ARRAYS)
def test_tags_lose_no_model_and_say_none_twice(arrays: list[list[Any]]) -> None:
    merged = json.loads(lists.tags(raw(array) for array in arrays))["models"]
    given_models = [(named(entry), entry.get("digest", "")) for array in arrays for entry in array if named(entry)]
    assert [(named(entry), entry.get("digest", "")) for entry in merged] == list(dict.fromkeys(given_models))
    assert all(any(entry in array for array in arrays) for entry in merged)


@given(ID_ARRAYS)
def test_v1_models_have_each_id_once_as_the_first_server_has_it(arrays: list[list[Any]]) -> None:
    merged = json.loads(lists.v1_models(raw(array) for array in arrays))
    expected: dict[str, Any] = {}
    for entry in (entry for array in arrays for entry in array):
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and not isinstance(entry.get("name"), int):
            expected.setdefault(entry["id"], entry)
    expected.pop("", None)
    assert merged == {"object": "list", "data": list(expected.values())}


@given(ARRAYS, ID_ARRAYS, st.data())
def test_grouping_of_servers_does_not_matter(
    arrays: list[list[Any]], ids: list[list[Any]], data: st.DataObject
) -> None:
    def regrouped(parts: list[list[Any]], merge: Any, key: str) -> bytes:
        cut = data.draw(st.integers(0, len(parts)))
        groups = [parts[:cut], parts[cut:]]
        return merge(Raw(json.dumps(json.loads(merge(raw(p) for p in group))[key]).encode()) for group in groups)  # type: ignore[no-any-return]

    assert json.loads(regrouped(arrays, lists.tags, "models")) == json.loads(lists.tags(map(raw, arrays)))
    assert json.loads(regrouped(ids, lists.v1_models, "data")) == json.loads(lists.v1_models(map(raw, ids)))


@given(st.lists(st.lists(ENTRIES | GARBAGE, max_size=4), max_size=3))
def test_ps_has_every_copy_with_its_server(arrays: list[list[Any]]) -> None:
    servers = [server(f"s{number}", array, host="10.0.0.1", port=number) for number, array in enumerate(arrays)]
    merged = json.loads(lists.ps(servers))["models"]
    assert merged == [
        {**entry, "_server": f"s{number}", "_host": f"10.0.0.1:{number}"}
        for number, array in enumerate(arrays)
        for entry in array
        if named(entry)
    ]
    hidden = json.loads(lists.ps(servers, hide_backends=True))["models"]
    assert hidden == [entry for array in arrays for entry in array if named(entry)]


@given(ARRAYS)
def test_entries_go_out_as_the_bytes_that_came_in(arrays: list[list[Any]]) -> None:
    written = {json.dumps(entry, ensure_ascii=False, separators=(", ", " : ")) for array in arrays for entry in array}
    body = msgspec.json.decode(lists.tags(map(raw, arrays)), type=dict[str, list[Raw]])
    assert all(bytes(entry).decode() in written for entry in body["models"])


def test_another_fleetproxys_entries_get_our_names() -> None:
    entry = {"name": "m", "_server": "inner", "_host": "1.2.3.4:5"}
    merged = json.loads(lists.ps([server("outer", [entry], host="::1", port=7)]))["models"]
    assert merged == [{"name": "m", "_server": "outer", "_host": "[::1]:7"}]


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ({"scheme": "unix", "host": "/run/x.sock"}, "s"),
        ({"scheme": "hub", "host": "w-1"}, "s"),
        ({}, "127.0.0.1:11434"),
    ],
)
def test_only_addresses_are_told_as_addresses(fields: dict[str, Any], host: str) -> None:
    merged = json.loads(lists.ps([server("s", [{"model": "m"}], **fields)]))["models"]
    assert merged[0]["_host"] == host


@pytest.mark.parametrize("array", [b"", b"{}", b"null", b"[1", b"[" * 100_000, b'["\xff"]', b'[{"name":"\xff"}]'])
def test_a_list_that_is_none_is_left_out(array: bytes) -> None:
    assert lists.tags([Raw(array), raw([{"name": "m"}])]) == b'{"models":[{"name" : "m"}]}'


@pytest.mark.parametrize(
    ("versions", "lowest"),
    [
        ([], "0.0.0"),
        ([None], "0.0.0"),
        (["0.10.0", "0.9.6"], "0.9.6"),
        (["0.12", "0.12.0-rc1", None], "0.12.0-rc1"),
        (["0.0.0", "0.5.1"], "0.5.1"),
        (["0.0.0"], "0.0.0"),
        (["nonsense", "v0.5", "1"], "v0.5"),
        (["0.5+b", "0.5"], "0.5"),
    ],
)
def test_the_lowest_version_is_told(versions: list[str | None], lowest: str) -> None:
    assert lists.lowest(versions) == lowest


@given(st.lists(st.sampled_from(["0.1", "0.2.3", "0.2.10", "1.0-rc1", "1.0", "x", "0.0.0", None]), max_size=5))
def test_the_order_of_servers_does_not_change_the_lowest_version(versions: list[str | None]) -> None:
    assert lists.lowest(versions) == lists.lowest(reversed(versions))
    for one, other in combinations([version for version in versions if version], 2):
        assert lists.lowest([one, other]) in (one, other, "0.0.0")


@given(ID_ARRAYS)
def test_every_listed_model_is_found_by_its_id(arrays: list[list[Any]]) -> None:
    found = lists.model_bodies(map(raw, arrays))
    for entry in json.loads(lists.v1_models(map(raw, arrays)))["data"]:
        body = lists.model_body(found, entry["id"])
        assert body is not None
        assert json.loads(body) == entry
    assert lists.model_body(found, "nobody") is None


def test_a_model_is_found_under_its_other_spellings() -> None:
    found = lists.model_bodies([raw([{"id": "phi:latest"}, {"id": "org/X"}])])
    assert lists.model_body(found, "PHI") == lists.model_body(found, "library/phi") == b'{"id" : "phi:latest"}'
    assert lists.model_body(found, "org/x") == b'{"id" : "org/X"}'


def test_all_bodies_are_made_of_the_servers_that_are_shown() -> None:
    up = BackendState(online=True, version="0.9", raw_tags=raw([{"name": "t"}]), raw_v1_models=raw([{"id": "v"}]))
    servers = [
        (Backend(name="a", id=1, column=1), up),
        (Backend(name="b", id=2, column=2, enabled=False), up),
        (Backend(name="c", id=3, column=3), BackendState(version="0.1", raw_tags=raw([{"name": "x"}]))),
    ]
    shown = lists.shown(servers)
    assert [backend.name for backend, _ in shown] == ["a"]
    made = lists.bodies(shown)
    assert {path: json.loads(body) for path, body in made.items()} == {
        "/api/tags": {"models": [{"name": "t"}]},
        "/api/ps": {"models": []},
        "/v1/models": {"object": "list", "data": [{"id": "v"}]},
        "/api/version": {"version": "0.9"},
    }
    assert json.loads(lists.bodies(shown, version="9")["/api/version"]) == {"version": "9"}
