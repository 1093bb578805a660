from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.errors import BadRequest, HeadersTooLarge
from fleetproxy.wire.head import LOOKED_AT, MAX_HEADER_BYTES, NOT_FORWARDED, read_head

OURS = sorted(NOT_FORWARDED)
OTHERS = [b"accept", b"user-agent", b"content-type", b"anthropic-beta", b"x-stainless-lang", b"range", b"traceparent"]
ONCE = [b"host", b"content-length", b"authorization", b"x-api-key", b"x-ollama-api-key", b"expect"]
VALUES = st.sampled_from([b"", b"v", b"a, b", b"\xff"])


def lines_of(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(name + b": " + value + b"\r\n" for name, value in pairs)


@given(st.lists(st.tuples(st.sampled_from(OTHERS), VALUES), max_size=8), st.dictionaries(st.sampled_from(OURS), VALUES))
def test_ours_are_kept_and_the_rest_goes_on_untouched(
    others: list[tuple[bytes, bytes]], ours: dict[bytes, bytes]
) -> None:
    ours.pop(b"connection", None)
    half = len(others) // 2
    head = read_head([*others[:half], *ours.items(), *others[half:]])
    assert head.lines == lines_of(others)
    assert {name: head.own[name] for name in ours} == ours
    assert head.own.keys() <= set(ours) | LOOKED_AT
    for name in LOOKED_AT:
        assert head.own.get(name) == next((value for other, value in others if other == name), None)


@given(st.sets(st.sampled_from(OTHERS), max_size=3), st.sampled_from([b"keep-alive, ", b"", b"upgrade ,"]))
def test_what_connection_nominates_stays_here_and_what_is_ours_is_still_read(named: set[bytes], before: bytes) -> None:
    value = before + b", ".join(name.title() for name in [*named, b"x-ollama-api-key"])
    sent = [(b"x-ollama-api-key", b"key"), (b"connection", value), *((name, b"v") for name in OTHERS)]
    head = read_head(sent)
    assert head.own[b"x-ollama-api-key"] == b"key"
    assert head.lines == lines_of([(name, b"v") for name in OTHERS if name not in named])


@pytest.mark.parametrize("name", ONCE)
def test_what_decides_may_stand_once(name: bytes) -> None:
    with pytest.raises(BadRequest, match="sent twice"):
        read_head([(name, b"1"), (name, b"1")])


def test_hops_that_add_a_line_are_read_as_one_list() -> None:
    forwarded = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"2.2.2.2")]
    head = read_head([(b"via", b"1.1 a"), *forwarded, (b"via", b"1.1 b")])
    assert head.own[b"via"] == b"1.1 a, 1.1 b"
    assert head.own[b"x-forwarded-for"] == b"1.1.1.1, 2.2.2.2"
    assert read_head([(b"cookie", b"a"), (b"cookie", b"b")]).own[b"cookie"] == b"a"


@pytest.mark.parametrize("name", [b"x_ollama_api_key", b"content_length", b"x_forwarded_for", b"transfer_encoding"])
def test_names_that_only_look_like_ours_are_refused(name: bytes) -> None:
    with pytest.raises(BadRequest, match="underscores"):
        read_head([(name, b"x")])
    assert read_head([(b"x_other", b"x")]).lines == b"x_other: x\r\n"


def test_large_heads_are_refused() -> None:
    read_head([(b"x-a", b"v" * (MAX_HEADER_BYTES - 7))])
    with pytest.raises(HeadersTooLarge):
        read_head([(b"x-a", b"v" * (MAX_HEADER_BYTES - 6))])


@pytest.mark.parametrize(
    ("headers", "length", "has_body"),
    [
        ([], None, False),
        ([(b"content-length", b"0")], 0, False),
        ([(b"content-length", b"12")], 12, True),
        ([(b"content-length", b"x")], None, True),
        ([(b"transfer-encoding", b"chunked")], None, True),
    ],
)
def test_a_body_is_announced_by_its_framing(
    headers: list[tuple[bytes, bytes]], length: int | None, has_body: bool
) -> None:
    head = read_head(headers)
    assert (head.content_length, head.has_body) == (length, has_body)


def test_no_answer_is_asked_for_compressed() -> None:
    assert read_head([(b"accept-encoding", b"gzip"), (b"accept", b"*/*")]).lines == b"accept: */*\r\n"
