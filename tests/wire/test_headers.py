from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.backend import Backend
from fleetproxy.wire.headers import GUARDS, HOP_BY_HOP, location, response_headers

HOSTILE = [
    *sorted(HOP_BY_HOP),
    *(
        b"content-length set-cookie set-cookie2 clear-site-data strict-transport-security alt-svc refresh "
        b"service-worker-allowed access-control-allow-origin access-control-allow-credentials "
        b"access-control-allow-headers access-control-allow-methods access-control-expose-headers "
        b"access-control-max-age content-security-policy x-request-id request-id server-timing x-fleet-backend "
        b"x-content-type-options"
    ).split(),
]
HARMLESS = [
    b"content-type",
    b"cache-control",
    b"retry-after",
    b"etag",
    b"date",
    b"x-custom",
    b"content-encoding",
    b"vary",
]
PAIRS = st.lists(st.tuples(st.sampled_from(HOSTILE + HARMLESS), st.binary(max_size=8)), max_size=12)


@given(PAIRS)
def test_what_is_not_ours_to_drop_goes_through_in_order(headers: list[tuple[bytes, bytes]]) -> None:
    sent = [pair for pair in headers if pair[0] not in (b"connection",)]
    kept = response_headers(sent)
    assert kept == [pair for pair in sent if pair[0] in HARMLESS] + list(GUARDS)
    assert response_headers(kept[: -len(GUARDS)]) == kept


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_hop_by_hop_headers_end_here(name: bytes) -> None:
    kept = response_headers([(name, b"x"), (b"content-type", b"text/plain")])
    assert [pair for pair in kept if pair not in GUARDS] == [(b"content-type", b"text/plain")]


@given(st.lists(st.sampled_from(HARMLESS), max_size=4), st.sampled_from([b"", b"close, ", b"Keep-Alive ,"]))
def test_headers_nominated_by_connection_end_here(nominated: list[bytes], before: bytes) -> None:
    named = b" , ".join(name.title() for name in nominated)
    kept = dict(response_headers([(b"connection", before + named), *((name, b"v") for name in HARMLESS)]))
    assert {name for name in HARMLESS if name in kept} == set(HARMLESS) - set(nominated)


def test_two_connection_headers_both_nominate() -> None:
    headers = [(b"connection", b"x-a"), (b"x-a", b"1"), (b"x-b", b"2"), (b"connection", b"x-b")]
    assert response_headers(headers) == list(GUARDS)


BACKEND = Backend(name="a", id=1, column=1, host="10.0.0.5", port=8000, path_prefix="/ollama")
PLAIN = Backend(name="b", id=2, column=2, scheme="https", host="GPU.local", port=443)


@pytest.mark.parametrize(
    ("backend", "value", "seen"),
    [
        (BACKEND, b"/api/tags", b"/api/tags"),
        (BACKEND, b"/ollama/api/tags?x=1", b"/api/tags?x=1"),
        (BACKEND, b"/ollamas/api", b"/ollamas/api"),
        (BACKEND, b"tags", b"tags"),
        (BACKEND, b"?page=2", b"?page=2"),
        (BACKEND, b"http://10.0.0.5:8000/ollama/api/tags?a=b", b"/api/tags?a=b"),
        (BACKEND, b"http://10.0.0.5:8000", b"/"),
        (BACKEND, b"http://10.0.0.5:8000/ollama//evil.example/x", b"/evil.example/x"),
        (BACKEND, b"http://10.0.0.5:8000//evil.example/x", b"/evil.example/x"),
        (BACKEND, b"http://10.0.0.5:9000/x", None),
        (PLAIN, b"https://gpu.local/x", b"/x"),
        (PLAIN, b"//gpu.local:443/x", b"/x"),
        (None, b"http://10.0.0.5/x", None),
        (BACKEND, b"https://ollama.com/library", b"https://ollama.com/library"),
        (BACKEND, b"https://8.8.8.8/x", b"https://8.8.8.8/x"),
        (BACKEND, b"//ollama.com/x", b"//ollama.com/x"),
        (BACKEND, b"http://127.0.0.1/x", None),
        (BACKEND, b"http://[::1]:1/x", None),
        (BACKEND, b"http://169.254.169.254/latest/meta-data", None),
        (BACKEND, b"http://192.168.0.9/", None),
        (BACKEND, b"http://localhost/", None),
        (BACKEND, b"http://db/", None),
        (BACKEND, b"http://gpu2.internal./", None),
        (BACKEND, b"http://2130706433/", None),
        (BACKEND, b"http://0x7f.1/", None),
        (BACKEND, b"http://0177.0.0.1/", None),
        (BACKEND, b"http://user:pw@ollama.com/", None),
        (BACKEND, b"javascript:alert(1)", None),
        (BACKEND, b"file:///etc/passwd", None),
        (BACKEND, b"http://", None),
        (BACKEND, b"http://[::1/x", None),
        (BACKEND, b"http://a.example:99999/x", None),
        (BACKEND, b"/x\r\nset-cookie: a=b", None),
        (BACKEND, b"/x y", None),
        (BACKEND, b"\\\\evil.example\\x", None),
        (BACKEND, "/käse".encode(), None),
        (BACKEND, b"", None),
    ],
)
def test_redirects_never_point_into_the_fleet(backend: Backend | None, value: bytes, seen: bytes | None) -> None:
    assert location(value, backend) == seen
    kept = dict(response_headers([(b"location", value), (b"content-location", value)], backend_host=backend))
    assert kept.get(b"location") == kept.get(b"content-location") == seen


@given(st.binary(max_size=40) | st.text("htps:/.0123@[]?#ab%\\", max_size=40).map(str.encode))
def test_any_redirect_is_kept_rewritten_or_dropped(value: bytes) -> None:
    seen = location(value, BACKEND)
    assert seen is None or seen == value or not seen.startswith((b"//", b"http:", b"https:"))
