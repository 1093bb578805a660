from __future__ import annotations

import hashlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.core.access import (
    BUILTIN_ORIGINS,
    MAX_KEY_BYTES,
    NOBODY,
    client_address,
    cors,
    host_allowed,
    identify,
    networks,
    origin_allowed,
    source,
    trusted,
)
from fleetproxy.core.table import Principal

ANNA, BOB, GONE = (
    Principal(name="anna"),
    Principal(name="bob"),
    Principal(name="gone", expires_at_s=100.0),
)
KEYS = {b"anna-key": ANNA, b"bob-key": BOB, b"gone-key": GONE}
PRINCIPALS = {hashlib.sha256(key).digest(): principal for key, principal in KEYS.items()}
CARRIERS = {
    "ollama": lambda key: {b"x-ollama-api-key": key},
    "bearer": lambda key: {b"authorization": b"Bearer " + key},
    "lower": lambda key: {b"authorization": b"bearer  " + key},
    "anthropic": lambda key: {b"x-api-key": key},
}


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_key_is_the_same_key_in_every_carrier(carrier: str) -> None:
    caller = identify(CARRIERS[carrier](b"anna-key"), PRINCIPALS, 1.0)
    assert (caller.principal, caller.key_unknown, caller.forwarded) == (ANNA, False, b"")


WRONG = [
    b"",
    b"anna-ke",
    b"anna-key2",
    b"ANNA-KEY",
    b"anna-key\x00",
    b"\xff\xfe",
    b"k" * (MAX_KEY_BYTES + 1),
    b"' OR 1=1--",
    b"gone-key",
    hashlib.sha256(b"anna-key").hexdigest().encode(),
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_key_is_nobodys_and_flagged(carrier: str, key: bytes) -> None:
    caller = identify(CARRIERS[carrier](key), PRINCIPALS, 100.0)
    assert caller.principal is None
    assert caller.key_unknown


def test_keys_that_are_not_ours_go_on_and_ours_do_not() -> None:
    basic = identify({b"authorization": b"Basic abc"}, PRINCIPALS, 1.0)
    assert (basic.principal, basic.key_unknown, basic.forwarded) == (None, False, b"authorization: Basic abc\r\n")
    mixed = identify(
        {b"x-ollama-api-key": b"anna-key", b"authorization": b"Bearer theirs", b"x-api-key": b"bob-key"},
        PRINCIPALS,
        1.0,
    )
    assert (mixed.principal, mixed.key_unknown) == (ANNA, False)
    assert mixed.forwarded == b"authorization: Bearer theirs\r\n"
    both = identify({b"authorization": b"Bearer x", b"x-api-key": b"y"}, PRINCIPALS, 1.0)
    assert both.forwarded == b"authorization: Bearer x\r\nx-api-key: y\r\n"
    assert identify({b"x-ollama-api-key": b"nope"}, PRINCIPALS, 1.0).forwarded == b""


CREDENTIALS = st.sampled_from([None, b"anna-key", b"bob-key", b"gone-key", b"other"])


@given(CREDENTIALS, CREDENTIALS, CREDENTIALS)
def test_the_first_known_key_wins_and_no_known_key_is_forwarded(
    ollama: bytes | None, bearer: bytes | None, anthropic: bytes | None
) -> None:
    own = {}
    for name, key in ((b"x-ollama-api-key", ollama), (b"authorization", bearer), (b"x-api-key", anthropic)):
        if key is not None:
            own[name] = b"Bearer " + key if name == b"authorization" else key
    caller = identify(own, PRINCIPALS, 1.0)
    known = [KEYS[key] for key in (ollama, bearer, anthropic) if key in KEYS]
    assert caller.principal == (known[0] if known else None)
    assert caller.key_unknown == (not known and bool(own))
    for key in KEYS:
        assert key not in caller.forwarded


def test_no_credentials_are_no_work() -> None:
    assert identify({b"user-agent": b"x"}, PRINCIPALS, 1.0) is NOBODY


# --- sources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "principal", "address", "named"),
    [
        ({b"x-ollama-source": b"cron"}, ANNA, "10.0.0.1", "anna"),
        ({b"x-ollama-source": b" nightly job "}, None, "10.0.0.1", "nightly job"),
        ({b"x-ollama-source": "käse".encode()}, None, "10.0.0.1", "käse"),
        ({b"x-ollama-source": b"a\x1b[31m\nb"}, None, "10.0.0.1", "a\ufffd[31m\ufffdb"),
        ({b"x-ollama-source": b"\xff"}, None, "10.0.0.1", "\ufffd"),
        ({b"x-ollama-source": b"s" * 500}, None, "10.0.0.1", "s" * 128),
        ({b"x-ollama-source": b"  "}, None, "10.0.0.1", "printer"),
        ({}, None, "10.0.0.1", "printer"),
        ({}, None, "10.0.0.2", "10.0.0.2"),
    ],
)
def test_a_source_is_the_key_then_the_header_then_the_address(
    own: dict[bytes, bytes], principal: Principal | None, address: str, named: str
) -> None:
    assert source(own, principal, address, {"10.0.0.1": "printer"}) == named


