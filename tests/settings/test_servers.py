"""How a server is written, and the backend it means."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.settings import Dashboard, Server, Settings, Tls
from fleetproxy.settings.servers import (
    BadAddress,
    check_host,
    dashboard_url,
    is_loopback,
    parse_listen,
    parse_url,
    public_url,
    resolve,
    short_server,
    without_password,
)


@pytest.mark.parametrize(
    ("url", "kind", "meant"),
    [
        ("10.0.0.5", "ollama", ("http", "10.0.0.5", 11434, "")),
        ("http://10.0.0.5", "ollama", ("http", "10.0.0.5", 11434, "")),
        ("https://gpu.example", "ollama", ("https", "gpu.example", 443, "")),
        ("http://vllm", "openai", ("http", "vllm", 80, "")),
        ("http://vllm:8000/v1", "openai", ("http", "vllm", 8000, "")),
        ("http://vllm:8000/v1/", "openai", ("http", "vllm", 8000, "")),
        ("http://gate/team/v1", "openai", ("http", "gate", 80, "/team")),
        ("http://gate/v1", "ollama", ("http", "gate", 11434, "/v1")),
        ("[::1]:5000/ollama/", "ollama", ("http", "::1", 5000, "/ollama")),
        ("HTTPS://GPU.Example:8443", "ollama", ("https", "gpu.example", 8443, "")),
        ("gpu_1:11434", "ollama", ("http", "gpu_1", 11434, "")),
    ],
)
def test_an_address_means(url: str, kind: str, meant: tuple[str, str, int, str]) -> None:
    address = parse_url(url, kind)
    assert (address.scheme, address.host, address.port, address.prefix) == meant


@pytest.mark.parametrize(
    ("text", "name", "url", "kind"),
    [
        ("gpu1=10.0.0.5:11434", "gpu1", "10.0.0.5:11434", "ollama"),
        ("10.0.0.5", "10.0.0.5", "10.0.0.5", "ollama"),
        ("http://10.0.0.5:9", "10.0.0.5:9", "http://10.0.0.5:9", "ollama"),
        ("v=openai+http://h:8000", "v", "http://h:8000", "openai"),
        ("v=http://h:8000/v1", "v", "http://h:8000/v1", "openai"),
        ("openai+https://h", "h", "https://h", "openai"),
        ("http://h/a=b", "h", "http://h/a=b", "ollama"),
    ],
)
def test_a_short_server_means(text: str, name: str, url: str, kind: str) -> None:
    assert short_server(text) == {"name": name, "url": url, "kind": kind}


@given(st.ip_addresses(), st.integers(1, 65535), st.sampled_from(["http", "https"]))
def test_every_ip_address_and_port_survives(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, scheme: str
) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    found = parse_url(f"{scheme}://{host}:{port}")
    assert (found.scheme, ipaddress.ip_address(found.host), found.port) == (scheme, address, port)


@given(st.text(max_size=30), st.sampled_from(["ollama", "openai"]))
def test_any_text_is_an_address_or_a_sentence(text: str, kind: str) -> None:
    for read in (lambda: parse_url(text, kind), lambda: short_server(text), lambda: check_host(text)):
        with contextlib.suppress(BadAddress):
            read()


@given(st.text(max_size=20), st.text(st.characters(exclude_characters="/=+@"), min_size=1, max_size=12))
def test_a_password_in_an_address_is_never_shown(before: str, password: str) -> None:
    shown = without_password(f"gpu=http://me:{password}@host:1")
    assert shown == "gpu=http://***@host:1"
    assert "@" not in before or without_password(before) != before or before.startswith("***@")


@pytest.mark.parametrize(
    ("text", "meant"),
    [("9090", ("h", 9090)), (":9090", ("h", 9090)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:1", ("::1", 1))],
)
def test_a_listening_address_means(text: str, meant: tuple[str, int]) -> None:
    assert parse_listen(text, "h") == meant


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.1", "10.0.0.1"), ("fe80::1", "[fe80::1]")]
)
def test_the_public_url_is_one_that_can_be_opened(host: str, shown: str) -> None:
    assert public_url(Settings(host=host, port=5)) == f"http://{shown}:5"
    assert public_url(Settings(host=host, port=5, tls=Tls(cert="c", key="k"))) == f"https://{shown}:5"


@pytest.mark.parametrize(
    ("dashboard", "shown"),
    [
        (Dashboard(), "http://public:1/dashboard/"),
        (Dashboard(listen="0.0.0.0:3334"), "http://public:1/dashboard/"),
        (Dashboard(listen="0.0.0.0:3334", on_public_port=False), "http://127.0.0.1:3334/dashboard/"),
        (Dashboard(listen="3334", on_public_port=False), "http://127.0.0.1:3334/dashboard/"),
        (Dashboard(on_public_port=False), None),
    ],
)
def test_the_dashboard_is_where_its_settings_put_it(dashboard: Dashboard, shown: str | None) -> None:
    assert dashboard_url(Settings(dashboard=dashboard), "http://public:1") == shown


@pytest.mark.parametrize(("host", "own"), [("127.0.0.1", True), ("[::1]", True), ("0.0.0.0", False), ("h", False)])
def test_loopback_is_what_only_this_machine_reaches(host: str, own: bool) -> None:
    assert is_loopback(host) is own


def test_a_server_resolves_to_its_backend() -> None:
    server = Server(
        name="GPU 1",
        url="https://h/ollama",
        api_key="token",
        vram_gb=24,
        max_concurrent=3,
        embedding_batch_size=16,
        http2=True,
        tls_verify=False,
        host_header="x",
        enabled=False,
    )
    backend, other = resolve(Settings(servers=(server, Server(name="b", url="h", kind="openai"))))
    assert (backend.name, backend.id, backend.column, backend.kind) == ("GPU 1", 1, 0, "ollama")
    assert (backend.scheme, backend.host, backend.port, backend.path_prefix) == ("https", "h", 443, "/ollama")
    assert (backend.api_key, backend.vram_bytes, backend.max_concurrent) == ("token", 24 * 1024**3, 3)
    assert (backend.embedding_batch_size, backend.http2, backend.tls_verify) == (16, True, False)
    assert (backend.host_header, backend.enabled) == ("x", False)
    assert (other.id, other.column, other.kind, other.port) == (2, 1, "openai", 80)
