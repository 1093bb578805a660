"""Workers that dial in at the public port: a real proxy process, a real hub process, the socket between them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hub_house import House, Nfrx, Proxy, chat, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fleetproxy.core.table import Snapshot
from fleetproxy.errors import BackendReset
from fleetproxy.hub.session import Session
from fleetproxy.link import board as load_board
from fleetproxy.link.messages import Message, WorkersPulse, WorkersSeen
from fleetproxy.link.server import LinkServer
from fleetproxy.proxy.tunnel import Tunnel
from fleetproxy.settings import Settings
from fleetproxy.settings.model import Auth
from fleetproxy.wire import payloads


class Place:
    """A runtime folder with a hub and proxy processes in it; control's end of the link is here."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        (runtime / "boot").write_text("b007")
        (runtime / "data" / "spool").mkdir(parents=True)
        load_board.create(runtime / "board", 2)
        settings = Settings(port=self.port, data_dir=str(runtime / "data"), auth=Auth(client_key="k3y"))
        (runtime / "settings.json").write_bytes(msgspec.json.encode(settings))
        self.messages: list[Message] = []
        self.link = LinkServer(runtime / "link.sock", lambda _, message: self.messages.append(message))
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs: list[str] = []

    def start(self, kind: str, index: int = 0) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "fleetproxy.process", kind, str(index), str(self.runtime)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.processes.append(process)
        return process

    async def left(self, process: subprocess.Popen[bytes]) -> int:
        return await asyncio.to_thread(process.wait, 20)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            assert process.stdin is not None
            assert process.stderr is not None
            self.logs.append(process.stderr.read().decode())
            process.stdin.close()
            process.stderr.close()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/llm/connect"

    async def agent(self, key: str = "k3y") -> Nfrx:
        socket = await connect(
            self.url,
            compression=None,
            ping_interval=None,
            max_size=None,
            additional_headers={"Authorization": f"Bearer {key}"},
        )
        agent = Nfrx(socket)
        await agent.register()
        return agent

    async def post(self, path: str, body: Any) -> tuple[int, bytes]:
        def ask() -> tuple[int, bytes]:
            data = json.dumps(body).encode()
            url = f"http://127.0.0.1:{self.port}{path}"
            request = urllib.request.Request(url, data, {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()

        return await asyncio.to_thread(ask)

    async def reachable(self) -> None:
        """The proxy listens and has its hub."""
        async with asyncio.timeout(20):
            while True:
                try:
                    async with connect(self.url.replace("llm", "nothing"), compression=None):
                        pass
                except InvalidStatus:
                    break
                except OSError:
                    await asyncio.sleep(0.02)
            while True:
                try:
                    async with connect(self.url, compression=None):
                        return
                except InvalidStatus:
                    await asyncio.sleep(0.02)


async def knock_until_refused(url: str) -> None:
    """A signal takes a moment to be heard."""
    async with asyncio.timeout(10):
        while True:
            async with connect(url, compression=None):
                await asyncio.sleep(0.01)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place, stop = Place(tmp_path), asyncio.Event()
    serving = asyncio.ensure_future(place.link.run(stop))
    place.link.publish(Snapshot(version=1, boot="b007"))
    place.start("hub")
    place.start("proxy")
    await place.reachable()
    yield place
    place.end()
    stop.set()
    await serving
    assert not any("Traceback" in log for log in place.logs), place.logs


async def test_a_worker_at_the_public_port_serves_requests_from_the_public_port(place: Place) -> None:
    agent = await place.agent()

    async def serve() -> None:
        while True:
            order = await agent.order()
            if order["type"] == "http_proxy_request":
                await agent.answer(order, b'{"path":"%b"}' % order["path"].encode())

    await until(lambda: any(isinstance(message, WorkersSeen) and message.present for message in place.messages))
    serving = asyncio.ensure_future(serve())
    async with asyncio.timeout(20):
        while (answer := await place.post("/v1/chat/completions", {"model": "m", "messages": []}))[0] != 200:
            await asyncio.sleep(0.02)
    assert answer == (200, b'{"path":"/chat/completions"}')
    big = {"model": "m", "messages": [{"role": "user", "content": "x" * 3_000_000}]}
    assert (await place.post("/v1/chat/completions", big))[0] == 200
    serving.cancel()
    await until(lambda: any(isinstance(message, WorkersPulse) for message in place.messages))
    await agent.socket.close()
    await until(lambda: any(isinstance(m, WorkersSeen) and m.left == (("llm", "w1"),) for m in place.messages))
    status, _ = await place.post("/v1/chat/completions", {"model": "m", "messages": []})
    assert status in (404, 503)


async def test_the_doors_words_go_through_the_tunnel(place: Place) -> None:
    agent = await place.agent(key="wrong")
    assert await agent.closed() == (1008, "unauthorized")
    stranger = await connect(place.url, compression=None)
    await stranger.send('{"type":"heartbeat"}')
    with pytest.raises(ConnectionClosed):
        await stranger.recv()
    assert (stranger.close_code, stranger.close_reason) == (1008, "expected register")
    with pytest.raises(InvalidStatus) as refused:
        await connect(place.url, compression=None, origin="http://evil.example")
    assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        await connect(place.url.replace("/llm/", "/docling/"), compression=None)
    assert refused.value.response.status_code == 403
    big = await place.agent()
    await big.socket.send("x" * 1_100_000)
    assert (await big.closed())[0] == 1009


async def test_when_the_hub_dies_workers_are_told_to_come_again_and_can(place: Place) -> None:
    agent = await place.agent()
    hub = place.processes[0]
    hub.kill()
    assert (await agent.closed())[0] == 1001
    with pytest.raises(InvalidStatus) as refused:
        await connect(place.url, compression=None)
    assert refused.value.response.status_code == 503
    place.messages.clear()
    place.start("hub")
    await place.reachable()
    again = await place.agent()
    await until(
        lambda: (
            any(isinstance(message, WorkersSeen) and message.whole for message in place.messages)
            and any(isinstance(message, WorkersSeen) and message.present for message in place.messages)
        )
    )
    await again.socket.close()


async def test_a_draining_proxy_keeps_a_busy_workers_socket_until_its_answer_is_out(place: Place) -> None:
    agent = await place.agent()
    await until(lambda: any(isinstance(message, WorkersSeen) and message.present for message in place.messages))
    asking = asyncio.ensure_future(place.post("/v1/chat/completions", {"model": "m", "messages": []}))
    order = await agent.order()
    proxy = place.processes[1]
    proxy.send_signal(signal.SIGTERM)
    with pytest.raises(InvalidStatus) as refused:
        await knock_until_refused(place.url)
    assert refused.value.response.status_code == 503
    await agent.answer(order, b"{}")
    assert await asking == (200, b"{}")
    assert (await agent.closed())[0] == 1001
    assert await place.left(proxy) == 0


# --- who is stuck ----------------------------------------------------------------------------------------------------


async def tunnelled(house: House) -> tuple[Proxy, Tunnel, Session]:
    """A stock worker behind a tunnel, with both ends of the tunnel in this loop."""
    proxy = await house.proxy()
    tunnel = Tunnel(proxy.hub, asyncio.get_running_loop())
    assert tunnel.open(payloads.Knock("/api/llm/connect", (), "127.0.0.1"))
    assert (await tunnel.welcome).status == 101
    await tunnel.give('{"type":"register","worker_id":"w1","models":["m"],"max_concurrency":4}')
    await until(lambda: proxy.hub.workers)
    (session,) = house.hub.sessions.open
    return proxy, tunnel, session


def look_much_later(house: House, found: Session, times: int = 3) -> None:
    """The sweeps of some minutes in which the worker was heard of all the time."""
    now_s = house.hub.sessions.loop.time()
    for minute in range(times):
        for second in range(60):
            later_s = now_s + minute * 60 + second
            found._heard_s = later_s
            found.look(later_s)


async def test_a_worker_behind_a_tunnel_that_takes_what_it_is_sent_is_never_stuck(house: House) -> None:
    """What it has taken comes back as credit in large steps only: a little that is out is no sign of anything."""
    proxy, tunnel, found = await tunnelled(house)
    for size in (10, 5000, 70_000, 100_000):
        asking = asyncio.ensure_future(proxy.ask(chat(b"x" * size)))
        order = json.loads(await tunnel.next() or "")
        head = {"type": "http_proxy_response_headers", "status": 200, "headers": {}}
        for message in (head, {"type": "http_proxy_response_end"}):
            await tunnel.give(json.dumps(message | {"request_id": order["request_id"]}))
        assert await asking == (200, b"")
        waiting = asyncio.ensure_future(tunnel.next())
        await asyncio.sleep(0.02)
        look_much_later(house, found)
        assert house.hub.sessions.counts["stalled"] == 0
        assert len(house.hub.workers) == 1
        waiting.cancel()
    tunnel.close(1000, "bye")
    await until(lambda: not len(house.hub.tunnels))


async def test_a_worker_behind_a_tunnel_that_takes_nothing_is_dropped(house: House) -> None:
    proxy, tunnel, found = await tunnelled(house)
    asking = [asyncio.ensure_future(proxy.ask(chat(b"x" * 200_000))) for _ in range(3)]
    (connected,) = house.hub.workers
    await until(lambda: len(connected.streams) == 3 and found._socket.unsent_bytes > 256 * 1024)
    look_much_later(house, found, 1)
    for one in asking:
        with pytest.raises(BackendReset):
            await one
    assert house.hub.sessions.counts["stalled"] == 1
    assert tunnel.closed is not None
