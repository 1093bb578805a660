"""Our own agent: against our hub by frames, against an nfrx server by JSON."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hub_house import Basin, House, Proxy, chat, keyed, running, until
from small_backend import Asked, SmallBackend
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from fleetproxy.core.backend import DiskModel
from fleetproxy.core.worker import Listing, Offer
from fleetproxy.errors import BackendLost, BackendReset, WorkerBusy, WorkerRefused
from fleetproxy.hub.session import Session
from fleetproxy.transport.base import Call
from fleetproxy.wire import frames, payloads
from fleetproxy.worker import agent as agent_module
from fleetproxy.worker.agent import Agent, GaveUp
from fleetproxy.worker.options import resolve

MODELS = ["llama3.2:3b", "nomic-embed-text:latest"]


@asynccontextmanager
async def at_work(url: str, base: str, **flags: str) -> AsyncIterator[Agent]:
    """An agent that runs, told by flags."""
    given = {"server_url": url, "base_url": base, "worker_name": "box", "worker_id": "w1", "poll_s": "0.02"}
    agent = Agent(resolve("llm", given | flags, {}), rng=random.Random(1))
    async with running(agent.run()):
        yield agent


@asynccontextmanager
async def scene(
    house: House, backend: SmallBackend | None = None, **flags: str
) -> AsyncIterator[tuple[SmallBackend, Agent, Proxy]]:
    backend = backend or SmallBackend(MODELS)
    proxy = await house.proxy()
    async with backend.listening() as base, at_work(house.url, base, **flags) as agent:
        await until(lambda: proxy.hub.workers)
        yield backend, agent, proxy


async def test_it_tells_what_its_backend_is_and_has(house: House) -> None:
    backend = SmallBackend(MODELS)
    backend.resident = MODELS[:1]
    async with scene(house, backend, embedding_batch_size="16") as (_, agent, proxy):
        worker = proxy.worker()
        offer = worker.offer
        assert (worker.name, worker.id, worker.protocol) == ("box", "w1", "fleetproxy.v1")
        assert (offer.models, offer.kind, offer.max_concurrency, offer.embedding_batch_size) == (
            tuple(MODELS),
            "ollama",
            2,
            16,
        )
        assert (offer.host.backend_family, offer.host.backend_version) == ("ollama", "0.20.1")
        assert offer.host.hostname
        assert offer.listing is not None
        assert [model.name for model in offer.listing.resident] == MODELS[:1]
        assert offer.listing.tags == b"[]", "raw lists are for control"
        (connected,) = house.hub.workers
        assert connected.worker.offer.listing is not None
        assert json.loads(connected.worker.offer.listing.tags)[0]["size"] == 7
        backend.models = ["new:1b"]
        await until(lambda: proxy.worker().offer.models == ("new:1b",))
        assert agent.standing.connected_to_server


async def test_an_openai_backend_holds_what_it_lists(house: House) -> None:
    async with scene(house, SmallBackend(["m"], ollama=False)) as (_, _, proxy):
        offer = proxy.worker().offer
        assert offer.kind == "openai"
        assert offer.listing is not None
        assert [model.name for model in offer.listing.resident] == ["m"]


@pytest.mark.parametrize("target", [b"/api/chat", b"/v1/chat/completions?x=1", b"/api/show"])
async def test_any_path_goes_through_as_it_is(house: House, target: bytes) -> None:
    async with scene(house) as (_, _, proxy):
        status, body = await proxy.ask(chat(b"x" * 300, target))
        assert status == 200
        assert json.loads(body) == {"target": target.decode(), "method": "POST", "bytes": 300}


async def test_pieces_arrive_one_by_one(house: House) -> None:
    async with scene(house) as (backend, _, proxy):
        turn = asyncio.Semaphore(0)

        async def stream(asked: Asked) -> None:
            asked.begin("application/x-ndjson")
            for number in range(4):
                asked.piece(b'{"n":%d}\n' % number)
                await turn.acquire()
            asked.end()

        backend.handler = stream
        upstream = await proxy.transport.open(proxy.backend(), chat(), 1.0)
        answer = await upstream.answer()
        assert dict(answer.headers)[b"content-type"] == b"application/x-ndjson"
        sink = Basin()
        upstream.pipe(sink)
        for number in range(4):
            await until(lambda number=number: len(sink.pieces) == number + 1)
            turn.release()
        assert await sink.whole == b'{"n":0}\n{"n":1}\n{"n":2}\n{"n":3}\n'
        upstream.close()


@pytest.mark.parametrize("announced", [True, False])
async def test_large_bodies_go_both_ways_whole(house: House, announced: bool) -> None:
    async with scene(house) as (backend, _, proxy):
        body = random.Random(4).randbytes(2_000_000)

        async def mirror(asked: Asked) -> None:
            asked.begin()
            for at in range(0, len(asked.body), 50_000):
                asked.piece(asked.body[at : at + 50_000])
                await asked.drain()
            asked.end()

        backend.handler = mirror
        if announced:
            assert await proxy.ask(chat(body)) == (200, body)
            return
        call = Call(method=b"POST", target=b"/api/blobs/x", header_lines=b"", body=None)
        upstream = await proxy.transport.open(proxy.backend(), call, 1.0)
        for at in range(0, len(body), 70_000):
            waiting = upstream.write(body[at : at + 70_000])
            if waiting is not None:
                await waiting
        upstream.write_end()
        answer = await upstream.answer()
        assert await proxy.body(upstream, answer) == body
        upstream.close()
        assert backend.asked[-1].headers["transfer-encoding"] == "chunked"


async def test_a_caller_that_does_not_read_stops_the_backend_and_nobody_else(house: House) -> None:
    async with scene(house) as (backend, _, proxy):
        written = 0

        async def endless(asked: Asked) -> None:
            nonlocal written
            if asked.target == "/api/show":
                asked.whole(b"{}")
                return
            asked.begin()
            for _ in range(4000):
                asked.piece(bytes(16_384))
                await asked.drain()
                written += 16_384
            asked.end()

        backend.handler = endless
        slow = await proxy.transport.open(proxy.backend(), chat(), 1.0)
        await slow.answer()
        before = -1
        async with asyncio.timeout(20):
            while before != written:  # until it stands still
                before = written
                await asyncio.sleep(0.1)
        assert written < 20_000_000
        assert house.hub.sessions.held.answers == 0
        assert await proxy.ask(chat(target=b"/api/show")) == (200, b"{}")
        sink = Basin()
        slow.pipe(sink)
        assert len(await sink.whole) == 4000 * 16_384
        slow.close()


async def test_a_caller_that_leaves_stops_the_backend(house: House) -> None:
    async with scene(house) as (backend, agent, proxy):

        async def silent(asked: Asked) -> None:
            await asked.gone.wait()

        backend.handler = silent
        upstream = await proxy.transport.open(proxy.backend(), chat(), 1.0)
        await until(lambda: backend.asked)
        upstream.close()
        await until(backend.asked[0].gone.is_set)
        await until(lambda: len(agent.desk) == 0)
        assert len(next(iter(house.hub.workers)).streams) == 0


async def test_it_takes_no_more_than_its_concurrency(house: House) -> None:
    async with scene(house, max_concurrency="1") as (backend, agent, proxy):
        finish = asyncio.Event()

        async def wait(asked: Asked) -> None:
            await finish.wait()
            asked.whole(b"1")

        backend.handler = wait
        first = asyncio.ensure_future(proxy.ask(chat()))
        await until(lambda: backend.asked)
        with pytest.raises(WorkerBusy):
            await proxy.ask(chat())
        agent.desk.slots = 0  # also when the hub believes there is room
        finish.set()
        await first
        with pytest.raises(WorkerBusy):
            await proxy.ask(chat())


async def test_a_backend_that_is_not_there_costs_the_offer_then_the_request(house: House) -> None:
    async with scene(house) as (backend, agent, proxy):
        backend.up = False
        await until(lambda: proxy.worker().offer.status == "not_ready")
        with pytest.raises(WorkerRefused):
            await proxy.ask(chat())
        assert not agent.standing.connected_to_backend
        backend.up = True
        await until(lambda: proxy.worker().offer.slots == 2)


@pytest.mark.parametrize("begun", [True, False])
async def test_a_backend_that_breaks_off_breaks_the_answer_visibly(house: House, begun: bool) -> None:
    async with scene(house) as (backend, _, proxy):

        async def breaks(asked: Asked) -> None:
            if begun:
                asked.begin()
                asked.piece(b"half")
                await asked.drain()
                await asyncio.sleep(0.02)
            asked.abort()

        backend.handler = breaks
        with pytest.raises(BackendLost if begun else BackendReset):
            await proxy.ask(chat(target=b"/api/pull"))


async def test_a_kept_connection_that_was_closed_is_not_the_callers_problem(house: House) -> None:
    async with scene(house, poll_s="30") as (backend, _, proxy):

        async def once(asked: Asked) -> None:
            asked.whole(b"{}")
            await asked.drain()
            await asyncio.sleep(0.01)
            asked.abort()

        backend.handler = once
        for _ in range(4):
            assert (await proxy.ask(chat()))[0] == 200


async def test_the_backends_key_replaces_the_callers(house: House) -> None:
    async with scene(house, api_key="inner") as (backend, _, proxy):
        lines = b"authorization: Bearer outer\r\nx-a: 1\r\n"
        await proxy.ask(Call(method=b"POST", target=b"/v1/x", header_lines=lines, body=b"{}"))
        assert backend.asked[0].headers["authorization"] == "Bearer inner"
        assert backend.asked[0].headers["x-a"] == "1"


async def test_drain_finishes_what_runs_and_leaves(house: House) -> None:
    async with scene(house) as (backend, agent, proxy):
        finish = asyncio.Event()

        async def wait(asked: Asked) -> None:
            await finish.wait()
            asked.whole(b"done")

        backend.handler = wait
        asking = asyncio.ensure_future(proxy.ask(chat()))
        await until(lambda: backend.asked)
        agent.drain()
        await until(lambda: proxy.worker().offer.status == "draining")
        with pytest.raises(WorkerRefused):
            await proxy.ask(chat())
        finish.set()
        assert await asking == (200, b"done")
        await until(lambda: not proxy.hub.workers)
        assert agent.standing.leaving


async def test_it_comes_back_when_the_connection_breaks(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "AGAIN_S", 0.01)
    async with scene(house) as (_, agent, proxy):
        column = proxy.worker().column
        for number in range(3):
            (session,) = house.hub.sessions.open
            session._socket.abort()
            await until(lambda number=number: agent.standing.connections == number + 2)
            await until(lambda: proxy.hub.workers)
        assert proxy.worker().column == column
        assert (await proxy.ask(chat()))[0] == 200


def test_the_first_tries_come_soon_and_later_ones_more_and_more_seldom() -> None:
    waits = [agent_module.again_s(tries) for tries in range(1, 200)]
    assert waits[:5] == [1.0] * 5, "a hub that was killed has its workers back within 5 s"
    assert waits == sorted(waits)
    assert waits[5:8] == [2.0, 4.0, 8.0]
    assert waits[-1] == 30.0


async def test_a_hub_that_leaves_says_so_first(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "AGAIN_S", 0.01)
    async with scene(house) as (_, agent, _):
        house.hub.sessions.close(1001, "server is leaving")
        await until(lambda: "1001" in agent.standing.last_error)
        await until(lambda: agent.standing.connections == 2)


@pytest.mark.parametrize("house", [keyed("k3y")], indirect=True)
async def test_the_key_opens_and_a_wrong_one_is_explained(house: House) -> None:
    async with scene(house, client_key="k3y") as (_, agent, _):
        assert agent.standing.connected_to_server
    backend = SmallBackend(MODELS)
    async with backend.listening() as base:
        given = {"server_url": house.url, "base_url": base, "client_key": "bad", "reconnect": "false"}
        with pytest.raises(GaveUp, match="client-key"):
            await Agent(resolve("llm", given, {})).run()


async def test_heartbeats_keep_it_alive_and_tell_how_the_machine_is(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "HEARTBEAT_S", 0.02)
    async with scene(house) as (_, agent, _):
        (session,) = house.hub.sessions.open
        assert isinstance(session, Session)
        heard = session._heard_s
        await until(lambda: session._heard_s > heard and agent.standing.last_heartbeat_s)
        (connected,) = house.hub.workers
        await until(lambda: connected.worker.ram_percent > 0)


async def test_a_worker_that_breaks_the_rules_loses_that_stream_then_its_socket(house: House) -> None:
    """Frames by hand: past the credit, out of order, of nobody's stream."""
    proxy = await house.proxy()
    async with connect(house.url, subprotocols=[Subprotocol("fleetproxy.v1")], compression=None) as socket:
        enrol = payloads.Enrol(worker_id="raw", worker_name="raw", offer=Offer(models=("m",), max_concurrency=4))
        await socket.send(frames.encode(frames.REGISTER, 0, payloads.encode(enrol)))
        await until(lambda: proxy.hub.workers)
        decoder = frames.Decoder()
        inbox: list[frames.Frame] = []

        async def read() -> None:
            with suppress(ConnectionClosed):
                while True:
                    data = await socket.recv()
                    assert isinstance(data, bytes)
                    inbox.extend(decoder.feed(data))

        async with running(read()):
            too_much = asyncio.ensure_future(proxy.ask(chat()))
            await until(lambda: any(frame.kind == frames.OPEN for frame in inbox))
            number = next(frame.stream for frame in inbox if frame.kind == frames.OPEN)
            await socket.send(frames.encode(frames.HEAD, number, payloads.encode(payloads.Head(200))))
            upstream_bytes = frames.WINDOW_BYTES + 1
            await socket.send(frames.encode(frames.DATA, number, bytes(upstream_bytes)))
            with pytest.raises(BackendLost):
                await too_much
            await until(lambda: any(frame.kind == frames.RESET and frame.stream == number for frame in inbox))
            await socket.send(frames.encode(frames.DATA, number, b"late"))
            await until(lambda: house.hub.sessions.counts["late"] == 1)
            for _ in range(101):
                await socket.send(frames.encode(frames.DATA, 999, b""))
            await until(lambda: socket.close_code is not None)
        assert (socket.close_code, socket.close_reason) == (1002, "protocol")


