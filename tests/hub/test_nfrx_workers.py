"""Stock nfrx agents at the hub: what they send, what they get, what they cannot break."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
from typing import Any

import pytest
from hub_house import Basin, House, Nfrx, chat, keyed, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fleetproxy.errors import (
    BackendLost,
    BackendReset,
    BadResponse,
    BodyTooLarge,
    ConnectFailed,
    WorkerBusy,
    WorkerRefused,
)
from fleetproxy.hub import nfrx_link, session
from fleetproxy.settings import Settings
from fleetproxy.settings.model import Auth, ClientKey
from fleetproxy.transport.base import Call


async def test_a_request_reaches_the_worker_as_the_stock_server_sends_it(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    lines = (
        b"content-type: application/json\r\naccept: */*\r\nauthorization: Bearer secret\r\nx-request-id: r-1\r\n"
        b"user-agent: test\r\ncookie: a=b\r\n"
    )
    body = b'{"model":"m","stream":true}'
    call = Call(method=b"POST", target=b"/v1/chat/completions", header_lines=lines, body=body)
    asking = asyncio.ensure_future(proxy.ask(call))
    order = await agent.order()
    request_id = order.pop("request_id")
    assert order == {
        "type": "http_proxy_request",
        "method": "POST",
        "path": "/chat/completions",
        "headers": {
            "Content-Type": "application/json",
            "Accept": "*/*",
            "User-Agent": "test",
            "X-Request-Id": "r-1",
            "Cache-Control": "no-store",
        },
        "stream": True,
        "body": base64.b64encode(body).decode(),
    }
    await agent.answer({"request_id": request_id}, b"hello")
    assert await asking == (200, b"hello")


async def test_pieces_arrive_as_they_are_sent_and_in_order(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    upstream = await proxy.transport.open(proxy.backend(), chat(), 1.0)
    order = await agent.order()
    await agent.head(order, **{"Content-Type": "text/event-stream", "X-Custom": "1"})
    await agent.chunk(order, b"data: 1\n\n")
    answer = await upstream.answer()
    assert (answer.status, dict(answer.headers)[b"x-custom"]) == (200, b"1")
    sink = Basin()
    upstream.pipe(sink)
    for number in range(2, 5):
        await agent.chunk(order, b"data: %d\n\n" % number)
        await until(lambda number=number: len(sink.pieces) == number)
    await agent.end(order)
    assert await sink.whole == b"data: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n"
    upstream.close()
    assert proxy.hub.open_streams == 0


async def test_sixty_four_answers_interleaved_in_random_order_keep_each_their_own(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy, max_concurrency=64)
    rng = random.Random(3)
    asking = [asyncio.ensure_future(proxy.ask(chat(b'{"n":%d}' % n))) for n in range(64)]
    orders = [await agent.order() for _ in asking]
    parts = {}
    for order in orders:
        await agent.head(order)
        number = base64.b64decode(order["body"])
        parts[order["request_id"]] = [(order, number + b"/%d;" % part) for part in range(5)]
    while parts:
        request_id = rng.choice(list(parts))
        order, data = parts[request_id].pop(0)
        await agent.chunk(order, data)
        if not parts[request_id]:
            del parts[request_id]
            await agent.end(order)
    for number, answer in enumerate(await asyncio.gather(*asking)):
        assert answer == (200, b"".join(b'{"n":%d}/%d;' % (number, part) for part in range(5)))


async def test_a_body_larger_than_the_window_is_collected_and_sent_whole(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    body = random.Random(1).randbytes(900_000)
    asking = asyncio.ensure_future(proxy.ask(chat(body)))
    order = await agent.order()
    assert base64.b64decode(order["body"]) == body
    await agent.answer(order, body[:500_000])
    assert await asking == (200, body[:500_000])


async def test_a_body_this_protocol_cannot_carry_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_BODY_BYTES", 1000)
    proxy = await house.proxy()
    await house.nfrx(proxy)
    with pytest.raises(BodyTooLarge):
        await proxy.ask(chat(bytes(1001)))
    streamed = Call(method=b"POST", target=b"/v1/x", header_lines=b"", body=None)
    upstream = await proxy.transport.open(proxy.backend(), streamed, 1.0)
    upstream.write(bytes(1001))
    with pytest.raises(BodyTooLarge):
        await upstream.answer()
    upstream.close()


async def test_only_v1_paths_are_taken(house: House) -> None:
    proxy = await house.proxy()
    await house.nfrx(proxy)
    with pytest.raises(WorkerRefused):
        await proxy.ask(chat(target=b"/api/chat"))


async def test_more_than_max_concurrency_is_refused_exactly(house: House) -> None:
    proxy, other = await house.proxy(0), await house.proxy(1)
    agent = await house.nfrx(proxy, max_concurrency=2)
    await until(lambda: other.hub.workers)
    asking = [asyncio.ensure_future(side.ask(chat())) for side in (proxy, other)]
    orders = [await agent.order(), await agent.order()]
    for side in (proxy, other):
        with pytest.raises(WorkerBusy):
            await side.ask(chat())
    await agent.answer(orders[0], b"1")
    await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    again = asyncio.ensure_future(proxy.ask(chat()))
    await agent.answer(await agent.order(), b"3")
    assert await again == (200, b"3")
    await agent.answer(orders[1], b"2")
    assert sorted(await asyncio.gather(*asking)) == [(200, b"1"), (200, b"2")]


async def test_a_worker_that_advertises_no_concurrency_gets_nothing(house: House) -> None:
    proxy = await house.proxy()
    await house.nfrx(proxy, max_concurrency=0, models=None)
    assert proxy.worker().offer.slots == 0
    with pytest.raises(WorkerRefused):
        await proxy.ask(chat())


@pytest.mark.parametrize("max_concurrency", [-1, 10**9, 2.0, "2", None, 1.5])
async def test_absurd_concurrencies_are_clamped(house: House, max_concurrency: Any) -> None:
    proxy = await house.proxy()
    await house.nfrx(proxy, max_concurrency=max_concurrency)
    expected = {10**9: 1024, 2.0: 2}.get(max_concurrency, 0) if isinstance(max_concurrency, (int, float)) else 0
    assert proxy.worker().offer.max_concurrency == expected


async def test_a_status_update_replaces_models_and_merges_the_host(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy, agent_config={"hostname": "box", "embedding_batch_size": "16"})
    assert proxy.worker().offer.embedding_batch_size == 16
    await agent.send(
        type="status_update", max_concurrency=5, models=["a", "b", "a", 7], agent_config={"os_name": "linux"}
    )
    await until(lambda: proxy.worker().offer.models == ("a", "b"))
    offer = proxy.worker().offer
    assert (offer.max_concurrency, offer.embedding_batch_size) == (5, 0)
    assert (offer.host.hostname, offer.host.os_name) == ("box", "linux")
    await agent.send(type="status_update", max_concurrency=5)
    await agent.send(type="status_update", max_concurrency=4, models=[])
    await until(lambda: proxy.worker().offer.max_concurrency == 4)
    assert proxy.worker().offer.models == ()


async def test_drain_lets_what_runs_finish_and_gives_nothing_new(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.send(type="status_update", status="draining", max_concurrency=0)
    await until(lambda: proxy.worker().offer.status == "draining")
    with pytest.raises(WorkerRefused):
        await proxy.ask(chat())
    await agent.answer(order, b"done")
    assert await asking == (200, b"done")
    await agent.socket.close(1000, "drained")
    await until(lambda: not proxy.hub.workers)


async def test_a_worker_that_refuses_because_it_drains_may_be_passed_over(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.head(order, 503)
    await agent.end(order, "worker_draining", "worker is draining")
    with pytest.raises(WorkerRefused) as refused:
        await asking
    assert refused.value.resendable


async def test_an_error_before_the_first_byte_is_no_answer(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.head(order, 200)
    await agent.end(order, "upstream_error", "dial tcp 10.0.0.3:11434: connection refused")
    with pytest.raises(BackendReset) as failed:
        await asking
    assert "10.0.0.3" not in str(failed.value)


async def test_an_error_after_the_first_byte_breaks_the_answer_visibly(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.head(order)
    await agent.chunk(order, b"half")
    await agent.end(order, "upstream_error", "read: reset")
    with pytest.raises(BackendLost):
        await asking


async def test_the_agents_own_502_with_its_text_goes_through(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.head(order, 502)
    await agent.chunk(order, b'{"error":"refused"}')
    await agent.end(order)
    assert await asking == (502, b'{"error":"refused"}')


@pytest.mark.parametrize("begun", [False, True])
async def test_a_lost_worker_fails_its_requests_at_once(house: House, begun: bool) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    if begun:
        await agent.head(order)
        await agent.chunk(order, b"half")
    await agent.socket.close()
    with pytest.raises(BackendLost if begun else BackendReset):
        await asking
    await until(lambda: not proxy.hub.workers)
    assert not house.hub.workers.find(2048, "w1")


async def test_a_lost_workers_requests_take_no_memory_any_more(house: House) -> None:
    """Neither the body that was being collected for it, nor answers its callers had not taken."""
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    held = house.hub.sessions.held
    answering = await proxy.transport.open(proxy.backend(), chat(), 1.0)
    order = await agent.order()
    await agent.head(order)
    for _ in range(10):
        await agent.chunk(order, bytes(100_000))
    half = Call(method=b"POST", target=b"/v1/x", header_lines=b"", body=None, content_length=200_000)
    asking = await proxy.transport.open(proxy.backend(), half, 1.0)
    asking.write(bytes(100_000))
    await until(lambda: held.collecting == 100_000 and held.answers > 0)
    await agent.socket.close()
    await until(lambda: not house.hub.workers.connected("llm", "w1"))
    assert (held.collecting, held.answers) == (0, 0)
    answering.close()
    asking.close()


async def test_a_route_to_a_worker_that_has_left_says_so_before_anything_was_sent(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    backend = proxy.backend()
    await agent.socket.close()
    await until(lambda: not proxy.hub.workers)
    other = await house.nfrx(proxy, worker_id="w2")
    upstream = await proxy.transport.open(backend, chat(), 1.0)
    with pytest.raises(ConnectFailed):
        await upstream.answer()
    assert other.id == "w2"


async def test_a_caller_that_leaves_cancels_the_request_and_late_messages_are_ignored(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy, max_concurrency=1)
    upstream = await proxy.transport.open(proxy.backend(), chat(), 1.0)
    order = await agent.order()
    upstream.close()
    assert await agent.order() == {"type": "http_proxy_cancel", "request_id": order["request_id"]}
    await agent.answer(order, b"late")
    asking = asyncio.ensure_future(proxy.ask(chat()))
    await agent.answer(await agent.order(), b"next")
    assert await asking == (200, b"next")
    assert house.hub.sessions.counts["late"] == 3
    assert house.hub.sessions.counts["violations"] == 0


async def test_a_proxy_process_that_dies_cancels_its_requests(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    (connection,) = house.hub.proxies._by_connection
    connection.abort()
    assert (await agent.order())["type"] == "http_proxy_cancel"
    with pytest.raises(BackendReset):
        await asking
    assert order["type"] == "http_proxy_request"


async def test_a_worker_cannot_answer_another_workers_request(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    thief = await house.nfrx(proxy, worker_id="w2", worker_name="thief")
    asking = asyncio.ensure_future(proxy.ask(chat(), "gpu"))
    order = await agent.order()
    await thief.answer(order, b"stolen")
    await until(lambda: house.hub.sessions.counts["foreign"] == 3)
    await agent.answer(order, b"mine")
    assert await asking == (200, b"mine")


@pytest.mark.parametrize("status", [0, 99, 101, 199, 600, 1000, -1, 2**31, None, "200", True])
async def test_impossible_statuses_fail_that_request_alone(house: House, status: Any) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    await agent.head(await agent.order(), status)
    with pytest.raises(BadResponse):
        await asking
    again = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    order = order if order["type"] == "http_proxy_request" else await agent.order()
    await agent.answer(order, b"fine")
    assert await again == (200, b"fine")


async def test_a_204_with_chunks_has_no_body(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    await agent.answer(await agent.order(), b"surplus", 204)
    assert await asking == (204, b"")


@pytest.mark.parametrize(
    "headers", [{"X-A": "1\r\nX-B: 2"}, {"X A": "1"}, {"X-A\n": "1"}, {"": "x"}, {"X-A": "\x00"}, {"X-A": "é" * 20000}]
)
async def test_headers_that_are_none_fail_that_request_alone(house: House, headers: dict[str, str]) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.head(order, 200, **headers)
    await agent.chunk(order, b"x")
    with pytest.raises(BadResponse):
        await asking
    assert (await agent.order())["type"] == "http_proxy_cancel"


@pytest.mark.parametrize(("announced", "sent"), [(3, b"four"), (5, b"four")])
async def test_a_length_that_was_not_true_breaks_the_answer(house: House, announced: int, sent: bytes) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.head(order, 200, **{"Content-Length": str(announced)})
    await agent.chunk(order, sent)
    await agent.end(order)
    with pytest.raises(BackendLost):
        await asking


async def test_an_answer_of_announced_length_is_whole_with_its_last_byte(house: House) -> None:
    """Its caller has read all of it and may be gone when the end message comes: that is no leaving in the middle."""
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.head(order, 200, **{"Content-Length": "4"})
    for piece in (b"fo", b"ur"):
        assert not asking.done()
        await agent.chunk(order, piece)
    assert await asking == (200, b"four")
    await agent.end(order)
    await until(lambda: not house.hub.workers.connected("llm", agent.id).streams)  # type: ignore[union-attr]
    assert house.hub.sessions.counts["violations"] == 0


async def test_data_that_is_not_base64_fails_that_request_alone(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.head(order)
    await agent.send(type="http_proxy_response_chunk", request_id=order["request_id"], data="%%%")
    with pytest.raises(BadResponse):
        await asking
    assert (await agent.order())["type"] == "http_proxy_cancel"


async def test_messages_out_of_order_are_ignored_and_counted(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    asking = asyncio.ensure_future(proxy.ask(chat()))
    order = await agent.order()
    await agent.chunk(order, b"too early")
    await agent.head(order, 200)
    await agent.head(order, 404)
    await agent.chunk(order, b"right")
    await agent.end(order)
    await agent.end(order)
    await agent.chunk(order, b"too late")
    await agent.send(type="job_result", job_id="j", data={})
    assert await asking == (200, b"right")
    await until(lambda: house.hub.sessions.counts["ignored"] == 1)
    assert house.hub.sessions.counts["violations"] == 2
    assert house.hub.sessions.counts["late"] == 2


async def test_too_many_violations_cost_the_socket(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    for number in range(101):
        await agent.end({"request_id": f"made-up-{number}"})
    assert await agent.closed() == (1002, "protocol")


async def test_a_slow_caller_pauses_nobody_and_is_given_up_past_the_bound(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nfrx_link, "MAX_HELD_BYTES", 512 * 1024)
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    slow = await proxy.transport.open(proxy.backend(), chat(b"slow"), 1.0)
    slow_order = await agent.order()
    await agent.head(slow_order)
    piece = bytes(32 * 1024)
    for _ in range(10):
        await agent.chunk(slow_order, piece)
    await slow.answer()
    # Beside it everything goes on.
    quick = asyncio.ensure_future(proxy.ask(chat(b"quick")))
    await agent.answer(await agent.order(), b"quick")
    assert await quick == (200, b"quick")
    assert house.hub.sessions.held.answers == 10 * len(piece) - 256 * 1024
    for _ in range(20):
        await agent.chunk(slow_order, piece)
    assert (await agent.order())["type"] == "http_proxy_cancel"
    assert house.hub.sessions.held.answers == 0
    with pytest.raises(BackendLost):
        await proxy.body(slow, await slow.answer())
    assert house.hub.sessions.counts["slow_caller"] == 1


async def test_a_caller_that_reads_late_gets_everything(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    upstream = await proxy.transport.open(proxy.backend(), chat(), 1.0)
    order = await agent.order()
    body = random.Random(2).randbytes(1_500_000)
    await agent.head(order)
    for at in range(0, len(body), 32768):
        await agent.chunk(order, body[at : at + 32768])
    await agent.end(order)
    answer = await upstream.answer()
    await until(lambda: house.hub.sessions.held.answers > 1_000_000)
    assert await proxy.body(upstream, answer) == body
    upstream.close()


async def test_a_paused_sink_gets_no_piece_until_it_resumes(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    upstream = await proxy.transport.open(proxy.backend(), chat(), 1.0)
    order = await agent.order()
    await agent.head(order)
    await agent.chunk(order, b"1")
    await upstream.answer()
    sink = Basin()
    upstream.pipe(sink)
    await until(lambda: sink.pieces == [b"1"])
    upstream.pause()
    await agent.chunk(order, b"2")
    await agent.end(order)
    other = asyncio.ensure_future(proxy.ask(chat()))
    await agent.answer(await agent.order(), b"")
    await other
    assert sink.pieces == [b"1"]
    upstream.resume()
    assert await sink.whole == b"12"


# --- coming in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    ["", "not json", "[]", '{"type":"heartbeat"}', '{"type":"register"', b"\x00\x01", "[" * 16000],
    ids=["empty", "text", "array", "heartbeat", "torn", "binary", "nested"],
)
async def test_who_does_not_register_first_is_closed_1008(house: House, first: str | bytes) -> None:
    async with connect(house.url, compression=None) as socket:
        await socket.send(first)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (1008, "expected register")
    assert len(house.hub.workers) == 0


async def test_silence_after_the_handshake_is_closed_at_the_deadline(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetproxy.hub.session.REGISTER_S", 0.02)
    async with connect(house.url, compression=None) as socket:
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (1008, "expected register")


KEY = keyed("k3y")


@pytest.mark.parametrize("house", [KEY], indirect=True)
@pytest.mark.parametrize(
    ("header", "message", "let_in"),
    [
        ("Bearer k3y", "", True),
        ("bearer  k3y ", "", True),
        (None, "k3y", True),
        ("Bearer wrong", "k3y", True),
        (None, "", False),
        ("Bearer wrong", "", False),
        (None, "wrong", False),
        ("k3y", "", False),
        ("Basic k3y", "", False),
    ],
)
async def test_the_client_key_opens_from_header_or_message(
    house: House, header: str | None, message: str, let_in: bool
) -> None:
    headers = {"Authorization": header} if header else {}
    async with connect(house.url, compression=None, additional_headers=headers) as socket:
        await socket.send(f'{{"type":"register","worker_id":"w","client_key":"{message}","max_concurrency":1}}')
        if let_in:
            await until(lambda: len(house.hub.workers) == 1)
        else:
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert (socket.close_code, socket.close_reason) == (1008, "unauthorized")
            assert len(house.hub.workers) == 0


@pytest.mark.parametrize(
    ("house", "let_in"), [(keyed(), False), (keyed(strict_client_key=False), True)], indirect=["house"]
)
async def test_a_key_where_none_is_configured_is_refused_only_when_strict(house: House, let_in: bool) -> None:
    async with connect(house.url, compression=None, additional_headers={"Authorization": "Bearer x"}) as socket:
        await socket.send('{"type":"register","worker_id":"w","max_concurrency":1}')
        if let_in:
            await until(lambda: len(house.hub.workers) == 1)
        else:
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_reason == "unauthorized"


ROLES = keyed("k3y", client_http_roles=("gpu-worker",), trusted_proxies=("127.0.0.0/8",))
STRANGERS_ROLES = keyed("k3y", client_http_roles=("gpu-worker",))


@pytest.mark.parametrize(("house", "let_in"), [(ROLES, True), (STRANGERS_ROLES, False)], indirect=["house"])
async def test_roles_open_only_through_a_trusted_proxy(house: House, let_in: bool) -> None:
    async with connect(house.url, compression=None, additional_headers={"X-User-Roles": "a, gpu-worker"}) as socket:
        await socket.send('{"type":"register","worker_id":"w","max_concurrency":1}')
        if let_in:
            await until(lambda: len(house.hub.workers) == 1)
        else:
            with pytest.raises(ConnectionClosed):
                await socket.recv()


@pytest.mark.parametrize("house", [KEY], indirect=True)
async def test_too_many_wrong_keys_shut_the_door_for_strangers_not_for_keys(house: House) -> None:
    async def knock(key: str) -> str:
        try:
            async with connect(
                house.url, compression=None, additional_headers={"Authorization": f"Bearer {key}"}
            ) as socket:
                await socket.send('{"type":"register","worker_id":"w","max_concurrency":1}')
                await socket.recv()
        except InvalidStatus as error:
            return str(error.response.status_code)
        except ConnectionClosed as error:
            return error.rcvd.reason if error.rcvd else ""
        return "in"

    assert [await knock("bad") for _ in range(11)] == ["unauthorized"] * 10 + ["429"]
    async with connect(house.url, compression=None, additional_headers={"Authorization": "Bearer k3y"}) as socket:
        await socket.send('{"type":"register","worker_id":"w","max_concurrency":1}')
        await until(lambda: len(house.hub.workers) == 1)


@pytest.mark.parametrize("house", [KEY], indirect=True)
async def test_a_stranger_may_send_only_little(house: House) -> None:
    async with connect(house.url, compression=None) as socket:
        await socket.send('{"type":"register","client_key":"k3y","worker_name":"' + "x" * 17_000 + '"}')
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1009


@pytest.mark.parametrize("house", [KEY], indirect=True)
async def test_who_has_shown_the_key_may_list_a_thousand_models(house: House) -> None:
    async with connect(house.url, compression=None, additional_headers={"Authorization": "Bearer k3y"}) as socket:
        models = ",".join(f'"some-model-{number}:7b"' for number in range(5000))
        await socket.send(f'{{"type":"register","worker_id":"w","max_concurrency":1,"models":[{models}]}}')
        await until(lambda: len(house.hub.workers) == 1)
        (connected,) = house.hub.workers
        assert len(connected.worker.offer.models) == 1000


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://rebound.example", "Host": "rebound.example"}, 403),
    ],
)
async def test_foreign_pages_stay_outside(house: House, headers: dict[str, str], status: int) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(house.url, compression=None, additional_headers=headers):
            pass
    assert refused.value.response.status_code == status


async def test_a_page_served_from_here_may_come_in(house: House) -> None:
    async with connect(house.url, compression=None, origin=f"http://127.0.0.1:{house.port}") as socket:
        await socket.send('{"type":"register","worker_id":"w","max_concurrency":1}')
        await until(lambda: len(house.hub.workers) == 1)


@pytest.mark.parametrize("path", ["/", "/api/llm", "/api/llm/connect/", "/api/docling/connect", "/api/mcp2/connect"])
async def test_other_paths_are_not_found(house: House, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://127.0.0.1:{house.port}{path}", compression=None):
            pass
    assert refused.value.response.status_code == 404


async def test_a_draining_hub_says_so_and_keeps_who_is_there(house: House) -> None:
    proxy = await house.proxy()
    agent = await house.nfrx(proxy)
    house.hub.door.draining = True
    with pytest.raises(InvalidStatus) as refused:
        async with connect(house.url, compression=None):
            pass
    assert refused.value.response.status_code == 503
    assert refused.value.response.body.strip() == b"draining"
    asking = asyncio.ensure_future(proxy.ask(chat()))
    await agent.answer(await agent.order(), b"still here")
    assert await asking == (200, b"still here")


async def test_the_same_id_again_supersedes_and_the_old_sockets_end_changes_nothing(house: House) -> None:
    proxy = await house.proxy()
    old = await house.nfrx(proxy)
    column = proxy.worker().column
    asking = asyncio.ensure_future(proxy.ask(chat()))
    await old.order()
    new = await house.nfrx(worker_name="gpu")
    assert await old.closed() == (1008, "superseded")
    with pytest.raises(BackendReset):
        await asking
    await old.socket.wait_closed()
    again = asyncio.ensure_future(proxy.ask(chat()))
    await new.answer(await new.order(), b"new")
    assert await again == (200, b"new")
    assert proxy.worker().column == column
    assert house.hub.workers.counts["superseded"] == 1
    assert len(house.hub.workers) == 1


OWNED = Settings(
    auth=Auth(client_key="shared-key", client_http_roles=("gpu",), trusted_proxies=("127.0.0.0/8",)),
    client_keys=(
        ClientKey(name="anna", key="annas-key"),
        ClientKey(name="ben", key=f"sha256:{hashlib.sha256(b'bens-key').hexdigest()}"),
    ),
)


@pytest.mark.parametrize("house", [OWNED], indirect=True)
async def test_w06_an_id_stays_with_the_key_it_came_by(house: House) -> None:
    """Refused while its owner is connected, whatever else the newcomer may show; free again when the owner has left."""
    shown = [
        {"Authorization": "Bearer annas-key"},
        {"Authorization": "Bearer bens-key"},
        {"Authorization": "Bearer shared-key"},
        {"X-User-Roles": "gpu"},
    ]
    for family in ("llm", "mcp"):
        url = house.url.replace("/llm/", f"/{family}/")

        async def dial(headers: dict[str, str], family: str = family, url: str = url) -> Nfrx:
            agent = Nfrx(await connect(url, compression=None, ping_interval=None, additional_headers=headers))
            house.stack.push_async_callback(agent.socket.close)
            if family == "mcp":
                await agent.send(client_name="x", id="w1")
            else:
                await agent.register()
            return agent

        for place, headers in enumerate(shown):
            owner = await dial(headers)
            await until(lambda family=family: house.hub.workers.connected(family, "w1"))
            connected = house.hub.workers.connected(family, "w1")
            for other in shown[:place] + shown[place + 1 :]:
                assert await (await dial(other)).closed() == (1008, "id in use")
            assert house.hub.workers.connected(family, "w1") is connected
            again = await dial(headers)
            assert await owner.closed() == (1008, "superseded")
            await again.socket.close()
            await until(lambda family=family: not house.hub.workers.connected(family, "w1"))
    assert house.hub.sessions.counts["id_in_use"] == 2 * 4 * 3
    assert house.hub.workers.counts["superseded"] == 2 * 4


@pytest.mark.parametrize("house", [Settings(client_keys=(ClientKey(name="anna", key="annas-key"),))], indirect=True)
async def test_w06_a_named_key_alone_shuts_the_door_for_others(house: House) -> None:
    for header, let_in in (("Bearer annas-key", True), ("Bearer another", False), (None, False)):
        headers = {"Authorization": header} if header else {}
        agent = Nfrx(await connect(house.url, compression=None, additional_headers=headers))
        await agent.register()
        if let_in:
            await until(lambda: len(house.hub.workers) == 1)
            await agent.socket.close()
            await until(lambda: len(house.hub.workers) == 0)
        else:
            assert await agent.closed() == (1008, "unauthorized")


async def test_names_are_told_apart_and_hostile_ids_are_tamed(house: House) -> None:
    proxy = await house.proxy()
    await house.nfrx(proxy, worker_id="id-one-123")
    await house.nfrx(proxy, worker_id="id-two-123")
    assert {worker.name for worker in proxy.hub.workers.values()} == {"gpu", "gpu-id-two-1"}
    await house.nfrx(worker_id="a\r\nb" + "x" * 1000, worker_name="<b>\x00")
    await until(lambda: len(proxy.hub.workers) == 3)
    tamed = [worker for worker in proxy.hub.workers.values() if worker.name.startswith("<b>")]
    assert len(tamed[0].id) == 128
    assert tamed[0].id.isprintable()
    await house.nfrx(worker_id="", worker_name="")
    await until(lambda: len(proxy.hub.workers) == 4)


async def test_a_silent_worker_is_dead_after_fifteen_seconds_and_a_heartbeat_keeps_it(house: House) -> None:
    proxy = await house.proxy()
    silent = await house.nfrx(proxy)
    alive = await house.nfrx(proxy, worker_id="w2", worker_name="other")
    start = asyncio.get_running_loop().time()
    sessions = {session._connected.worker.id: session for session in house.hub.sessions.open}
    sessions["w1"]._heard_s = start - 14.0
    sessions["w2"]._heard_s = start - 14.0
    house.hub.sessions.sweep()
    await alive.send(type="heartbeat", ts=1, host_cpu_percent=12.5, host_ram_used_percent=50)
    await until(lambda: sessions["w2"]._heard_s >= start)
    sessions["w1"]._heard_s = start - 15.1
    house.hub.sessions.sweep()
    assert await silent.closed() == (1008, "silent")
    await until(lambda: len(proxy.hub.workers) == 1)
    (connected,) = house.hub.workers
    assert (connected.worker.cpu_percent, connected.worker.ram_percent) == (12.5, 50.0)
    await alive.send(type="heartbeat", ts=2, host_ram_used_percent=40)
    await until(lambda: connected.worker.ram_percent == 40.0)
    assert connected.worker.cpu_percent == 0.0, "agents leave out what is 0"


async def test_a_flood_of_messages_is_closed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.hub.session.CHATTER_BURST", 50)
    monkeypatch.setattr("fleetproxy.hub.session.CHATTER_PER_S", 1)
    agent = await house.nfrx()
    for _ in range(60):
        await agent.send(type="heartbeat", ts=1)
    assert await agent.closed() == (1008, "flood")


async def test_a_worker_serves_who_stands_in_line(house: House) -> None:
    proxy, other = await house.proxy(0), await house.proxy(1)
    await house.nfrx(proxy, max_concurrency=1)
    column = proxy.worker().column
    assert await proxy.waiting.wait((column,), "p", 5.0, lambda place: None) == column
    waiter = asyncio.ensure_future(other.waiting.wait((column,), "q", 5.0, lambda place: None))
    await until(lambda: len(house.hub.waiting) == 1)
    proxy.board.add(column, -1)
    proxy.waiting.freed(column)
    assert await waiter == column
    other.board.add(column, -1)


async def test_a_new_proxy_process_is_told_who_is_there_and_a_lost_hub_means_nobody_is(house: House) -> None:
    await house.nfrx()
    await until(lambda: len(house.hub.workers) == 1)
    late = await house.proxy(1)
    await until(lambda: late.hub.workers)
    changes: list[int] = []
    late.hub.watch_workers(lambda: changes.append(len(late.hub.workers)))
    (connection,) = house.hub.proxies._by_connection
    connection.abort()
    await until(lambda: changes == [0, 1])


async def test_what_has_joined_is_known_to_every_process_that_asks(house: House) -> None:
    """However the news are gathered: who has been let in is there for whoever asks after that."""
    proxies = [await house.proxy(0), await house.proxy(1)]
    for number in range(5):
        agent = await house.nfrx(worker_id=f"w{number}")
        await until(lambda: house.hub.workers.connected("llm", agent.id))  # noqa: B023
        for proxy in proxies:
            await proxy.hub.settled()
            assert ("llm", agent.id) in proxy.hub.workers
    await agent.send(type="status_update", max_concurrency=2, models=["other"])
    await until(lambda: [one for one in house.hub.workers if "other" in one.worker.offer.models])
    for proxy in proxies:
        await proxy.hub.settled()
        assert proxy.hub.workers["llm", agent.id].offer.models == ("other",)


async def test_many_workers_join_and_each_column_is_its_own(house: House) -> None:
    proxy = await house.proxy()
    agents = [await house.nfrx(worker_id=f"w{number}", worker_name=f"n{number}") for number in range(20)]
    await until(lambda: len(proxy.hub.workers) == 20)
    columns = {worker.column for worker in proxy.hub.workers.values()}
    assert len(columns) == 20
    assert min(columns) >= 2048
    for agent in agents:
        await agent.socket.close()
    await until(lambda: not proxy.hub.workers)
