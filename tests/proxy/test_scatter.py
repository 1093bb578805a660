"""Embeddings on many servers: the answer is the unsplit one, whatever fails on the way, and leaves one row."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from fleetproxy.core.table import Access, Limits, RoutedBackend, Snapshot
from fleetproxy.testing.raw import Answer, connect, request
from tests.proxy.conftest import snapshot_of
from tests.proxy.embedder import Embedder, Fate, embedded, whole

TEXTS = [f"text {number} \u00e9" for number in range(23)]
BODY = {"model": "m", "input": TEXTS}
WHOLE = embedded("/v1/embeddings", BODY)


def fleet(servers: Sequence[Embedder], sizes: Sequence[int | None], **more: Any) -> Snapshot:
    """All have the model; each takes so many inputs at once."""
    limit = more.pop("max_concurrent", None)
    snapshot = snapshot_of(servers, **more)  # type: ignore[arg-type]
    routed = tuple(
        RoutedBackend(
            backend=msgspec.structs.replace(entry.backend, embedding_batch_size=size, max_concurrent=limit),
            usable=True,
            online=True,
        )
        for entry, size in zip(snapshot.table.backends, sizes, strict=True)
    )
    return msgspec.structs.replace(snapshot, table=msgspec.structs.replace(snapshot.table, backends=routed))


async def ask(port: int, body: dict[str, Any], path: str = "/v1/embeddings", **headers: str) -> Answer:
    async with await connect("127.0.0.1", port) as client:
        await client.send(request("POST", path, json.dumps(body).encode(), list(headers.items())))
        return await client.answer(within_s=10)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/llm/v1/embeddings", "/api/embed"])
@pytest.mark.parametrize("sizes", [(4,), (4, 4), (8, 2, 3), (5, None)])
async def test_the_answer_is_the_unsplit_one(start, path, sizes):
    body = {"model": "m", "input": TEXTS, "dimensions": 3, "user": "\u00fc"}
    plain = path.removeprefix("/api/llm")
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Embedder()) for _ in sizes]
        running = await stack.enter_async_context(start(fleet(servers, sizes)))
        for _ in range(3):
            answer = await ask(running.port, body, path)
            assert answer.status == 200
            assert json.loads(answer.body) == embedded(plain, body)
        rows = running.records()
        assert len(rows) == 3
        for row in rows:
            assert (row.status, row.outcome, row.endpoint, row.retries) == (200, "ok", path, 0)
            assert row.tokens_in == sum(len(json.dumps(text)) for text in TEXTS)
            assert sum(attempt.status == 200 for attempt in row.attempts) == len(row.attempts) > 0
        for server, size in zip(servers, sizes, strict=True):
            for asked in server.requests:
                assert size is None or len(asked.inputs) <= size
                assert {**json.loads(asked.body), "input": TEXTS} == body
                assert asked.target == plain


async def test_base64_and_token_arrays_are_put_together_too(start):
    async with Embedder() as one, Embedder() as two:
        async with start(fleet([one, two], [2, 2])) as running:
            for inputs in (TEXTS, [[1, 2, 3], [4], [5, 6], [7], [8]]):
                body = {"model": "m", "input": inputs, "encoding_format": "base64"}
                answer = await ask(running.port, body)
                assert json.loads(answer.body) == embedded("/v1/embeddings", body)
                assert int(answer.header("x-fleet-slices") or 0) > 2
                assert answer.header("x-fleet-backend") == "s0, s1"


@pytest.mark.parametrize("given", ["one text", [1, 2, 3, 4, 5], ["a", "b"], [], ["a"], None, {"x": 1}])
async def test_what_fits_goes_through_as_it_came(start, given):
    async with Embedder() as server:
        server.fate = lambda asked: whole(b'{"odd": 1.50}')
        async with start(fleet([server], [2])) as running:
            body = b'{ "input" :%b,\t"model":"m" }' % json.dumps(given).encode()
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/v1/embeddings", body, []))
                answer = await client.answer()
            assert (answer.body, answer.header("x-fleet-slices")) == (b'{"odd": 1.50}', None)
            assert [asked.body for asked in server.requests] == [body]


@pytest.mark.parametrize(("size", "more"), [(None, {}), (2, {"Input": ["x"]}), (23, {})])
async def test_some_requests_are_not_split_at_all(start, size, more):
    """No size said; two spellings of which a server reads one; no more than it takes."""
    async with Embedder() as server:
        async with start(fleet([server], [size])) as running:
            assert (await ask(running.port, {**BODY, **more})).status == 200
            assert [len(asked.inputs) for asked in server.requests] == [len(TEXTS)]


REFUSALS: dict[str, Fate] = {
    "reset": "reset",
    "closed": "close",
    "500": whole(b'{"error":"x"}', 500),
    "503": whole(b"{}", 503),
    "model missing": whole(b'{"error":"model \'m\' not found"}', 404),
    "no vectors": whole(b'{"object":"list","data":[]}'),
    "not json": whole(b"<html>"),
}


@pytest.mark.parametrize("fault", REFUSALS)
@pytest.mark.parametrize("sizes", [(4, 4), (4, None)])
async def test_a_failed_slice_goes_to_another_server_and_to_no_other_twice(start, fault, sizes):
    async with Embedder() as bad, Embedder() as good:
        bad.fate = lambda asked: REFUSALS[fault]
        async with start(fleet([bad, good], sizes)) as running:
            for _ in range(4):
                answer = await ask(running.port, BODY)
                assert (answer.status, json.loads(answer.body)) == (200, WHOLE)
            rows = running.records()
            assert len(rows) == 4
            assert any(row.retries for row in rows)
            for row in rows:
                failed = [attempt for attempt in row.attempts if attempt.error]
                assert {attempt.backend for attempt in failed} <= {"s0"}
                assert row.retries == len(failed)
                assert (row.outcome, row.error) == ("ok", None)
            assert running.plane.budget.held_bytes == 0


async def test_a_slice_that_broke_off_is_not_asked_for_again(start):
    async with Embedder() as bad, Embedder() as good:
        bad.fate = lambda asked: whole(b'{"data":[', length=4000)
        async with start(fleet([bad, good], [4, 4], limits=Limits(first_byte_s=0.5))) as running:
            answer = await ask(running.port, BODY)
            assert answer.status in (502, 504)
            [row] = running.records()
            assert (row.outcome, row.retries) == ("backend_error", 0)


async def test_refused_by_everybody_is_one_error_in_the_dialects_shape(start):
    async with Embedder() as one, Embedder() as two:
        one.fate = two.fate = lambda asked: "reset"
        async with start(fleet([one, two], [4, 4])) as running:
            answer = await ask(running.port, BODY)
            assert (answer.status, json.loads(answer.body)["error"]["type"]) == (502, "api_error")
            answer = await ask(running.port, BODY, "/api/llm/v1/embeddings")
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_error")
            for row in running.records():
                assert (row.outcome, row.error, row.status) == ("backend_error", "backend_reset", 502)


async def test_nobody_having_the_model_after_all_is_not_found(start):
    async with Embedder() as one, Embedder() as two:
        one.fate = two.fate = lambda asked: REFUSALS["model missing"]
        async with start(fleet([one, two], [4, 4])) as running:
            answer = await ask(running.port, BODY)
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("status", [400, 401, 413, 422, 429])
async def test_a_servers_own_refusal_is_told_once_and_nothing_is_asked_again(start, status):
    refusal = b'{"error":{"message":"the input is too long","type":"invalid_request_error"}}'
    async with Embedder() as one, Embedder() as two:
        one.fate = two.fate = lambda asked: whole(refusal, status)
        async with start(fleet([one, two], [4, 4])) as running:
            answer = await ask(running.port, BODY)
            assert (answer.status, answer.body) == (status, refusal)
            [row] = running.records()
            assert (row.status, row.retries, row.outcome) == (status, 0, "ok")
            assert len(one.requests) + len(two.requests) <= 4, "no more than had begun"


async def test_the_only_servers_500_is_its_own_answer(start):
    async with Embedder() as server:
        server.fate = lambda asked: whole(b'{"error":"boom"}', 500)
        async with start(fleet([server], [4])) as running:
            answer = await ask(running.port, BODY)
            assert (answer.status, answer.body) == (500, b'{"error":"boom"}')


async def test_a_caller_who_leaves_takes_every_slice_with_him(start):
    async with Embedder() as one, Embedder() as two:
        one.fate = two.fate = lambda asked: "stall"
        async with start(fleet([one, two], [4, 4])) as running:
            async with await connect("127.0.0.1", running.port) as client:
                await client.send(request("POST", "/v1/embeddings", json.dumps(BODY).encode(), []))
                await until(lambda: len(one.requests) + len(two.requests) == 4)
            await running.settled()
            await until(lambda: all(asked.abandoned for asked in one.requests + two.requests))
            [row] = running.records()
            assert (row.outcome, row.status, len(row.attempts)) == ("client_gone", 499, 4)
            assert running.plane.budget.held_bytes == 0


async def test_silence_ends_all_of_it_with_one_504(start):
    async with Embedder() as one, Embedder() as two:
        two.fate = lambda asked: "stall"
        async with start(fleet([one, two], [4, 4], limits=Limits(first_byte_s=0.3))) as running:
            answer = await ask(running.port, BODY)
            assert answer.status == 504
            [row] = running.records()
            assert (row.error, row.outcome) == ("backend_timeout", "backend_error")
            await until(lambda: all(asked.abandoned for asked in two.requests))


async def test_slots_are_kept_to_and_given_back(start):
    most = {0: 0, 1: 0}

    async def count(running: Any) -> None:
        while True:
            for column, seen in most.items():
                most[column] = max(seen, running.plane.board.load(column))
            await asyncio.sleep(0)

    async with Embedder() as one, Embedder() as two:
        async with start(fleet([one, two], [1, 2], max_concurrent=2)) as running:
            counting = asyncio.ensure_future(count(running))
            answer = await ask(running.port, BODY)
            counting.cancel()
            assert (answer.status, json.loads(answer.body)) == (200, WHOLE)
            assert most == {0: 2, 1: 2}


async def test_more_answers_than_the_process_may_hold_are_refused_and_let_go(start):
    async with Embedder() as server:
        async with start(fleet([server], [4], limits=Limits(buffered_bytes=2000))) as running:
            answer = await ask(running.port, BODY)
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "overloaded")
            assert running.plane.budget.held_bytes == 0


async def test_the_name_a_server_knows_the_model_by_is_in_every_slice(start):
    async with Embedder(("org/M", "m"), kind="openai") as server:
        async with start(fleet([server], [4], aliases={"nick": "org/M"})) as running:
            answer = await ask(running.port, {"input": TEXTS, "model": "nick"})
            assert (answer.status, json.loads(answer.body)["data"]) == (200, WHOLE["data"])
            assert {json.loads(asked.body)["model"] for asked in server.requests} == {"org/M"}


async def test_servers_are_not_asked_for_compressed_slices_and_not_named_when_hidden(start):
    async with Embedder() as server:
        async with start(fleet([server], [4], access=Access(hide_backends=True))) as running:
            answer = await ask(running.port, BODY, **{"Accept-Encoding": "gzip", "X-A": "b"})
            assert answer.status == 200
            assert answer.header("x-fleet-backend") is None
            assert all("accept-encoding" not in asked.headers for asked in server.requests)
            assert all(asked.headers["x-a"] == "b" for asked in server.requests)


async def test_a_large_answer_arrives_whole(start):
    async with Embedder() as one, Embedder() as two:
        body = {"model": "m", "input": [f"{number}" for number in range(6000)]}
        async with start(fleet([one, two], [512, 512])) as running:
            answer = await ask(running.port, body)
            assert answer.clean
            assert json.loads(answer.body) == embedded("/v1/embeddings", body)
            [row] = running.records()
            assert row.bytes_out == len(answer.body) > 256 * 1024


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
