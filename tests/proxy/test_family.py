"""`/api/llm` on the public port: who may come in, whom a path means, what is listed, what is said when it fails."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

from fleetproxy.core.table import Access, Principal
from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import Answer, connect, request
from fleetproxy.testing.script import LAST_CHUNK, SSE_HEAD, Keep, Rst, Send, chunk, response
from tests.proxy.conftest import snapshot_of

CHAT = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
OK = [Send(response(body=b'{"choices":[]}')), Keep()]
PATH = "/api/llm/v1/chat/completions"
KEY = {hashlib.sha256(b"secret").digest(): Principal(name="api key")}
CLOSED = Access(families_required=True)


async def ask(port: int, path: str = PATH, body: bytes | None = CHAT, method: str = "POST", **headers: str) -> Answer:
    async with await connect("127.0.0.1", port) as client:
        pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
        await client.send(request(method, path, body, pairs))
        return await client.answer(method=method)


def code(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"])


async def test_a_request_reaches_a_server_at_the_plain_path(start):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port)
            assert (answer.status, answer.body) == (200, b'{"choices":[]}')
            assert upstream.requests[0].target == "/v1/chat/completions"
            assert upstream.requests[0].body == CHAT
            [row] = running.records()
            assert (row.endpoint, row.path, row.family, row.dialect) == (PATH, PATH, "llm", "openai")


async def test_a_key_is_needed_once_there_is_one(start):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream], access=CLOSED, principals=KEY)) as running:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
                for path, body, method in ((PATH, CHAT, "POST"), ("/api/llm/v1/models", None, "GET")):
                    answer = await ask(running.port, path, body, method, **headers)
                    assert (answer.status, code(answer)) == (401, "unauthorized")
            assert not upstream.requests
            for scheme in ("Bearer", "bearer"):
                assert (await ask(running.port, Authorization=f"{scheme} secret")).status == 200
            answer = await ask(running.port, "/api/llm/v1/models", None, "GET", Authorization="Bearer secret")
            assert answer.status == 200
            # The main surface has a rule of its own.
            assert (await ask(running.port, "/v1/chat/completions")).status == 200


async def test_without_a_configured_key_everybody_may_come_with_any(start):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream])) as running:
            assert (await ask(running.port, Authorization="Bearer whatever")).status == 200
            assert (await ask(running.port, X_User_Roles="nobody")).status == 200


@pytest.mark.parametrize("proxies", [("127.0.0.0/8",), ("10.0.0.0/8",), ()])
async def test_roles_stand_for_the_key_when_a_trusted_proxy_says_them(start, proxies):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        access = Access(families_required=True, api_http_roles=("llm-user",), trusted_proxies=proxies)
        async with start(snapshot_of([upstream], access=access)) as running:
            status = 200 if proxies == ("127.0.0.0/8",) else 401
            assert (await ask(running.port, X_User_Roles="ops, llm-user")).status == status
            assert (
                await ask(running.port, "/api/llm/v1/models", None, "GET", X_User_Roles="llm-user")
            ).status == status
            assert (await ask(running.port, X_User_Roles="LLM-user")).status == 401
            assert all(seen.header("x-user-roles") is None for seen in upstream.requests)


async def test_a_family_that_is_off_is_not_there(start):
    async with FaultUpstream() as upstream:
        upstream.script = OK
        async with start(snapshot_of([upstream], access=Access(plugins=("mcp",)))) as running:
            for path, method in ((PATH, "POST"), ("/api/llm/v1/models", "GET"), ("/api/llm", "GET")):
                answer = await ask(running.port, path, CHAT if method == "POST" else None, method)
                assert answer.status == 404
            assert (await ask(running.port, "/v1/chat/completions")).status == 200


async def test_a_wrong_method_is_told_which_are_right(start):
    async with start(snapshot_of([])) as running:
        answer = await ask(running.port, PATH, None, "GET")
        assert (answer.status, answer.header("allow")) == (405, "POST")
        answer = await ask(running.port, "/api/llm/v1/files")
        assert (answer.status, code(answer)) == (404, "not_found")


async def test_a_path_with_a_name_in_it_means_that_server_alone(start):
    async with FaultUpstream() as one, FaultUpstream() as two:
        one.script, two.script = [Rst()], OK
        access = Access(pin_fallback=True)
        async with start(snapshot_of([one, two], access=access)) as running:
            for _ in range(3):
                answer = await ask(running.port, "/api/llm/id/S1/v1/chat/completions")
                assert (answer.status, answer.header("x-fleet-backend")) == (200, "s1")
            assert not one.requests
            answer = await ask(running.port, "/api/llm/id/s0/v1/chat/completions")
            assert (answer.status, code(answer)) == (502, "upstream_error")
            answer = await ask(running.port, "/api/llm/id/s9/v1/chat/completions")
            assert (answer.status, code(answer)) == (404, "no_worker")
            assert len(two.requests) == 3
            answer = await ask(running.port, "/api/llm/id/s9/v1/models", None, "GET")
            assert (answer.status, code(answer)) == (404, "no_worker")


async def test_lists_name_their_owners(start):
    async with FaultUpstream(("m", "org/name:tag")) as one, FaultUpstream(("m",)) as two:
        snapshot = msgspec.structs.replace(snapshot_of([one, two]), first_seen_s={"m": 5, "org/name:tag": 6})
        async with start(snapshot) as running:
            m = {"id": "m", "object": "model", "created": 5, "owned_by": "s0,s1"}
            other = {"id": "org/name:tag", "object": "model", "created": 6, "owned_by": "s0"}
            answer = await ask(running.port, "/api/llm/v1/models", None, "GET")
            assert json.loads(answer.body) == {"object": "list", "data": [m, other]}
            answer = await ask(running.port, "/api/llm/id/s1/v1/models", None, "GET")
            assert json.loads(answer.body)["data"] == [m | {"owned_by": "s1"}]
            for name in ("org/name:tag", "org%2Fname%3Atag", "org/name%3atag"):
                for prefix in ("/api/llm", "/api/llm/id/s0"):
                    answer = await ask(running.port, f"{prefix}/v1/models/{name}", None, "GET")
                    assert json.loads(answer.body) == other
            answer = await ask(running.port, "/api/llm/v1/models/gone", None, "GET")
            assert (answer.status, code(answer)) == (404, "model_not_found")
            assert running.records() == []


async def test_a_broken_stream_ends_with_nfrxs_word(start):
    async with FaultUpstream() as upstream:
        upstream.script = [Send(SSE_HEAD + chunk(b'data: {"choices":[]}\n\n')), Rst()]
        async with start(snapshot_of([upstream])) as running:
            answer = await ask(running.port, body=b'{"model":"m","messages":[],"stream":true}')
            assert not answer.clean
            last = answer.body.strip().split(b"\n\n")[-1]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
            assert LAST_CHUNK not in answer.body


async def test_the_descriptor_is_for_everybody(start):
    snapshot = msgspec.structs.replace(snapshot_of([], access=CLOSED), bodies={"/api/llm": b'{"id":"llm"}\n'})
    async with start(snapshot) as running:
        for path in ("/api/llm", "/api/llm/"):
            answer = await ask(running.port, path, None, "GET")
            assert (answer.status, answer.body) == (200, b'{"id":"llm"}\n')
        assert (await ask(running.port, "/api/llm")).status == 405
        assert (await ask(running.port, "/api/asr", None, "GET")).status == 404


async def test_draining_is_said_in_nfrxs_word(start):
    async with start(snapshot_of([])) as running:
        running.plane.draining = True
        for path, body, method in ((PATH, CHAT, "POST"), ("/api/llm/v1/models", None, "GET")):
            answer = await ask(running.port, path, body, method)
            assert (answer.status, code(answer)) == (503, "draining")