@pytest.mark.parametrize(("at_once", "reason"), [(1100, "protocol"), (500, "flood")])
async def test_frames_without_end_are_cut_off_however_they_are_packed(house: House, at_once: int, reason: str) -> None:
    """Many tiny frames in one message are many pieces of work."""
    options: dict[str, Any] = {"compression": None, "close_timeout": 0.1}
    async with connect(house.url, subprotocols=[Subprotocol("fleetproxy.v1")], **options) as socket:
        await socket.send(frames.encode(frames.REGISTER, 0, payloads.encode(payloads.Enrol(worker_id="w2"))))
        await until(lambda: len(house.hub.workers) == 1)
        with suppress(ConnectionClosed):
            while not house.hub.sessions.counts[reason]:
                await socket.send(frames.encode(frames.PING, 0) * at_once)
                await asyncio.sleep(0)
        await until(lambda: not len(house.hub.workers))
    assert house.hub.sessions.counts[reason] == 1


async def test_a_worker_with_more_to_tell_than_fits_is_told_in_part_and_hides_nobody(house: House) -> None:
    """A thousand names of the longest kind, and a list as long as its message can take."""
    proxy = await house.proxy()
    wide = "\U0001f600"

    def enrol(filler: int) -> bytes:
        models = tuple(f"{number:04}{wide * 252}" for number in range(1000))
        listing = Listing(on_disk=(DiskModel(name="x" * filler),))
        offer = Offer(models=models, max_concurrency=1, listing=listing)
        return payloads.encode(payloads.Enrol(worker_id="w2", worker_name="wide", offer=offer))

    said = enrol(frames.MAX_PAYLOAD_BYTES - 32 - len(enrol(1000)) + 1000)
    async with connect(house.url, subprotocols=[Subprotocol("fleetproxy.v1")], compression=None) as socket:
        await socket.send(frames.encode(frames.REGISTER, 0, said))
        await until(lambda: len(house.hub.workers) == 1)
        await house.nfrx(proxy)
        late = await house.proxy(1)
        for one in (proxy, late):
            await until(lambda one=one: len(one.hub.workers) == 2)
            assert one.hub.connections == 1
            await one.hub.settled()
            assert 100 < len(one.worker("wide").offer.models) <= 1000


