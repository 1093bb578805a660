"""Every server of the settings, from here: its name, its port, its certificate, its answer."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from fleetproxy.doctor.clocks import SKEW_S, skew_s
from fleetproxy.doctor.configuration import until_end
from fleetproxy.doctor.finding import Finding, fail, ok, warn
from fleetproxy.settings import Server
from fleetproxy.settings.servers import Address, parse_url

CONNECT_S = 3.0
ANSWER_S = 10.0
#: A model may have to be loaded first.
TOKEN_S = 300.0
_MOST_BYTES = 16 * 1024 * 1024
_AT_ONCE = 16


def backends(servers: Sequence[Server], *, deep: bool = False) -> Iterator[Finding]:
    """Findings in the order of the servers; they are asked side by side. `deep` has each answer one token."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        for found in pool.map(lambda server: list(_one(server, deep)), servers):
            yield from found


def _one(server: Server, deep: bool) -> Iterator[Finding]:
    area = f"server {server.name}"
    address = parse_url(server.url, server.kind)
    if not server.enabled:
        yield ok(area, "disabled in the settings, not asked")
        return
    began_s = time.monotonic()
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield fail(area, f"{address.host} has no address: {error.strerror or error}", "check the name, or DNS")
        return
    try:
        socket.create_connection((address.host, address.port), timeout=CONNECT_S).close()
    except OSError as error:
        where = found[0][4][0]
        yield fail(
            area,
            f"{where}:{address.port} cannot be connected to: {error.strerror or error}",
            "is it started, does it listen beyond its own machine (OLLAMA_HOST=0.0.0.0), is a firewall between?",
        )
        return
    connect_ms = (time.monotonic() - began_s) * 1000
    try:
        yield from _answers(server, address, area, connect_ms)
        if deep:
            yield _token(server, address, area)
    except ssl.SSLCertVerificationError as error:
        yield fail(
            area, f"its certificate is not trusted: {error.verify_message}", "set tls_ca_file, or tls_server_name"
        )
    except (OSError, http.client.HTTPException, ValueError) as error:
        yield fail(area, f"gives no answer: {error or type(error).__name__}", "look at that server's log")


def _answers(server: Server, address: Address, area: str, connect_ms: float) -> Iterator[Finding]:
    path = "/api/tags" if server.kind == "ollama" else "/v1/models"
    connection = _connection(server, address, ANSWER_S)
    try:
        answer, value = _get(connection, server, address.prefix + path)
        peer = connection.sock.getpeercert() if isinstance(connection.sock, ssl.SSLSocket) else None
        if answer.status in (401, 403):
            yield fail(area, f"refuses us: HTTP {answer.status}", "set api_key of this server")
            return
        if answer.status != 200 or not isinstance(value, dict):
            other = "openai" if server.kind == "ollama" else "ollama"
            yield fail(
                area, f"{path} is answered with HTTP {answer.status}", f'is it of another kind? kind = "{other}"'
            )
            return
        models = value.get("models" if server.kind == "ollama" else "data") or []
        if not isinstance(models, list):
            yield fail(area, f"{path} is answered with no list of models", "look at what really listens there")
            return
        version = ""
        if server.kind == "ollama":
            _, told = _get(connection, server, f"{address.prefix}/api/version")
            version = f" {told.get('version', '')}" if isinstance(told, dict) else ""
    finally:
        connection.close()
    text = (
        f"{server.kind}{version}, {len(models)} model{'' if len(models) == 1 else 's'}, {connect_ms:.0f} ms to connect"
    )
    if models:
        yield ok(area, text)
    else:
        fix = "pull one: fleetproxy pull MODEL --server " + server.name if server.kind == "ollama" else "load a model"
        yield warn(area, text, fix)
    yield from _clock(answer, area)
    if peer and "notAfter" in peer:
        ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(peer["notAfter"])), UTC)
        yield until_end(f"that of {server.name}", ends, datetime.now(UTC))


def _clock(answer: http.client.HTTPResponse, area: str) -> Iterator[Finding]:
    ahead_s = skew_s(answer.headers.get("date", ""))
    if ahead_s is not None and abs(ahead_s) > SKEW_S:
        yield warn(
            area, f"its clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} ours", "run NTP there"
        )


def _token(server: Server, address: Address, area: str) -> Finding:
    """One token out of a model that is loaded, else of the smallest there is."""
    connection = _connection(server, address, TOKEN_S)
    try:
        model = _smallest(connection, server, address)
        if model is None:
            return warn(area, "has no model to try", "pull one")
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": False}
        path = "/api/chat" if server.kind == "ollama" else "/v1/chat/completions"
        body |= {"options": {"num_predict": 1}} if server.kind == "ollama" else {"max_tokens": 1}
        began_s = time.monotonic()
        connection.request("POST", address.prefix + path, json.dumps(body), _headers(server))
        answer = connection.getresponse()
        answer.read(_MOST_BYTES)
        took_s = time.monotonic() - began_s
    finally:
        connection.close()
    if answer.status != 200:
        return fail(area, f"asked for a token of {model}: HTTP {answer.status}", "look at that server's log")
    return ok(area, f"a token of {model} in {took_s:.2f} s")


def _smallest(connection: http.client.HTTPConnection, server: Server, address: Address) -> str | None:
    if server.kind != "ollama":
        _, value = _get(connection, server, f"{address.prefix}/v1/models")
        return next((name for entry in _entries(value, "data") if isinstance(name := entry.get("id"), str)), None)
    for path in ("/api/ps", "/api/tags"):
        _, value = _get(connection, server, address.prefix + path)
        sizes: dict[str, int] = {
            name: entry["size"] if isinstance(entry.get("size"), int) else 0
            for entry in _entries(value, "models")
            if isinstance(name := entry.get("name"), str) and "embed" not in name
        }
        if sizes:
            return min(sizes, key=sizes.__getitem__)
    return None


def _entries(value: Any, key: str) -> list[dict[str, Any]]:
    listed = value.get(key) if isinstance(value, dict) else None
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _get(connection: http.client.HTTPConnection, server: Server, path: str) -> tuple[http.client.HTTPResponse, Any]:
    connection.request("GET", path, headers=_headers(server))
    answer = connection.getresponse()
    raw = answer.read(_MOST_BYTES)
    try:
        return answer, json.loads(raw)
    except ValueError:
        return answer, None


def _headers(server: Server) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    if server.api_key:
        headers["authorization"] = f"Bearer {server.api_key}"
    if server.host_header:
        headers["host"] = server.host_header
    return headers


def _connection(server: Server, address: Address, timeout_s: float) -> http.client.HTTPConnection:
    if address.scheme == "http":
        return http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    context = ssl.create_default_context()
    if server.tls_ca_file:
        context.load_verify_locations(server.tls_ca_file)
    if not server.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return _Named(address.host, address.port, timeout_s, context, server.tls_server_name or address.host)


class _Named(http.client.HTTPSConnection):
    """TLS to a server whose certificate may have another name than its address."""

    def __init__(self, host: str, port: int, timeout_s: float, context: ssl.SSLContext, name: str) -> None:
        super().__init__(host, port, timeout=timeout_s, context=context)
        self._tls, self._name, self._timeout_s = context, name, timeout_s

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), timeout=self._timeout_s)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)
