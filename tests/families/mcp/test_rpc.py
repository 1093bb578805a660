"""Laws of reading JSON-RPC messages, and of the errors that answer them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy import errors
from fleetproxy.errors import BadRpc, FleetError
from fleetproxy.families import mcp
from fleetproxy.families.mcp import errors as rpc_errors
from fleetproxy.families.mcp import rpc

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=50)
IDS = NUMBERS | TEXTS
METHODS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=256)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
PARAMS = st.lists(VALUES, max_size=3) | st.dictionaries(TEXTS, VALUES, max_size=3)
DUMPS = st.sampled_from([{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])


@given(IDS, METHODS, PARAMS, DUMPS)
def test_a_request_is_one_and_its_id_is_the_bytes_that_came(
    identity: object, method: str, params: object, dumps: dict[str, object]
) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": identity, "method": method, "params": params}, **dumps).encode()  # type: ignore[arg-type]
    envelope = rpc.read(body)
    assert (envelope.kind, envelope.method) == ("request", method)
    assert envelope.id in body
    assert json.loads(envelope.id) == identity
    assert envelope.id == json.dumps(identity, **dumps).encode()  # type: ignore[arg-type]


@given(METHODS, PARAMS)
def test_without_an_id_it_is_a_notification(method: str, params: object) -> None:
    envelope = rpc.read(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())
    assert envelope == rpc.Envelope("notification", b"", method)


@given(IDS, VALUES, st.sampled_from(["result", "error"]))
def test_with_a_result_or_an_error_it_is_a_response(identity: object, value: object, member: str) -> None:
    envelope = rpc.read(json.dumps({"jsonrpc": "2.0", "id": identity, member: value}).encode())
    assert envelope.kind == "response"
    assert json.loads(envelope.id) == identity


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused_with_the_one_error(body: bytes) -> None:
    told = b""
    try:
        rpc.read(body)
    except BadRpc as error:
        told = error.identity
    assert told in body


@given(
    st.dictionaries(
        st.sampled_from(["jsonrpc", "id", "method", "params", "result", "error"]), VALUES | st.just("2.0"), min_size=1
    )
)
def test_objects_that_are_nearly_messages_are_read_or_refused(message: dict[str, object]) -> None:
    body = json.dumps(message).encode()
    try:
        envelope = rpc.read(body)
    except BadRpc:
        return
    assert message["jsonrpc"] == "2.0"
    assert ("method" in message) == (envelope.kind != "response")
    if envelope.kind != "notification":
        assert isinstance(message["id"], (str, int, float))
        assert not isinstance(message["id"], bool)


@pytest.mark.parametrize("depth", [10, 100_000])
def test_depth_is_survived(depth: int) -> None:
    body = b'{"jsonrpc":"2.0","id":1,"method":"m","params":' + b"[" * depth + b"]" * depth + b"}"
    if depth < 100:
        assert rpc.read(body).kind == "request"
    else:
        with pytest.raises(BadRpc):
            rpc.read(body)


# --- errors --------------------------------------------------------------------------------------------------------

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FleetError)]


@pytest.mark.parametrize("identity", [b"", b"1.50", b'"a\\u0062"', b"-0", b"1e400"])
@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_the_shape_and_the_id_as_it_came(kind: type[FleetError], identity: bytes) -> None:
    error = kind("text", ()) if kind is errors.ModelUnknown else kind("text")  # type: ignore[call-arg]
    body = rpc_errors.body(error, identity, "r-1")
    assert body.endswith(b',"id":%b,"jsonrpc":"2.0"}\n' % (identity or b"null"))
    detail = json.loads(body)["error"]
    assert list(detail) == ["code", "data", "message"]
    assert (detail["code"], detail["data"]["req_id"]) == (-32000, "r-1")
    assert detail["message"]
    assert 200 <= rpc_errors.status(error) <= 599
    assert body.strip() in rpc_errors.event(error, identity, "r-1")


def test_the_table_names_errors_there_are() -> None:
    assert set(rpc_errors.SAID) <= {kind.code for kind in ERRORS}


@pytest.mark.parametrize(
    ("path", "relay"),
    [
        (b"/api/mcp/id/tools", "tools"),
        (b"/api/mcp/id/a%2Eb-c_9", "a.b-c_9"),
        (b"/api/mcp/id/", ""),
        (b"/api/mcp/id/a%2Fb", ""),
        (b"/api/mcp/id/" + b"x" * 64, "x" * 64),
        (b"/api/mcp/id/" + b"x" * 65, ""),
        (b"/api/mcp/id/%FF", ""),
        (b"/api/mcp/id/a%0Ab", ""),
    ],
)
def test_relays_are_named_by_paths(path: bytes, relay: str) -> None:
    assert mcp.relay_of(path) == relay