# --- a stock server ------------------------------------------------------------------------------------------------


class StockServer:
    """What a stock nfrx server does with one worker."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.socket: ServerConnection | None = None
        self.headers: dict[str, str] = {}

    async def handle(self, socket: ServerConnection) -> None:
        self.socket = socket
        assert socket.request is not None
        self.headers = dict(socket.request.headers.raw_items())
        async for message in socket:
            self.messages.append(json.loads(message))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    async def send(self, **message: Any) -> None:
        assert self.socket is not None
        await self.socket.send(json.dumps(message))


@asynccontextmanager
async def stock(backend: SmallBackend, **flags: str) -> AsyncIterator[tuple[StockServer, Agent]]:
    server = StockServer()
    async with (
        serve(server.handle, "127.0.0.1", 0, compression=None, ping_interval=None) as listening,
        backend.listening() as base,
    ):
        port = next(iter(listening.sockets)).getsockname()[1]
        async with at_work(f"ws://127.0.0.1:{port}", base, client_key="k3y", **flags) as agent:
            await until(lambda: server.of("register"))
            yield server, agent


async def test_to_a_stock_server_it_registers_in_its_words() -> None:
    async with stock(SmallBackend(MODELS), embedding_batch_size="8") as (server, _):
        register = server.of("register")[0]
        assert register["worker_id"] == "w1"
        assert register["worker_name"] == "box"
        assert register["models"] == MODELS
        assert register["max_concurrency"] == 2
        assert register["agent_config"]["embedding_batch_size"] == "8"
        assert register["agent_config"]["backend_family"] == "ollama"
        assert server.headers["Authorization"] == "Bearer k3y"


async def test_a_stock_servers_request_is_served_head_chunks_end() -> None:
    async with stock(SmallBackend(MODELS)) as (server, _):
        await server.send(
            type="http_proxy_request",
            request_id="r1",
            method="POST",
            path="/chat/completions",
            headers={"Content-Type": "application/json", "Authorization": "Bearer x", "Connection": "close"},
            body="e30=",
        )
        await until(lambda: server.of("http_proxy_response_end"))
        kinds = [message["type"] for message in server.messages if message.get("request_id") == "r1"]
        assert kinds == ["http_proxy_response_headers", "http_proxy_response_chunk", "http_proxy_response_end"]
        head = server.of("http_proxy_response_headers")[0]
        assert (head["status"], head["headers"]["Content-Type"]) == (200, "application/json")
        assert "error" not in server.of("http_proxy_response_end")[0]


async def test_a_stock_servers_cancel_stops_the_backend_and_is_answered_by_silence() -> None:
    backend = SmallBackend(MODELS)

    async def silent(asked: Asked) -> None:
        await asked.gone.wait()

    backend.handler = silent
    async with stock(backend) as (server, agent):
        await server.send(type="http_proxy_request", request_id="r1", method="POST", path="/x", headers={}, body="")
        await until(lambda: backend.asked)
        await server.send(type="http_proxy_cancel", request_id="r1")
        await until(lambda: backend.asked[0].gone.is_set() and len(agent.desk) == 0)
        assert not any("request_id" in message for message in server.messages)


async def test_more_than_it_takes_at_once_waits_at_the_worker() -> None:
    backend, turn = SmallBackend(MODELS), asyncio.Semaphore(0)
    running_now = most = 0

    async def counted(asked: Asked) -> None:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await turn.acquire()
        running_now -= 1
        asked.whole(b"{}")

    backend.handler = counted
    async with stock(backend, max_concurrency="2") as (server, agent):
        for number in range(6):
            await server.send(type="http_proxy_request", request_id=f"r{number}", method="POST", path="/x", headers={})
        await until(lambda: len(agent.desk) == 6 and running_now == 2)
        for _ in range(6):
            turn.release()
        await until(lambda: len(server.of("http_proxy_response_end")) == 6)
        assert most == 2


async def test_a_backend_that_refuses_is_a_502_with_its_reason_as_the_stock_agent_has_it() -> None:
    backend = SmallBackend(MODELS)

    async def breaks(asked: Asked) -> None:
        asked.abort()

    backend.handler = breaks
    async with stock(backend) as (server, _):
        await server.send(type="http_proxy_request", request_id="r", method="POST", path="/x", headers={}, body="")
        await until(lambda: server.of("http_proxy_response_end"))
        assert server.of("http_proxy_response_headers")[0]["status"] == 502
        assert server.of("http_proxy_response_end")[0]["error"]["code"] == "upstream_error"


async def test_drain_tells_a_stock_server_and_refuses_in_its_words() -> None:
    backend, finish = SmallBackend(MODELS), asyncio.Event()

    async def wait(asked: Asked) -> None:
        await finish.wait()
        asked.whole(b"{}")

    backend.handler = wait
    async with stock(backend) as (server, agent):
        order: Callable[[str], Any] = lambda name: server.send(  # noqa: E731
            type="http_proxy_request", request_id=name, method="POST", path="/x", headers={}, body=""
        )
        await order("r1")
        await until(lambda: backend.asked)
        agent.drain()
        await until(lambda: any(update.get("status") == "draining" for update in server.of("status_update")))
        await order("r2")
        await until(lambda: server.of("http_proxy_response_end"))
        refused = server.of("http_proxy_response_end")[0]
        assert (refused["request_id"], refused["error"]["code"]) == ("r2", "worker_draining")
        finish.set()
        await until(lambda: len(server.of("http_proxy_response_end")) == 2)
        assert server.socket is not None
        await server.socket.wait_closed()
        assert (server.socket.close_code, server.socket.close_reason) == (1000, "drained")


async def test_changes_of_the_backend_reach_a_stock_server_once() -> None:
    backend = SmallBackend(MODELS)
    async with stock(backend) as (server, _):
        backend.models = ["other"]
        await until(lambda: any(update.get("models") == ["other"] for update in server.of("status_update")))
        backend.up = False
        await until(lambda: server.of("status_update")[-1].get("status") == "not_ready")
        assert server.of("status_update")[-1]["max_concurrency"] == 0
        assert "models" not in server.of("status_update")[-1]
        backend.up = True
        await until(lambda: server.of("status_update")[-1].get("status") == "idle")
        assert len(server.of("status_update")) == 3
