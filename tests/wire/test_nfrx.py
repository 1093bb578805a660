from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.wire import nfrx
from fleetproxy.wire.nfrx import NfrxError, read_agent, read_server, write

TEXT = st.text(max_size=40)
SOME_TEXT = st.text(min_size=1, max_size=40)
CONFIG = st.dictionaries(SOME_TEXT, SOME_TEXT, max_size=4)
COUNT = st.integers(0, 2**31)

AGENT = st.one_of(
    st.builds(
        nfrx.Register,
        worker_id=TEXT,
        worker_name=TEXT,
        client_key=TEXT,
        models=st.lists(TEXT, max_size=4).map(tuple),
        max_concurrency=COUNT,
        version=TEXT,
        build_sha=TEXT,
        build_date=TEXT,
        agent_config=CONFIG,
    ),
    st.builds(nfrx.Heartbeat, ts=COUNT, host_cpu_percent=st.floats(0, 100), host_ram_used_percent=st.floats(0, 100)),
    st.builds(
        nfrx.StatusUpdate,
        max_concurrency=COUNT,
        models=st.none() | st.lists(TEXT, min_size=1, max_size=4).map(tuple),
        status=TEXT,
        agent_config=CONFIG,
    ),
    st.builds(
        nfrx.ResponseHead,
        request_id=SOME_TEXT,
        status=st.integers(-(2**40), 2**40),
        headers=st.dictionaries(TEXT, TEXT, max_size=5).map(lambda pairs: tuple(pairs.items())),
    ),
    st.builds(nfrx.ResponseChunk, request_id=SOME_TEXT, data=st.binary(max_size=200)),
    st.builds(nfrx.ResponseEnd, request_id=SOME_TEXT, error_code=TEXT, error_message=TEXT),
)
SERVER = st.one_of(
    st.builds(
        nfrx.Request,
        request_id=SOME_TEXT,
        method=SOME_TEXT,
        path=TEXT,
        headers=st.dictionaries(TEXT, TEXT, max_size=5),
        stream=st.booleans(),
        body=st.binary(max_size=200),
    ),
    st.builds(nfrx.Cancel, request_id=SOME_TEXT),
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "type",
        "request_id",
        "data",
        "status",
        "headers",
        "error",
        "models",
        "max_concurrency",
        "worker_id",
        "worker_name",
        "client_key",
        "token",
        "agent_config",
        "version",
        "ts",
        "host_cpu_percent",
        "body",
        "method",
        "path",
        "stream",
        "code",
        "message",
    ]
)
KINDS = st.sampled_from(
    [
        "register",
        "heartbeat",
        "status_update",
        "http_proxy_response_headers",
        "http_proxy_response_chunk",
        "http_proxy_response_end",
        "http_proxy_request",
        "http_proxy_cancel",
        "job_result",
        "models_update",
    ]
)


@given(AGENT)
def test_what_an_agent_says_is_what_the_server_reads(message: nfrx.AgentMessage) -> None:
    assert read_agent(write(message)) == message
    assert read_agent(write(message).encode()) == message


@given(SERVER)
def test_what_a_server_says_is_what_the_agent_reads(message: nfrx.ServerMessage) -> None:
    assert read_server(write(message)) == message


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_garbage_raises_only_its_own_error(data: bytes | str) -> None:
    for read in (read_agent, read_server):
        try:
            read(data)
        except NfrxError:
            pass


@given(KINDS, st.dictionaries(FIELDS, ANY_JSON, max_size=10))
def test_fields_of_any_type_are_taken_or_count_as_not_given(kind: str, fields: dict[str, object]) -> None:
    text = json.dumps({**fields, "type": kind})
    for read in (read_agent, read_server):
        try:
            message = read(text)
        except NfrxError:
            continue
        match message:
            case nfrx.Register() | nfrx.StatusUpdate():
                assert isinstance(message.max_concurrency, int)
                assert all(isinstance(model, str) for model in message.models or ())
                assert all(isinstance(value, str) for value in message.agent_config.values())
            case nfrx.ResponseHead():
                assert isinstance(message.status, int)
            case nfrx.Heartbeat():
                assert 0 <= message.host_cpu_percent <= 100
                assert 0 <= message.host_ram_used_percent <= 100


@pytest.mark.parametrize(("said", "read"), [("1" + "0" * 400, 100.0), ("-1" + "0" * 400, 0.0), ("12", 12.0)])
def test_a_percentage_may_be_any_number(said: str, read: float) -> None:
    message = read_agent(f'{{"type":"heartbeat","host_cpu_percent":{said}}}')
    assert message == nfrx.Heartbeat(host_cpu_percent=read)


