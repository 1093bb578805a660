"""The scripted upstream does what its script says and sees what its peer does."""

from __future__ import annotations

import asyncio
import hashlib
import ssl

import ollama
import pytest
import trustme

from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import Answer, chunked, connect, exchange, request
from fleetproxy.testing.script import (
    LAST_CHUNK,
    NDJSON_HEAD,
    Drip,
    Fin,
    Firehose,
    HalfClose,
    Keep,
    Rst,
    Script,
    Send,
    Sleep,
    Stall,
    chunk,
    response,
)

ASK = request("POST", "/api/chat", b'{"model":"m"}')


async def run(script: Script, data: bytes = ASK, within_s: float = 5.0) -> tuple[Answer, FaultUpstream]:
    async with FaultUpstream() as upstream:
        upstream.script = script
        return await exchange(upstream.host, upstream.port, data, within_s=within_s), upstream


@pytest.mark.parametrize(
    ("script", "end", "body"),
    [
        ([Rst()], "reset", b""),
        ([Fin()], "fin", b""),
        ([Send(NDJSON_HEAD), Send(chunk(b"{}\n")), Sleep(0.02), Rst()], "reset", b"{}\n"),
        ([Send(NDJSON_HEAD), Send(chunk(b"{}\n")), Fin()], "fin", b"{}\n"),
        ([Send(NDJSON_HEAD), Drip(chunk(b"abc"), 5000), Send(LAST_CHUNK), Keep()], "framed", b"abc"),
        ([Send(NDJSON_HEAD), HalfClose(), Stall()], "fin", b""),
        ([Send(response(body=b"short", length=9)), Fin()], "fin", b"short"),
    ],
)
async def test_scripts_are_played(script: Script, end: str, body: bytes) -> None:
    answer, upstream = await run(script)
    assert (answer.end, answer.body) == (end, body)
    assert [seen.body for seen in upstream.requests] == [b'{"model":"m"}']


async def test_a_kept_connection_serves_again_and_another_script_may_follow() -> None:
    async with FaultUpstream() as upstream:
        upstream.choose = lambda number, _: [Send(response(body=b"%d" % number)), Keep()]
        async with await connect(upstream.host, upstream.port) as client:
            for number in (b"1", b"2"):
                await client.send(ASK)
                assert (await client.answer()).body == number
        assert {seen.connection for seen in upstream.requests} == {1}


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_the_instant_of_the_peers_close_is_kept(how: str) -> None:
    async with FaultUpstream() as upstream:
        upstream.script = [Stall()]
        client = await connect(upstream.host, upstream.port)
        await client.send(ASK)
        async with asyncio.timeout(5):
            while not upstream.requests or not upstream.requests[0].body_complete:
                await asyncio.sleep(0.002)
        assert len(upstream.running()) == 1
        getattr(client, how)()
        async with asyncio.timeout(5):
            while upstream.running():
                await asyncio.sleep(0.002)
        assert upstream.requests[0].closed_by == {"close": "fin", "reset": "reset"}[how]


async def test_a_firehose_stops_with_its_peer() -> None:
    async with FaultUpstream() as upstream:
        upstream.script = [Send(NDJSON_HEAD), Firehose(chunk(bytes(65536)))]
        async with await connect(upstream.host, upstream.port, receive_buffer_bytes=4096) as client:
            await client.send(ASK)
            await client.until(b"\r\n\r\n")
        async with asyncio.timeout(5):
            while upstream.running():
                await asyncio.sleep(0.002)
        assert upstream.requests[0].closed_s is not None


async def test_bodies_are_hashed_and_cut_bodies_are_known() -> None:
    payload = bytes(range(256)) * 8192
    async with FaultUpstream() as upstream:
        data = request("POST", "/x", headers=[("Transfer-Encoding", "chunked")])
        await exchange(upstream.host, upstream.port, data + chunked([payload, b"tail"]))
        cut = request("POST", "/x", b"1234567890", headers=[("Content-Length", "20")])
        async with await connect(upstream.host, upstream.port) as client:
            await client.send(cut)
        async with asyncio.timeout(5):
            while len(upstream.requests) < 2 or upstream.requests[1].closed_s is None:
                await asyncio.sleep(0.002)
        whole, part = upstream.requests
        assert (whole.body_complete, whole.body_bytes) == (True, len(payload) + 4)
        assert whole.body_sha256 == hashlib.sha256(payload + b"tail").hexdigest()
        assert (part.body_complete, part.body) == (False, b"1234567890")


async def test_polls_are_answered_like_a_healthy_server_and_not_counted() -> None:
    async with FaultUpstream(models=("m:latest", "n"), resident=("n",)) as upstream:
        upstream.script = [Rst()]
        async with ollama.AsyncClient(host=upstream.url) as client:
            assert [model.model for model in (await client.list()).models] == ["m:latest", "n"]
            assert [model.model for model in (await client.ps()).models] == ["n"]
        assert (await exchange(upstream.host, upstream.port, request("GET", "/"))).body == b"Ollama is running"
        assert upstream.requests == []
        upstream.answer_polls = False
        assert (await exchange(upstream.host, upstream.port, request("GET", "/"))).end == "fin"


async def test_a_refused_port_opens_again_under_its_number() -> None:
    async with FaultUpstream() as upstream:
        port = upstream.port
        await upstream.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect(upstream.host, port)
        upstream.listen()
        assert upstream.port == port
        assert (await exchange(upstream.host, port, ASK)).status == 200


async def test_greetings_come_before_any_request() -> None:
    async with FaultUpstream() as upstream:
        upstream.greeting = [Rst()]
        async with await connect(upstream.host, upstream.port) as client:
            assert await client.closed() == "reset"
        assert upstream.requests == []


async def test_unread_bodies_stay_in_the_kernel() -> None:
    async with FaultUpstream() as upstream:
        upstream.read_body = False
        upstream.script = [Stall()]
        async with await connect(upstream.host, upstream.port) as client:
            await client.send(request("POST", "/x", headers=[("Content-Length", str(1 << 30))]))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.send(bytes(1 << 26))
        assert upstream.requests[0].body_bytes == 0


async def test_tls_is_spoken_and_cut_without_a_word() -> None:
    authority = trustme.CA()
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trusting)
    async with FaultUpstream(tls=server) as upstream:
        reader, writer = await asyncio.open_connection(upstream.host, upstream.port, ssl=trusting)
        writer.write(ASK)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        writer.close()
        # A server that does not trust its peer's words: plain bytes on the TLS port end the connection.
        assert (await exchange(upstream.host, upstream.port, ASK)).end in {"fin", "reset"}


async def test_a_goodbye_that_comes_with_a_later_request_is_seen_too() -> None:
    async with FaultUpstream() as upstream:
        upstream.choose = lambda number, _: (
            [Send(response(body=b"1")), Sleep(0.05), Keep()]
            if number == 1
            else [Sleep(0.01), Send(NDJSON_HEAD), Sleep(0.01), Send(chunk(b"x")), Sleep(0.01), Send(LAST_CHUNK), Keep()]
        )
        client = await connect(upstream.host, upstream.port)
        await client.send(ASK)
        await client.answer()
        await client.send(ASK)
        client.close()
        async with asyncio.timeout(5):
            while len(upstream.requests) < 2 or upstream.running():
                await asyncio.sleep(0.002)
        assert upstream.requests[1].closed_s is not None
