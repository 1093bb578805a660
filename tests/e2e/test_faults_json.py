"""Faults of JSON bodies (J): each P0 case of the catalogue by its number, against real processes."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from fleetproxy.testing.raw import request
from fleetproxy.testing.script import Keep, Send, response
from fleetproxy.testing.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

CASES = {
    "J-1": "test_j01_deep_nesting_is_400_at_once",
    "J-2": "test_j02_what_is_not_utf8_json_is_400",
    "J-3": "test_j03_numbers_that_are_none_are_400",
    "J-4": "test_j04_two_readers_must_not_see_two_models",
    "J-5": "test_j05_wrong_types_of_what_we_depend_on_are_400",
    "J-8": "test_j08_names_are_opaque_everywhere",
}
PATHS = ["/api/chat", "/v1/chat/completions", "/v1/messages", "/api/embed"]
#: Paths of control that read JSON before they know who asks: malformed bodies must be 400 (or 401), never 500.
CONTROL = ["/api/auth/login", "/api/auth/setup"]


async def refused(stage: Stage, path: str, body: bytes) -> None:
    answer = await stage.ask(path, body)
    assert answer.status == 400, (answer.status, answer.body[:200])
    assert stage.seen() == 0
    value = json.loads(answer.body)
    assert value["error"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000, b'{"model":"m","x":' + b"[" * 100_000])
async def test_j01_deep_nesting_is_400_at_once(stage: Stage, path: str, deep: bytes) -> None:
    started = time.monotonic()
    await refused(stage, path, deep)
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("path", CONTROL)
@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b"\xff\xfe", b"", b"{", b"[1]", b'{"username":NaN}', b'{"username":1e999}', b"null", b'"x"'],
)
async def test_j01_control_answers_malformed_bodies_with_400(stage: Stage, path: str, body: bytes) -> None:
    async with await stage.connect() as client:
        await client.send(request("POST", path, body, [("Origin", f"http://localhost:{stage.service.port}")]))
        assert (await client.answer()).status in {400, 401, 403}


NOT_JSON = {
    "invalid byte": b'{"model":"m\xff"}',
    "overlong slash": b'{"model":"m\xc0\xaf"}',
    "surrogate bytes": b'{"model":"\xed\xa0\x80"}',
    "cut character": b'{"model":"m\xe6\x9d"}',
    "byte order mark": b'\xef\xbb\xbf{"model":"m"}',
    "UTF-16": '{"model":"m"}'.encode("utf-16"),
    "UTF-16 big": '{"model":"m"}'.encode("utf-16-be"),
    "UTF-32": '{"model":"m"}'.encode("utf-32"),
    "truncated": b'{"model":"m"',
    "trailing comma": b'{"model":"m",}',
    "two documents": b'{"model":"m"}{"model":"m"}',
    "trailing bytes": b'{"model":"m"} x',
    "single quotes": b"{'model':'m'}",
    "comment": b'{"model":"m"/* */}',
    "bare word": b"model",
    "unquoted key": b'{model:"m"}',
    "control character": b'{"model":"m\n"}',
    "NUL": b'{"model":"m"}\0',
    "bad escape": b'{"model":"\\x6d"}',
    "half surrogate escape": b'{"model":"\\ud800"}',
    "array": b'["m"]',
    "string": b'"m"',
    "number": b"1",
    "null": b"null",
    "space": b"   ",
}


@pytest.mark.parametrize("what", NOT_JSON)
async def test_j02_what_is_not_utf8_json_is_400(stage: Stage, what: str) -> None:
    for path in PATHS[:2]:
        await refused(stage, path, NOT_JSON[what])


@pytest.mark.parametrize(
    "number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"01", b"+1", b".5", b"1.", b"0x10", b"1_000", b"- 1"]
)
async def test_j03_numbers_that_are_none_are_400(stage: Stage, number: bytes) -> None:
    for path in PATHS[:2]:
        await refused(stage, path, b'{"model":"m","temperature":%b}' % number)


async def test_j03_a_five_thousand_digit_number_does_no_harm(stage: Stage) -> None:
    answer = await stage.ask(body=b'{"model":"m","seed":%b}' % (b"9" * 5000))
    assert answer.status in {200, 400}


DUPLICATES = [
    b'{"model":"m","model":"solo"}',
    b'{"model":"m","MODEL":"solo"}',
    b'{"Model":"solo","model":"m"}',
    b'{"model":"m","mod\\u0065l":"solo"}',
    b'{"model":"m","stream":false,"Stream":true}',
    b'{"model":"m","stream":false,"stream":true}',
    b'{"model":"m","messages":[],"\\u006dodel":"solo"}',
]


@pytest.mark.parametrize("body", DUPLICATES)
async def test_j04_two_readers_must_not_see_two_models(stage: Stage, body: bytes) -> None:
    await refused(stage, "/api/chat", body)
    await refused(stage, "/v1/chat/completions", body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"\\"model\\":\\"x\\""}]}',
        b'{"model":"m","tools":[{"function":{"parameters":{"properties":{"model":{}}}}}]}',
        b'{"model":"m","options":{"MODEL":1},"messages":[]}',
        b'{ "messages" : [ {"model":"inner"} ] , "model" : "m" }',
    ],
)
async def test_j04_models_further_down_are_none_of_our_business(stage: Stage, body: bytes) -> None:
    answer = await stage.ask(body=body)
    assert answer.status == 200
    assert stage["a"].requests[0].body == body


WRONG: list[bytes] = [
    b'{"model":null}',
    b'{"model":["m"]}',
    b'{"model":{"m":1}}',
    b'{"model":1}',
    b'{"model":"%b"}' % (b"m" * 1_000_000),
    b'{"model":"%b"}' % (b"m" * 300),
    b'{"model":"m","stream":"true"}',
    b'{"model":"m","stream":1}',
]


@pytest.mark.parametrize("body", WRONG, ids=lambda body: body[:32].decode())
async def test_j05_wrong_types_of_what_we_depend_on_are_400(stage: Stage, body: bytes) -> None:
    for path in PATHS[:2]:
        await refused(stage, path, body)


@pytest.mark.parametrize("body", [b'{"model":""}', b'{"messages":[]}'])
async def test_j05_a_request_without_a_model_is_for_any_server_to_answer(stage: Stage, body: bytes) -> None:
    for upstream in stage.upstreams.values():
        upstream.script = [Send(response(400, b'{"error":"model is required"}')), Keep()]
    answer = await stage.ask(body=body)
    assert (answer.status, answer.body) == (400, b'{"error":"model is required"}')
    assert stage.seen() == 1


NAMES = [
    "../../x",
    "a/b",
    "a%2fb",
    "a\nb",
    "\x1b[31mred",
    "\u202eltr",
    "🚀",
    "<img onerror=alert(1)>",
    "{{7*7}}",
    "' OR 1=1--",
    '"; drop table requests; --',
    "$(id)",
    "a\u2028b",
    "%s%n{}",
    "x" * 250,
]


@pytest.mark.parametrize("name", NAMES)
async def test_j08_names_are_opaque_everywhere(stage: Stage, name: str) -> None:
    """A strange name is served like any other: routed, forwarded, listed, recorded, counted, logged in one line.

    One that cannot be printed is left out of what a server lists; asking for it does no harm.
    """
    listed = name.isprintable()
    stage["o"].models = ["omni", name] if listed else ["omni"]
    if not listed:
        entries = json.dumps({"data": [{"id": "omni"}, {"id": name}]}).encode()
        stage["o"].polls = {"/v1/models": [Send(response(body=entries)), Keep()]}
    for upstream in stage.upstreams.values():
        upstream.script = [Send(response(404, b'{"error":"model not found"}')), Keep()]
    if listed:
        stage["o"].script = [Send(response(body=b'{"ok":1}')), Keep()]
    await stage.all_online()
    body = json.dumps({"model": name, "messages": []}).encode()
    log = len(stage.service.text())
    answer = await stage.ask("/v1/chat/completions", body)
    assert answer.status == (200 if listed else 404)
    if listed:
        assert [seen.body for seen in stage["o"].requests] == [body]
    assert (await stage.record())["model"] == name
    assert (name in await asyncio.to_thread(stage.service.names, "/v1/models")) == listed
    nobody = await stage.ask("/api/chat", json.dumps({"model": f"{name}?"}).encode())
    assert nobody.status == 404
    metrics = await stage.look("/metrics")
    assert metrics.status in {200, 401}
    if metrics.status == 200:
        parse = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families
        assert list(parse(metrics.body.decode()))
    for line in stage.service.text()[log:].splitlines():
        json.loads(line)
