"""Small requests of the control plane: bounded, verified, and clear about what went wrong."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trustme

from fleetproxy.core.backend import Backend
from fleetproxy.errors import (
    BackendError,
    BackendReset,
    BackendTimeout,
    BadResponse,
    ConnectFailed,
    ConnectTimeout,
)
from fleetproxy.transport.httpx_client import HttpxClient
from fleetproxy.transport.resolver import Resolver

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """A raw server: what each connection says, and what the client asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.heads: list[str] = []
        self.connections = 0
        self.port = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    def backend(self, **fields: object) -> Backend:
        return Backend(**{"name": "gpu", "id": 1, "column": 0, "host": "127.0.0.1", "port": self.port, **fields})  # type: ignore[arg-type]

    @asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[Server]:
        tasks: set[asyncio.Task[None]] = set()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.get_running_loop().create_task(self.connected(reader, writer)))

        server = await asyncio.start_server(begin, host, 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def answering(*answers: bytes) -> Server:
    """Answers each request of a connection with the next answer, then closes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            server.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(answer)
            await writer.drain()

    server = Server(script)
    return server


def ok(body: bytes = b"{}", *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n{lines}\r\n".encode() + body


@pytest.fixture(autouse=True)
async def sockets_are_closed() -> AsyncIterator[None]:
    """Aborted transports close their sockets in the loop's next rounds."""
    yield
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def client() -> AsyncIterator[HttpxClient]:
    async with HttpxClient() as client:
        yield client


async def test_prefix_token_and_host_are_sent_and_the_connection_is_kept(client: HttpxClient) -> None:
    async with answering(ok(b'{"version":"1"}', "content-type: application/json"), ok()).listening() as server:
        backend = server.backend(path_prefix="/ollama", api_key="s3cret")
        reply = await client.get(backend, "/api/version", 5.0)
        assert (reply.status, reply.body, reply.content_type, reply.ok) == (
            200,
            b'{"version":"1"}',
            "application/json",
            True,
        )
        await client.get(backend, "/api/tags?x=1", 5.0)
        assert server.connections == 1
        first, second = server.heads
        assert first.startswith("GET /ollama/api/version HTTP/1.1\r\n")
        assert second.startswith("GET /ollama/api/tags?x=1 HTTP/1.1\r\n")
        assert f"host: 127.0.0.1:{server.port}\r\n" in first.lower()
        assert "authorization: Bearer s3cret\r\n".lower() in first.lower()


async def test_a_host_header_and_a_body_of_our_own(client: HttpxClient) -> None:
    async with answering(ok()).listening() as server:
        await client.send(server.backend(host_header="ollama.internal"), "POST", "/api/show", 5.0, json=b'{"a":1}')
        head = server.heads[0].lower()
        assert "host: ollama.internal\r\n" in head
        assert "content-type: application/json\r\n" in head
        assert "authorization" not in head


async def test_ipv6_and_unix_servers_answer(client: HttpxClient, tmp_path: Path) -> None:
    async with answering(ok(b"6")).listening(host="::1") as server:
        assert (await client.get(server.backend(host="::1"), "/", 5.0)).body == b"6"
    unix = answering(ok(b"u"))
    listener = await asyncio.start_unix_server(unix.connected, tmp_path / "s")
    backend = unix.backend(scheme="unix", host=str(tmp_path / "s"), name="unix", host_header="localhost")
    assert (await client.get(backend, "/", 5.0)).body == b"u"
    listener.close()


async def test_redirects_are_answers(client: HttpxClient) -> None:
    async with answering(
        b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
    ).listening() as server:
        reply = await client.get(server.backend(), "/", 5.0)
        assert (reply.status, reply.ok) == (302, False)
        assert len(server.heads) == 1


async def test_proxies_of_the_environment_are_not_used(client: HttpxClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with answering(ok(b"direct")).listening() as server:
        assert (await client.get(server.backend(), "/", 5.0)).body == b"direct"


async def test_a_name_with_a_dead_address_is_served_by_its_other_one() -> None:
    resolver = Resolver(lambda _name: ("127.0.0.2", "127.0.0.1"))
    async with answering(ok(b"second")).listening() as server, HttpxClient(resolver) as client:
        assert (await client.get(server.backend(host="gpu.test"), "/", 5.0)).body == b"second"
        assert f"host: gpu.test:{server.port}\r\n" in server.heads[0].lower()


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.01)


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def slamming(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


def says(data: bytes) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()

    return script


BOMB = gzip.compress(bytes(17 * 1024 * 1024))


@pytest.mark.parametrize(
    ("script", "kind", "text"),
    [
        (endless, BadResponse, "larger than"),
        (dripping, BackendTimeout, "in time"),
        (silent, BackendTimeout, "in time"),
        (slamming, BackendReset, "without an answer"),
        (says(b"\x00\xff garbage\r\n\r\n"), BadResponse, "not HTTP"),
        (says(b"SSH-2.0-OpenSSH_9\r\n"), BackendReset, "without an answer"),
        (says(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"), BadResponse, "not HTTP"),
        (says(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n"), BadResponse, "not HTTP"),
        (says(ok(b"not gzip", "content-encoding: gzip")), BadResponse, "coding"),
        (says(ok(b"{}", "content-encoding: br")), BadResponse, "did not ask"),
        (says(ok(BOMB, "content-encoding: gzip")), BadResponse, "when decoded"),
    ],
    ids=["endless", "drip", "silent", "slam", "garbage", "ssh", "short", "huge head", "no gzip", "brotli", "bomb"],
)
async def test_bad_servers_give_clear_errors_and_bounded_work(
    script: Script, kind: type[BackendError], text: str
) -> None:
    timeout_s = 0.05 if kind is BackendTimeout else 20.0
    async with Server(script).listening() as server, HttpxClient() as client:
        with pytest.raises(kind, match=text) as caught:
            await client.get(server.backend(), "/api/tags", timeout_s)
        assert type(caught.value) is kind
        assert str(server.port) not in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize(
    ("coding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes), ("GZIP", gzip.compress)],
)
async def test_encoded_answers_are_decoded(client: HttpxClient, coding: str, encode: Callable[[bytes], bytes]) -> None:
    body = b'{"models":[]}' * 1000
    async with answering(ok(encode(body), f"content-encoding: {coding}")).listening() as server:
        assert (await client.get(server.backend(), "/", 5.0)).body == body


async def test_a_port_nobody_listens_on_is_a_connect_failure(client: HttpxClient) -> None:
    async with answering().listening() as server:
        backend = server.backend()
    with pytest.raises(ConnectFailed, match="connection refused") as caught:
        await client.get(backend, "/", 5.0)
    assert "127.0.0.1" not in str(caught.value)


async def test_a_name_that_does_not_exist_is_a_connect_failure() -> None:
    def nothing(_name: str) -> tuple[str, ...]:
        raise OSError(-2, "Name or service not known")

    async with HttpxClient(Resolver(nothing)) as client:
        with pytest.raises(ConnectFailed, match="cannot be resolved"):
            await client.get(Backend(name="gpu", id=1, column=0, host="no.such"), "/", 5.0)


async def test_a_server_whose_address_changed_gets_new_connections(client: HttpxClient) -> None:
    async with answering(ok(b"1"), ok(b"1")).listening() as first, answering(ok(b"2")).listening() as second:
        assert (await client.get(first.backend(), "/", 5.0)).body == b"1"
        assert (await client.get(first.backend(max_concurrent=3), "/", 5.0)).body == b"1"
        assert (await client.get(second.backend(), "/", 5.0)).body == b"2"
        assert first.connections == 1
        await client.forget("gpu")
        await client.forget("unknown")


async def test_a_reset_in_the_answer_is_said_to_be_one(client: HttpxClient) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.get_extra_info("socket").setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # SO_LINGER 0: RST
        writer.transport.abort()

    async with Server(script).listening() as server:
        with pytest.raises((BackendReset, BadResponse)):
            await client.get(server.backend(), "/", 5.0)


# --- TLS -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


async def test_tls_is_verified_by_name_and_authority(authority: trustme.CA, ca_file: str) -> None:
    resolver = Resolver(lambda _name: ("127.0.0.1",))
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(answering(ok(b"tls")).listening(context(authority, "gpu.test")))

        async def ask(**fields: object) -> bytes:
            async with HttpxClient(resolver) as client:
                backend = server.backend(**{"scheme": "https", "host": "gpu.test", "tls_ca_file": ca_file, **fields})
                return (await client.get(backend, "/", 10.0)).body

        assert await ask() == b"tls"
        assert await ask(host="127.0.0.1", tls_server_name="gpu.test") == b"tls"
        assert await ask(host="other.test", tls_verify=False, tls_ca_file=None) == b"tls"
        with pytest.raises(ConnectFailed, match=r"certificate is not valid.*mismatch"):
            await ask(host="other.test")
        with pytest.raises(ConnectFailed, match="certificate is not valid"):
            await ask(tls_ca_file=None)
        with pytest.raises(ConnectFailed, match="tls_ca_file"):
            await ask(tls_ca_file=ca_file + ".missing")


async def test_an_expired_certificate_is_refused(authority: trustme.CA, ca_file: str) -> None:
    expired = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC)).configure_cert(expired)
    async with HttpxClient() as client, answering(ok()).listening(expired) as server:
        with pytest.raises(ConnectFailed, match="certificate has expired"):
            await client.get(server.backend(scheme="https", tls_ca_file=ca_file), "/", 10.0)


async def test_plain_text_on_a_tls_port_and_a_stalled_handshake(ca_file: str) -> None:
    async def plain(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ok())
        await writer.drain()

    async with HttpxClient() as client:
        async with Server(plain).listening() as server:
            with pytest.raises(ConnectFailed, match="TLS failed"):
                await client.get(server.backend(scheme="https", tls_ca_file=ca_file), "/", 10.0)
        async with Server(silent).listening() as server:
            with pytest.raises((ConnectTimeout, BackendTimeout)):
                await client.get(server.backend(scheme="https", tls_ca_file=ca_file), "/", 0.05)


# --- HTTP/2 --------------------------------------------------------------------------------------------------


async def speak_h2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="ascii"))
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    while data := await reader.read(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                authority = dict(event.headers)[":authority"]
                connection.send_headers(event.stream_id, [(":status", "200"), ("content-type", "text/plain")])
                connection.send_data(event.stream_id, authority.encode(), end_stream=True)
        writer.write(connection.data_to_send())


async def test_http2_over_tls_and_with_prior_knowledge(authority: trustme.CA, ca_file: str) -> None:
    tls = context(authority, "gpu.test")
    tls.set_alpn_protocols(["h2"])
    resolver = Resolver(lambda _name: ("127.0.0.1",))
    async with HttpxClient(resolver) as client:
        async with Server(speak_h2).listening(tls) as server:
            backend = server.backend(scheme="https", host="gpu.test", tls_ca_file=ca_file, http2=True)
            reply = await client.get(backend, "/v1/models", 10.0)
            assert (reply.http_version, reply.body) == ("HTTP/2", f"gpu.test:{server.port}".encode())
        async with Server(speak_h2).listening() as server:
            reply = await client.get(server.backend(http2=True, name="clear"), "/v1/models", 10.0)
            assert (reply.http_version, reply.body) == ("HTTP/2", f"127.0.0.1:{server.port}".encode())


async def test_a_server_without_http2_is_spoken_to_in_http1(authority: trustme.CA, ca_file: str) -> None:
    async with HttpxClient() as client, answering(ok(b"1")).listening(context(authority, "127.0.0.1")) as server:
        backend = server.backend(scheme="https", tls_ca_file=ca_file, http2=True)
        assert (await client.get(backend, "/", 10.0)).http_version == "HTTP/1.1"
