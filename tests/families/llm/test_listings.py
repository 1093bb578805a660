"""Listings of servers, read leniently: never an exception but BadListing, never more than was listed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.backend import DiskModel, ResidentModel
from fleetproxy.families.llm import listings
from fleetproxy.families.llm.listings import BadListing

PS = {
    "models": [
        {
            "name": "llama3.2:3b",
            "model": "llama3.2:3b",
            "size": 3_000_000_000,
            "size_vram": 2_500_000_000,
            "digest": "a80c",
            "details": {"parameter_size": "3.2B", "quantization_level": "Q4_K_M", "families": None},
            "expires_at": "2026-11-21T20:00:00Z",
            "context_length": 4096,
        }
    ]
}


def test_an_ollama_listing_is_read_whole() -> None:
    found = listings.listing(json.dumps(PS).encode(), "models", "name")
    assert listings.resident(found) == (
        ResidentModel(
            name="llama3.2:3b",
            size_bytes=3_000_000_000,
            size_vram_bytes=2_500_000_000,
            digest="a80c",
            context_length=4096,
            expires_at="2026-11-21T20:00:00Z",
            parameter_size="3.2B",
            quantization="Q4_K_M",
        ),
    )
    assert json.loads(bytes(found.raw)) == PS["models"]


def test_an_openai_listing_names_models_by_id() -> None:
    body = b'{"object":"list","data":[{"id":"qwen","object":"model","max_model_len":32768},{"object":"model"}]}'
    found = listings.listing(body, "data", "id")
    assert listings.resident(found) == (ResidentModel(name="qwen", context_length=32768),)
    assert listings.on_disk(found) == (DiskModel(name="qwen"),)
    assert bytes(found.raw) == b'[{"id":"qwen","object":"model","max_model_len":32768}]'


def test_entries_keep_their_bytes() -> None:
    entry = b'{ "name" : "a" , "z":1.50,"a":"\\u00e9" }'
    found = listings.listing(b'{"models":[' + entry + b"]}", "models", "name")
    assert bytes(found.raw) == b"[" + entry + b"]"


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"x"', b"<html>", b"{", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_what_is_no_listing_is_refused(body: bytes) -> None:
    with pytest.raises(BadListing):
        listings.listing(body, "models", "name")


@pytest.mark.parametrize("value", [b'"x"', b"1", b"{}", b"true"])
def test_a_list_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(BadListing, match="no list"):
        listings.listing(b'{"models":' + value + b"}", "models", "name")


def test_null_is_an_empty_list() -> None:
    assert listings.listing(b'{"models":null}', "models", "name") == listings.Listing()


def test_entries_that_make_no_sense_are_left_out_and_the_others_stay() -> None:
    body = b",".join(
        [
            b'{"models":[1,null,"x",[],{}',
            b'{"name":1}',
            b'{"name":""}',
            b'{"name":"' + b"n" * 600 + b'"}',
            b'{"name":"tab\\t"}',
            b'{"name":"good","size":-1,"size_vram":1e300,"digest":7,"details":[],"context_length":true}]}',
        ]
    )
    found = listings.listing(body, "models", "name")
    assert listings.resident(found) == (ResidentModel(name="good"),)
    assert listings.on_disk(found) == (DiskModel(name="good"),)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_nesting_bombs_are_refused(opening: bytes) -> None:
    with pytest.raises(BadListing):
        listings.listing(b'{"models":[{"name":"a","x":' + opening * 100_000, "models", "name")


def test_the_first_of_two_entries_of_one_name_counts() -> None:
    found = listings.listing(b'{"models":[{"name":"a","size":1},{"name":"a","size":2}]}', "models", "name")
    assert listings.on_disk(found) == (DiskModel(name="a", size_bytes=1),)


def test_listings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "MAX_ENTRIES", 3)
    body = json.dumps({"models": [{"name": str(n)} for n in range(5)]}).encode()
    assert [model.name for model in listings.on_disk(listings.listing(body, "models", "name"))] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("body", "version"),
    [(b'{"version":"0.14.1"}', "0.14.1"), (b"{}", None), (b'{"version":7}', None), (b'{"version":"a\\nb"}', None)],
)
def test_versions(body: bytes, version: str | None) -> None:
    assert listings.version(body) == version


def test_a_version_that_is_no_object_is_refused() -> None:
    with pytest.raises(BadListing):
        listings.version(b"Ollama is running")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "size", "details", "x"]), inner)
    ),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=6))
def test_any_json_list_gives_models_with_usable_names_or_nothing(items: list[object]) -> None:
    found = listings.listing(json.dumps({"models": items}).encode(), "models", "name")
    for model in (*listings.resident(found), *listings.on_disk(found)):
        assert model.name
        assert model.name.isprintable()
        assert model.size_bytes >= 0
    assert len(json.loads(bytes(found.raw))) == len(found.entries) <= len(items)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (listings.version, lambda b: listings.listing(b, "models", "name")):
        try:
            read(body)
        except BadListing:
            pass