# --- addresses -----------------------------------------------------------------------------------------------------

PROXIES = networks(("10.0.0.0/8", "::1/128", "192.168.1.7"))


@pytest.mark.parametrize(
    ("peer", "header", "address"),
    [
        ("10.0.0.1", b"203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", b"1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", b"203.0.113.9, 10.2.3.4", "203.0.113.9"),
        ("10.0.0.1", b"10.9.9.9, 10.2.3.4", "10.9.9.9"),
        ("10.0.0.1", b"", "10.0.0.1"),
        ("10.0.0.1", b"nonsense", "10.0.0.1"),
        ("10.0.0.1", b"nonsense, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", b"::ffff:203.0.113.9", "203.0.113.9"),
        ("::ffff:10.0.0.1", b"2001:DB8::1", "2001:db8::1"),
        ("::1", b"203.0.113.9", "203.0.113.9"),
        ("203.0.113.1", b"1.1.1.1", "203.0.113.1"),
        ("::ffff:203.0.113.1", b"1.1.1.1", "203.0.113.1"),
        ("", b"1.1.1.1", ""),
    ],
)
def test_forwarded_for_is_believed_as_far_as_proxies_are(peer: str, header: bytes, address: str) -> None:
    assert client_address(peer, {b"x-forwarded-for": header}, PROXIES) == address


@given(st.ip_addresses(v=4), st.lists(st.ip_addresses().map(str) | st.text("1.:ax ", max_size=5), max_size=4))
def test_nobody_outside_can_choose_an_address(peer: ipaddress.IPv4Address, hops: list[str]) -> None:
    own = {b"x-forwarded-for": ", ".join(hops).encode()}
    assert client_address(str(peer), own, ()) == str(peer)
    seen = client_address("10.0.0.1", own, PROXIES)
    assert seen in ["10.0.0.1", *map(_plain, hops)]


def _plain(hop: str) -> str | None:
    """The address a hop is, IPv4 as IPv4; None when it is none."""
    try:
        address = ipaddress.ip_address(hop.strip())
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def test_networks_are_compared_within_their_version() -> None:
    assert trusted("192.168.1.7", PROXIES)
    assert trusted("::ffff:10.0.0.1", PROXIES)
    assert not trusted("192.168.1.8", PROXIES)
    assert not trusted("not an address", PROXIES)
    with pytest.raises(ValueError, match="network"):
        networks(("10.0.0.0/99",))


# --- hosts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        (b"ai.example.com", True),
        (b"AI.example.com:11434", True),
        (b"localhost:11434", True),
        (b"box.localhost", True),
        (b"nas.local", True),
        (b"gpu.internal:80", True),
        (b"127.0.0.1:11434", True),
        (b"203.0.113.5", True),
        (b"[::1]:11434", True),
        (b"[2001:db8::1]", True),
        (b"", True),
        (b"example.com", False),
        (b"ai.example.com.evil.net", False),
        (b"aixexample.com", False),
        (b"evil.net:11434", False),
        (b"2130706433", False),
        (b"127.1", False),
        (b"localhost.evil.net", False),
        (b"[::1", False),
        (b"\xe4.local.evil", False),
    ],
)
def test_only_our_own_names_and_addresses_are_answered(host: bytes, allowed: bool) -> None:
    assert host_allowed(host, frozenset({"ai.example.com"})) is allowed
    assert host_allowed(host, frozenset())


