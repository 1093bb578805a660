"""The gate: what passes is sane, and every spelling of a path has one owner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.table import Access
from fleetproxy.errors import (
    BadHost,
    BadPath,
    BadRequest,
    ClientError,
    ExpectationFailed,
    HeadersTooLarge,
    MethodRefused,
    UriTooLong,
)
from fleetproxy.proxy import gate
from fleetproxy.wire.head import read_head

HOST = (b"host", b"localhost:11434")


def scope(method="GET", path=b"/api/tags", headers=(HOST,), query=b"", version="1.1"):
    return {
        "type": "http",
        "method": method,
        "raw_path": path,
        "query_string": query,
        "headers": list(headers),
        "http_version": version,
    }


@pytest.mark.parametrize(
    ("request_scope", "error"),
    [
        (scope("TRACE"), MethodRefused),
        (scope("CONNECT"), MethodRefused),
        (scope("get"), MethodRefused),
        (scope("FOO!BAR"), MethodRefused),
        (scope(headers=()), BadHost),
        (scope(headers=(HOST, (b"host", b"other"))), BadRequest),
        (scope(headers=((b"host", b"a b@/c"),)), BadHost),
        (scope(headers=((b"host", b"user@localhost"),)), BadHost),
        (scope(headers=((b"host", b"localhost/x"),)), BadHost),
        (scope(headers=((b"host", b""),)), BadHost),
        (scope(headers=(HOST, (b"expect", b"200-maybe"))), ExpectationFailed),
        (scope(headers=(HOST, (b"content-length", b"+5"))), BadRequest),
        (scope(headers=(HOST, (b"content-length", b"5"), (b"content-length", b"5"))), BadRequest),
        (scope(headers=(HOST, (b"authorization", b"Bearer a"), (b"authorization", b"Bearer b"))), BadRequest),
        (scope(headers=(HOST, (b"x_ollama_api_key", b"k"))), BadRequest),
        (scope(headers=(HOST, (b"x-big", b"y" * 40_000))), HeadersTooLarge),
        (scope(path=b"/" + b"a" * 9000), UriTooLong),
        (scope(query=b"a" * 9000), UriTooLong),
    ],
)
def test_what_no_part_of_us_should_see_is_refused(request_scope, error):
    with pytest.raises(error):
        gate.check(request_scope)


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:1", b"127.0.0.1:11434", b"[::1]:11434", b"[fe80::1%25eth0]", b"a-b.c_d.example"]
)
def test_ordinary_hosts_pass(host):
    gate.check(scope(headers=((b"host", host),)))


@pytest.mark.parametrize(("headers", "version"), [((), "1.0"), (((b"host", b""),), "1")])
def test_an_old_client_may_lack_a_host(headers, version):
    gate.check(scope(headers=headers, version=version))


TRICKS = [
    b"//api/users", b"/api//users", b"/api/./users", b"/api/../users", b"/api/..", b"/api/.",
    b"/api/%2e%2e/x", b"/api/%2E/x",
    b"/api/..%2fusers", b"/api%2fusers", b"/api/%5c..%5cx", b"/api\\users",
    b"/api;x/users", b"/api/users;x=1", b"/api/us%00ers",
    b"/api/us%0d%0aers", b"/api/%0Ax", b"/api/ users", b"/api/\x00", b"/api/\x7f", b"/api/%252e%252e/x",
    b"api/users", b"", b"*",
    b"http://other/api/users",
]  # fmt: skip


@pytest.mark.parametrize("path", TRICKS)
def test_paths_two_readers_could_read_differently_are_refused(path):
    with pytest.raises(BadPath):
        gate.check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models/org/name",
        b"/v1/models/org%2Fname:tag",
        b"/api/tags",
        b"/",
        b"/rerank",
        b"/api/users/1",
        b"/a.b/c..d",
    ],
)
def test_ordinary_paths_pass(path):
    gate.check_path(path)


OWNERS = [
    (b"/", "root"), (b"/api/chat", "backend"), (b"/api/never-heard-of/x", "backend"), (b"/v1/anything", "backend"),
    (b"/api/users", "control"), (b"/api/users/1", "control"), (b"/api/usersx", "backend"), (b"/api/Users", "backend"),
    (b"/api/%75sers", "backend"), (b"/API/users", "nobody"), (b"/api", "nobody"), (b"/api/", "nobody"),
    (b"/v1", "nobody"),
    (b"/v1/", "nobody"), (b"/api/llm/v1/models", "family"), (b"/api/state", "control"),
    (b"/state", "control"),
    (b"/metrics", "control"), (b"/healthz", "control"), (b"/dashboard/x", "control"), (b"/dashboardx", "nobody"),
    (b"/rerank", "backend"), (b"/rerank/x", "backend"), (b"/rerankx", "nobody"), (b"/favicon.ico", "nobody"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "expected"), OWNERS)
def test_every_path_has_one_owner(path, expected):
    assert gate.owner(path, Access(passthrough=("/rerank",))) == expected


@pytest.mark.parametrize("path", [b"/api/users", b"/dashboard", b"/state", b"/api/auth/login"])
def test_a_dashboard_taken_off_the_public_port_is_nobodys(path):
    assert gate.owner(path, Access(dashboard_on_public_port=False)) == "nobody"


def test_metrics_with_an_address_of_their_own_are_nobodys():
    assert gate.owner(b"/metrics", Access(metrics_on_public_port=False)) == "nobody"


@given(st.binary(max_size=60))
def test_any_bytes_are_a_path_or_a_refusal(path):
    try:
        gate.check_path(path)
    except BadPath:
        return
    assert gate.owner(path, Access()) in {"root", "backend", "control", "family", "nobody"}


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"host", b"accept", b"connection", b"x-a", b"cookie", b"authorization", b"te", b"content-type"]
        ),
        st.binary(max_size=20).filter(lambda value: not set(value) & {10, 13, 0}),
    ),
    max_size=12,
)


@given(HEADERS)
def test_no_header_of_one_hop_or_credential_is_forwarded(headers):
    try:
        head = read_head(headers)
    except ClientError:
        return
    names = {line.partition(b":")[0] for line in head.lines.split(b"\r\n") if line}
    assert not names & {b"host", b"connection", b"cookie", b"authorization", b"te"}
    nominated = {token.strip().lower() for token in head.own.get(b"connection", b"").split(b",")}
    if head.own.get(b"connection", b"keep-alive").lower() not in {b"keep-alive", b"close"}:
        assert not names & nominated


def test_a_client_cannot_have_security_headers_stripped_by_nominating_them():
    head = read_head(
        [
            HOST,
            (b"connection", b"close, X-Ollama-Api-Key, Authorization, X-A"),
            (b"authorization", b"Bearer k"),
            (b"x-a", b"1"),
        ]
    )
    assert head.own[b"authorization"] == b"Bearer k"
    assert head.lines == b""
