"""Laws of nfrx's relay protocol."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.wire import relays
from fleetproxy.wire.relays import RelayError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SIDS = st.uuids().map(str)


@given(SIDS, VALUES, st.sampled_from([None, 1]), st.booleans())
def test_a_payload_goes_through_as_the_bytes_it_is(
    sid: str, value: object, indent: int | None, ascii_only: bool
) -> None:
    payload = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        payload.decode()
    except UnicodeDecodeError:
        return  # a lone surrogate: no JSON text that a WebSocket could carry
    message = relays.rpc(sid, payload)
    frame = relays.read(message)
    assert (frame.t, frame.sid, bytes(frame.payload)) == ("rpc", sid, payload)
    assert relays.read(message.decode()) == frame
    assert len(message) == len(payload) + len(relays.rpc(sid, b""))


@given(SIDS, st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_what_is_written_is_read(sid: str, one: str, two: str, three: str) -> None:
    opened = relays.read(relays.opening(sid, one, two, three))
    assert (opened.t, opened.sid, opened.req_id, opened.hint, opened.auth) == ("open", sid, one, two, three)
    failed = relays.read(relays.open_fail(sid, one, two))
    assert (failed.t, failed.sid, failed.code, failed.msg) == ("open.fail", sid, one, two)
    assert relays.read(relays.open_ok(sid)) == relays.Frame(t="open.ok", sid=sid)
    assert relays.read(relays.close(sid, one)) == relays.Frame(t="close", sid=sid, msg=one)
    assert relays.read(relays.ping()) == relays.Frame(t="ping")
    assert relays.read_ack(relays.ack(one)) == one
    assert relays.read_hello(relays.hello(one, two)) == relays.Hello(client_name=one, id=two)


def test_messages_have_the_fields_of_the_stock_peers_in_their_order() -> None:
    sid = str(UUID(int=0))
    assert relays.opening(sid, "r", "tools/list", "") == (
        '{"t":"open","sid":"%s","req_id":"r","hint":"tools/list"}' % sid  # noqa: UP031
    )
    assert relays.close(sid, "done") == '{"t":"close","sid":"%s","msg":"done"}' % sid  # noqa: UP031
    assert relays.hello("me", "") == '{"client_name":"me","id":""}'
    assert relays.ack("x") == '{"id":"x"}'
    assert relays.rpc(sid, b'{"a":1}') == b'{"t":"rpc","sid":"%b","payload":{"a":1}}' % sid.encode()


@given(st.binary() | st.text() | VALUES.map(json.dumps))
def test_anything_is_read_or_refused_with_the_one_error(message: str | bytes) -> None:
    for read in (relays.read, relays.read_hello, relays.read_ack):
        try:
            read(message)
        except RelayError:
            pass


@given(st.dictionaries(st.sampled_from(["id", "client_name", "client_key", "other"]), VALUES))
def test_of_a_first_message_the_texts_count_and_the_rest_does_not(fields: dict[str, object]) -> None:
    hello = relays.read_hello(json.dumps(fields))
    for name in ("id", "client_name", "client_key"):
        value = fields.get(name)
        assert getattr(hello, name) == (value if isinstance(value, str) and _sound(value) else "")


def _sound(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("message", ["", "[]", "7", "null", '"x"', "{", b"\xff", "[" * 100_000, '{"a":' * 100_000])
def test_what_is_no_object_is_refused(message: str | bytes) -> None:
    for read in (relays.read, relays.read_hello):
        with pytest.raises(RelayError):
            read(message)