# --- origins -------------------------------------------------------------------------------------------------------

ORIGINS = (
    "https://app.example.com",
    "https://*.corp.example",
    "http://192.168.1.*",
    "chrome-extension://*",
    "http://[fd00::1]:3000",
    "bare.example",
    "http://ports.example:*",
)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (b"http://localhost", True),
        (b"https://localhost:5173", True),
        (b"http://127.0.0.1:3000", True),
        (b"http://0.0.0.0", True),
        (b"app://obsidian.md", True),
        (b"tauri://localhost", True),
        (b"vscode-webview://abc", True),
        (b"file://", True),
        (b"HTTPS://App.Example.com", True),
        (b"https://a.corp.example", True),
        (b"https://a.b.corp.example", True),
        (b"http://192.168.1.50", True),
        (b"chrome-extension://abcdef", True),
        (b"http://[fd00::1]:3000", True),
        (b"https://bare.example", True),
        (b"http://bare.example", True),
        (b"http://ports.example:9", True),
        (b"http://proxy.example:11434", True),
        (b"null", False),
        (b"https://app.example.com.evil.net", False),
        (b"https://evil.net/app.example.com", False),
        (b"https://evilapp.example.com", False),
        (b"http://app.example.com", False),
        (b"https://app.example.com:444", False),
        (b"https://evil.net/.corp.example", False),
        (b"https://corp.example", False),
        (b"http://localhost.evil.net", False),
        (b"http://localhost:evil", False),
        (b"http://127.0.0.1.evil.net", False),
        (b"http://proxy.example", False),
        (b"http://ports.example", False),
        (b"http://fd00::1:3000", False),
        (b"", False),
        (b"\xff", False),
    ],
)
def test_pages_of_other_origins_may_not_call(origin: bytes, allowed: bool) -> None:
    assert origin_allowed(origin, b"proxy.example:11434", ORIGINS) is allowed


def test_a_star_allows_all_and_nothing_else_allows_null() -> None:
    assert origin_allowed(b"https://any.example", b"", ("*",))
    assert origin_allowed(b"null", b"", ("*",))
    assert not origin_allowed(b"null", b"null", ("null", "*.example"))
    assert not origin_allowed(b"https://any.example", b"", BUILTIN_ORIGINS)


@given(st.sampled_from(["GET", "POST", "OPTIONS"]), st.binary(max_size=30), st.booleans(), st.booleans())
def test_credentials_are_never_shared_across_origins(method: str, origin: bytes, preflight: bool, star: bool) -> None:
    own = {b"origin": origin, b"host": b"proxy.example"}
    if preflight:
        own[b"access-control-request-method"] = b"POST"
    decision = cors(method, own, ("*",) if star else ())
    assert decision is not None
    names = {name for name, _ in decision.headers}
    assert b"access-control-allow-credentials" not in names
    assert (b"access-control-allow-origin" in names) == decision.allowed
    assert decision.allowed or not star
    assert (b"vary", b"Origin") in decision.headers
    assert decision.preflight == (method == "OPTIONS" and preflight)


def test_preflights_say_what_may_be_sent() -> None:
    own = {b"origin": b"http://localhost:3000", b"access-control-request-method": b"DELETE"}
    decision = cors("OPTIONS", own, ())
    assert decision is not None
    headers = dict(decision.headers)
    assert headers[b"access-control-allow-origin"] == b"http://localhost:3000"
    assert b"DELETE" in headers[b"access-control-allow-methods"]
    for name in (b"authorization", b"x-stainless-retry-count", b"x-ollama-pin-server", b"x-api-key", b"openai-beta"):
        assert name in headers[b"access-control-allow-headers"].lower()
    simple = cors("POST", {b"origin": b"http://localhost:3000"}, ())
    assert simple is not None
    assert b"x-fleet-backend" in dict(simple.headers)[b"access-control-expose-headers"].lower()
    assert cors("GET", {}, ()) is None
