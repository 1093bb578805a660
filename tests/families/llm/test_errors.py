from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy import errors
from fleetproxy.core.backend import Dialect
from fleetproxy.core.operation import Endpoint
from fleetproxy.errors import FleetError
from fleetproxy.families.llm.errors import MAX_TEXT_CHARACTERS, body, event, is_model_missing, message_of
from fleetproxy.families.registry import find
from fleetproxy.wire.tap import Tap

DIALECTS: tuple[Dialect, ...] = ("ollama", "openai", "anthropic")


def all_errors() -> list[FleetError]:
    found = []
    for thing in vars(errors).values():
        if isinstance(thing, type) and issubclass(thing, FleetError):
            found.append(errors.ModelUnknown("phi") if thing is errors.ModelUnknown else thing())
    return found


ERRORS = all_errors()


def endpoint(path: str) -> Endpoint:
    found = find("POST", path)
    assert found is not None
    return found


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.code)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_error_has_its_dialects_shape(error: FleetError, dialect: Dialect) -> None:
    told = json.loads(body(dialect, error, "id-1"))
    assert str(error)
    match dialect:
        case "ollama":
            assert told == {"error": str(error)}
        case "openai":
            assert told["error"].keys() == {"message", "type", "param", "code"}
            assert (told["error"]["message"], told["error"]["code"]) == (str(error), error.code)
            assert told["request_id"] == "id-1"
        case "anthropic":
            assert told["type"] == "error"
            assert told["error"].keys() == {"type", "message"}
            assert (told["error"]["message"], told["request_id"]) == (str(error), "id-1")


@pytest.mark.parametrize(
    ("error", "openai", "anthropic"),
    [
        (errors.BadJson(), "invalid_request_error", "invalid_request_error"),
        (errors.Unauthorized(), "authentication_error", "authentication_error"),
        (errors.Forbidden(), "permission_error", "permission_error"),
        (errors.ModelUnknown("m"), "not_found_error", "not_found_error"),
        (errors.BodyTooLarge(), "invalid_request_error", "request_too_large"),
        (errors.RateLimited(), "rate_limit_error", "rate_limit_error"),
        (errors.QueueFull(), "api_error", "overloaded_error"),
        (errors.BackendLost(), "api_error", "api_error"),
    ],
)
def test_types_are_those_the_sdks_know(error: FleetError, openai: str, anthropic: str) -> None:
    assert json.loads(body("openai", error, ""))["error"]["type"] == openai
    assert json.loads(body("anthropic", error, ""))["error"]["type"] == anthropic


def test_ollamas_own_words_are_kept() -> None:
    assert body("ollama", errors.QueueFull(), "") == (
        b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'
    )
    assert body("ollama", errors.MissingBody(), "") == b'{"error":"missing request body"}'
    assert body("ollama", errors.NoBackend(), "") == b'{"error":"no online servers available"}'


def test_an_unknown_model_is_named_as_the_wrong_parameter() -> None:
    assert json.loads(body("openai", errors.ModelUnknown("m"), ""))["error"]["param"] == "model"


def test_more_keys_stand_in_ollamas_shape_only() -> None:
    error = errors.ModelUnknown("m")
    error.details = {"hint": "pull it"}
    assert json.loads(body("ollama", error, ""))["hint"] == "pull it"
    assert b"pull it" not in body("openai", error, "") + body("anthropic", error, "")


@given(st.text(max_size=60))
def test_no_text_breaks_out_of_its_event(text: str) -> None:
    for path in ("/api/chat", "/api/pull", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        told = event(endpoint(path), errors.BackendLost(text), "id")
        lines = [line for line in told.split(b"\n") if line]
        assert len(lines) == (2 if b"event: error" in told else 1)
        assert b"\r" not in told
        payload: Any = json.loads(lines[-1].removeprefix(b"data: "))
        inner = payload["error"] if isinstance(payload.get("error"), dict) else payload
        assert (text or str(errors.BackendLost())) in (inner.get("message"), inner.get("error"))


@pytest.mark.parametrize("path", ["/api/chat", "/api/pull", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("before", [b"", b"{}\n", b'data: {"x":1}\n\n', b'{"torn', b'data: {"torn'])
def test_our_own_event_is_read_as_an_error_wherever_the_stream_broke(path: str, before: bytes) -> None:
    tap = Tap(endpoint(path), True)
    tap.see(before)
    tap.see(event(endpoint(path), errors.BackendLost(), "id", mid_line=tap.mid_line))
    seen = tap.end()
    assert seen.terminal
    assert seen.error == str(errors.BackendLost())


def test_ndjson_has_no_blank_line() -> None:
    assert event(endpoint("/api/chat"), errors.BackendLost(), "id").startswith(b"{")
    assert b"\n\n" not in event(endpoint("/api/chat"), errors.BackendLost(), "id", mid_line=True)


def test_endpoints_without_a_stream_format_have_no_event() -> None:
    assert event(endpoint("/v1/rerank"), errors.BackendLost(), "id") == b""


def test_openai_streams_say_their_error_without_a_name() -> None:
    told = event(endpoint("/v1/chat/completions"), errors.BackendLost(), "id")
    assert b"event:" not in told
    assert b"[DONE]" not in told
    responses = json.loads(event(endpoint("/v1/responses"), errors.BackendLost(), "id").partition(b"data: ")[2])
    assert responses["type"] == "error"
    assert responses["code"] == "backend_lost"


@pytest.mark.parametrize(
    ("answer", "text", "missing"),
    [
        (b'{"error":"model \'phi\' not found"}', "model 'phi' not found", True),
        (b'{"error":"model \\"phi\\" not found, try pulling it first"}', None, True),
        (b'{"object":"error","message":"The model `phi` does not exist.","code":404}', None, True),
        (b'{"error":{"message":"The model `phi` does not exist.","type":"NotFoundError"}}', None, True),
        (b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}', "File Not Found", False),
        (b"404 page not found", "", False),
        (b'{"error":"blob not found"}', "blob not found", False),
        (b'{"detail":"Not Found"}', "", False),
        (b'{"error":null,"message":"x"}', "x", False),
        (b'{"error":5}', "", False),
        (b'{"error":"\xff"}', "", False),
        (b"[" * 100_000, "", False),
        (b"", "", False),
        (b'{"error":"' + b"x" * 5000 + b'"}', "x" * MAX_TEXT_CHARACTERS, False),
    ],
)
def test_backends_errors_are_read_in_every_shape(answer: bytes, text: str | None, missing: bool) -> None:
    if text is not None:
        assert message_of(answer) == text
    assert is_model_missing(answer) is missing


@given(st.binary(max_size=60))
def test_reading_an_error_never_raises(answer: bytes) -> None:
    assert isinstance(message_of(answer), str)