def test_the_stock_agents_register_is_read_as_it_comes() -> None:
    text = (
        '{"type":"register","worker_id":"20260401120000","worker_name":"gpu1","client_key":"","models":null,'
        '"max_concurrency":0,"version":"dev","build_sha":"unknown","build_date":"unknown",'
        '"agent_config":{"embedding_batch_size":"16","hostname":"gpu1","backend_family":"ollama"}}'
    )
    assert read_agent(text) == nfrx.Register(
        worker_id="20260401120000",
        worker_name="gpu1",
        version="dev",
        build_sha="unknown",
        build_date="unknown",
        agent_config={"embedding_batch_size": "16", "hostname": "gpu1", "backend_family": "ollama"},
    )


@given(st.integers(1, 10**8), st.sampled_from(["register", "status_update"]), st.booleans())
def test_the_batch_size_is_read_in_both_spellings_and_the_config_wins(size: int, kind: str, both: bool) -> None:
    config = {"embedding_batch_size": "7"} if both else {}
    message = read_agent(json.dumps({"type": kind, "embedding_batch_size": size, "agent_config": config}))
    assert isinstance(message, nfrx.Register | nfrx.StatusUpdate)
    assert message.agent_config == {"embedding_batch_size": "7" if both else str(size)}


def test_an_empty_model_list_is_not_the_same_as_none_given() -> None:
    cleared = read_agent('{"type":"status_update","max_concurrency":1,"models":[]}')
    kept = read_agent('{"type":"status_update","max_concurrency":1,"models":null}')
    assert isinstance(cleared, nfrx.StatusUpdate)
    assert isinstance(kept, nfrx.StatusUpdate)
    assert (cleared.models, kept.models) == ((), None)


def test_an_order_has_the_fields_the_stock_agent_knows_and_padded_base64() -> None:
    message = nfrx.Request(
        request_id="r", method="POST", path="/chat/completions", headers={"Accept": "*/*"}, stream=True, body=b"{}a"
    )
    assert json.loads(write(message)) == {
        "type": "http_proxy_request",
        "request_id": "r",
        "method": "POST",
        "path": "/chat/completions",
        "headers": {"Accept": "*/*"},
        "stream": True,
        "body": base64.b64encode(b"{}a").decode(),
    }
    bare = json.loads(write(nfrx.Request(request_id="r", method="GET", path="/models")))
    assert set(bare) == {"type", "request_id", "method", "path", "headers"}


@pytest.mark.parametrize("data", ["not base64", "AAA", 7, None, ["AA=="]])
def test_a_chunk_that_is_not_base64_names_its_request(data: object) -> None:
    text = json.dumps({"type": "http_proxy_response_chunk", "request_id": "r7", "data": data})
    with pytest.raises(NfrxError) as caught:
        read_agent(text)
    assert caught.value.request_id == "r7"


def test_deep_nesting_is_refused_not_survived_by_luck() -> None:
    with pytest.raises(NfrxError):
        read_agent('{"type":"register","models":' + "[" * 100_000 + "]" * 100_000 + "}")


def test_a_head_with_too_many_headers_is_refused() -> None:
    headers = {f"h{number}": "v" for number in range(nfrx.MAX_HEADERS + 1)}
    with pytest.raises(NfrxError, match="too many"):
        read_agent(json.dumps({"type": "http_proxy_response_headers", "request_id": "r", "headers": headers}))


def test_an_end_with_an_empty_error_has_failed_all_the_same() -> None:
    end = read_agent('{"type":"http_proxy_response_end","request_id":"r","error":{}}')
    assert isinstance(end, nfrx.ResponseEnd)
    assert end.failed


def test_an_order_whose_body_is_not_base64_names_its_request() -> None:
    with pytest.raises(NfrxError) as caught:
        read_server('{"type":"http_proxy_request","request_id":"r9","body":"%%%"}')
    assert caught.value.request_id == "r9"


@pytest.mark.parametrize("kind", ["job_request", "cancel_job", "models_update", "something new"])
def test_what_nobody_acts_on_is_read_and_written_by_its_type_alone(kind: str) -> None:
    other = nfrx.Other(type=kind)
    assert read_agent(write(other)) == read_server(write(other)) == other


@pytest.mark.parametrize("text", ["[]", "7", "null", '"register"'])
def test_only_objects_are_messages(text: str) -> None:
    for read in (read_agent, read_server):
        with pytest.raises(NfrxError, match="not a JSON object"):
            read(text)
