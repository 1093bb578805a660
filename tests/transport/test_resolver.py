"""Names to addresses: nobody waits for somebody else's DNS."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator

import pytest

from fleetproxy.errors import ConnectFailed, ConnectTimeout
from fleetproxy.transport.resolver import FRESH_S, MAX_LOOKUPS, MAX_NAMES, STALE_S, Resolver, lookup


class Dns:
    """A name service: names answer, fail, or hang until `let_go`."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, ...] | OSError | UnicodeError] = {}
        self.asked: list[str] = []
        self.let_go = threading.Event()
        self.now_s = 1000.0

    def lookup(self, name: str) -> tuple[str, ...]:
        self.asked.append(name)
        if name.startswith("hangs"):
            self.let_go.wait(20)
        answer = self.answers.get(name, OSError(socket.EAI_NONAME, "Name or service not known"))
        if isinstance(answer, tuple):
            return answer
        raise answer

    def resolver(self) -> Resolver:
        return Resolver(self.lookup, lambda: self.now_s)


@pytest.fixture
def dns() -> Iterator[Dns]:
    service = Dns()
    yield service
    service.let_go.set()


async def test_addresses_need_no_lookup(dns: Dns) -> None:
    resolver = dns.resolver()
    for address in ("127.0.0.1", "::1", "fe80::1%lo"):
        assert await resolver.resolve(address, 1.0) == (address,)
    assert dns.asked == []


async def test_a_name_is_asked_once_while_its_answer_is_fresh(dns: Dns) -> None:
    dns.answers["gpu"] = ("10.0.0.1", "10.0.0.2")
    resolver = dns.resolver()
    assert await asyncio.gather(*(resolver.resolve("gpu", 1.0) for _ in range(50))) == [("10.0.0.1", "10.0.0.2")] * 50
    assert dns.asked == ["gpu"]
    dns.now_s += FRESH_S
    dns.answers["gpu"] = ("10.0.0.3",)
    assert await resolver.resolve("gpu", 1.0) == ("10.0.0.3",)


async def test_names_that_hang_hold_up_no_other_name(dns: Dns) -> None:
    dns.answers["gpu"] = ("10.0.0.1",)
    resolver = dns.resolver()
    hanging = [asyncio.create_task(resolver.resolve(f"hangs-{n}", 10.0)) for n in range(40)]
    await asyncio.sleep(0)
    assert await resolver.resolve("gpu", 10.0) == ("10.0.0.1",)
    dns.let_go.set()
    assert all(isinstance(e, ConnectFailed) for e in await asyncio.gather(*hanging, return_exceptions=True))


async def test_lookups_that_hang_are_bounded(dns: Dns) -> None:
    resolver = dns.resolver()
    hanging = [asyncio.create_task(resolver.resolve(f"hangs-{n}", 10.0)) for n in range(MAX_LOOKUPS)]
    await asyncio.sleep(0)
    with pytest.raises(ConnectFailed, match="other names are being looked up"):
        await resolver.resolve("hangs-too", 10.0)
    assert resolver.lookups == MAX_LOOKUPS
    dns.let_go.set()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_silent_dns_is_a_timeout_and_its_one_lookup_is_shared_later(dns: Dns) -> None:
    resolver = dns.resolver()
    for _ in range(3):
        with pytest.raises(ConnectTimeout):
            await resolver.resolve("hangs", 0.001)
    assert dns.asked == ["hangs"]
    dns.answers["hangs"] = ("10.0.0.9",)
    dns.let_go.set()
    assert await resolver.resolve("hangs", 10.0) == ("10.0.0.9",)


async def test_while_dns_fails_the_last_addresses_serve_for_a_time(dns: Dns) -> None:
    dns.answers["gpu"] = ("10.0.0.1",)
    resolver = dns.resolver()
    await resolver.resolve("gpu", 1.0)
    dns.answers["gpu"] = OSError(socket.EAI_AGAIN, "Temporary failure in name resolution")
    dns.now_s += FRESH_S
    assert await resolver.resolve("gpu", 1.0) == ("10.0.0.1",)
    dns.now_s += STALE_S
    with pytest.raises(ConnectFailed, match="Temporary failure"):
        await resolver.resolve("gpu", 1.0)


async def test_a_name_that_is_gone_is_gone_at_once(dns: Dns) -> None:
    dns.answers["gpu"] = ("10.0.0.1",)
    resolver = dns.resolver()
    await resolver.resolve("gpu", 1.0)
    del dns.answers["gpu"]
    dns.now_s += FRESH_S
    with pytest.raises(ConnectFailed):
        await resolver.resolve("gpu", 1.0)


async def test_addresses_that_did_not_answer_are_asked_again(dns: Dns) -> None:
    dns.answers["gpu"] = ("10.0.0.1",)
    resolver = dns.resolver()
    await resolver.resolve("gpu", 1.0)
    resolver.forget("gpu")
    resolver.forget("never seen")
    dns.answers["gpu"] = ("10.0.0.2",)
    assert await resolver.resolve("gpu", 1.0) == ("10.0.0.2",)


@pytest.mark.parametrize("failure", [UnicodeError("label too long"), OSError(socket.EAI_FAIL, "server failure")])
async def test_every_failure_is_a_connect_failure(dns: Dns, failure: OSError | UnicodeError) -> None:
    dns.answers["gpu"] = failure
    with pytest.raises(ConnectFailed):
        await dns.resolver().resolve("gpu", 1.0)


async def test_a_name_without_addresses_is_a_failure(dns: Dns) -> None:
    dns.answers["gpu"] = ()
    with pytest.raises(ConnectFailed):
        await dns.resolver().resolve("gpu", 1.0)


async def test_the_cache_is_bounded(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetproxy.transport.resolver.MAX_NAMES", 3)
    resolver = dns.resolver()
    for n in range(10):
        dns.answers[f"gpu{n}"] = (f"10.0.0.{n}",)
        await resolver.resolve(f"gpu{n}", 1.0)
    assert len(resolver._known) == 3 < MAX_NAMES


def test_the_system_resolver_gives_each_address_once() -> None:
    found = lookup("localhost")
    assert len(set(found)) == len(found)
    assert set(found) <= {"127.0.0.1", "::1"}


async def test_a_name_that_comes_to_lead_to_forbidden_places_is_not_followed(dns: Dns) -> None:
    """A-44: what was fine when the server was added is judged again at each connect."""
    resolver = dns.resolver()
    dns.answers["gpu"] = ("10.0.0.1",)
    assert await resolver.resolve("gpu", 1.0) == ("10.0.0.1",)
    dns.now_s += FRESH_S
    dns.answers["gpu"] = ("169.254.169.254", "10.0.0.2", "::ffff:169.254.169.254")
    assert await resolver.resolve("gpu", 1.0) == ("10.0.0.2",)
    assert len(await resolver.look_up("gpu", 1.0)) == 3
    dns.now_s += FRESH_S
    dns.answers["gpu"] = ("169.254.169.254",)
    with pytest.raises(ConnectFailed, match="may be connected to"):
        await resolver.resolve("gpu", 1.0)
