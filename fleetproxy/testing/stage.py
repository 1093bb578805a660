"""A stage for fault tests: scripted upstreams, a real service in front of them, and the books kept on every request.

    stage = await Stage.open(folder, processes=2)
    stage["a"].script = [Rst()]
    answer = await stage.ask("/api/chat", b'{"model":"m"}')
    await stage.settle()      # the oracle, and exactly one record for every request asked here

Three upstreams: `a` holds "m" in memory and so is asked first, `b` has it on disk, `o` speaks OpenAI. "solo" is on `a`
alone, "omni" on `o` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.testing.raw import Answer, RawClient, connect, request
from fleetproxy.testing.script import Keep, Send, response
from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import until

#: Short, so that a case takes a second; long enough for a busy machine.
TIMEOUTS = {
    "connect_s": 1.0,
    "first_byte_s": 1.0,
    "first_byte_other_s": 1.0,
    "stream_idle_s": 1.0,
    "body_idle_s": 1.0,
    "write_stall_s": 5.0,
    "drain_s": 2.0,
}
#: One fault after another must not close the way for the next case: no budget, no ejection.
ROUTING = {"retry_budget": 1.0, "eject_failures": 100_000}
DEFAULT = (Send(response(body=b'{"done":true}')), Keep())


async def eventually(done: Callable[[], object], within_s: float = 5.0, what: str = "") -> None:
    """Wait until `done()` is true; AssertionError when it does not become so."""
    deadline_s = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what or done}"
        await asyncio.sleep(0.005)


class Stage:
    """Upstreams, service and books."""

    def __init__(self, service: Service, upstreams: Mapping[str, FaultUpstream]) -> None:
        self.service = service
        self.upstreams = dict(upstreams)
        self._models = {name: (upstream.models, upstream.resident) for name, upstream in upstreams.items()}
        #: Ids of requests that must each have exactly one record.
        self.asked: list[str] = []
        #: Ids of requests whose client may have left before anybody read them: one record or none.
        self.perhaps: list[str] = []
        self._baseline: dict[str, int] = {}
        self._rows = 0

    def __getitem__(self, name: str) -> FaultUpstream:
        return self.upstreams[name]

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        processes: int = 1,
        upstreams: Mapping[str, FaultUpstream] | None = None,
        servers: Mapping[str, Mapping[str, Any]] | None = None,
        wrapper: Sequence[str] = (),
        **settings: Any,
    ) -> Self:
        """Start the upstreams and the service. `servers` adds to single servers' settings, `wrapper` starts it."""
        made = dict(upstreams or cls.usual())
        for upstream in made.values():
            upstream.listen()
        entries = {
            name: {
                "url": upstream.url,
                "kind": upstream.kind,
                **((servers or {}).get(name) or {}),
            }
            for name, upstream in made.items()
        }
        options = {"timeouts": TIMEOUTS, "routing": ROUTING, **settings}
        service = Service(folder, entries, processes=processes, settings=options, wrapper=wrapper)
        stage = cls(service, made)
        try:
            await asyncio.to_thread(service.start)
            await stage.reset()
        except BaseException:
            service.kill()
            await stage.close(check=False)
            raise
        return stage

    @staticmethod
    def usual() -> dict[str, FaultUpstream]:
        return {
            "a": FaultUpstream(("m:latest", "solo:latest"), resident=("m:latest", "solo:latest")),
            "b": FaultUpstream(("m:latest",)),
            "o": FaultUpstream(("omni",), kind="openai"),
        }

    async def close(self, *, check: bool = True) -> None:
        try:
            if self.service.alive:
                code = await asyncio.to_thread(self.service.stop)
                assert not check or code == 0, f"left with {code}:\n{self.service.text()[-4000:]}"
        finally:
            for upstream in self.upstreams.values():
                await upstream.close()

    async def reset(self) -> None:
        """Every upstream healthy, known as online, and forgetful; the books empty."""
        for name, upstream in self.upstreams.items():
            if not upstream.listening:
                upstream.listen()
            upstream.models, upstream.resident = self._models[name]
            upstream.script, upstream.choose, upstream.greeting = DEFAULT, None, ()
            upstream.read_body = upstream.answer_polls = True
            upstream.polls = {}
        await self.all_online()
        for upstream in self.upstreams.values():
            upstream.forget()
        self.asked.clear()
        self.perhaps.clear()
        self.service.allowed.clear()
        self._baseline = await asyncio.to_thread(self.service.open_files)
        self._rows = await self.count()

    async def all_online(self) -> None:
        await asyncio.to_thread(until, self._online, 15.0, "every server online")

    def _online(self) -> bool:
        """Control sees every server, and the proxies answer from a table that has all their models."""
        listening = [upstream for upstream in self.upstreams.values() if upstream.listening]
        models = {name for upstream in listening for name in upstream.models}
        resident = {name for upstream in listening for name in upstream.resident}
        service = self.service
        with contextlib.suppress(OSError, AssertionError):
            service.admin("POST", "/api/poll")
            if not all(server["isOnline"] for server in service.admin("GET", "/api/servers")):
                return False
            # Any of the processes may answer: ask often enough to meet them all.
            return all(
                models <= service.names("/v1/models") and resident <= service.names("/api/ps")
                for _ in range(4 * len(service.pids()))
            )
        return False

    # --- asking -------------------------------------------------------------------------------------------------

    async def connect(self, **options: Any) -> RawClient:
        return await connect(self.service.host, self.service.port, **options)

    def request(
        self,
        path: str,
        body: bytes | None = b'{"model":"m"}',
        headers: tuple[tuple[str, str], ...] = (),
        *,
        method: str = "POST",
        recorded: bool | None = True,
    ) -> bytes:
        """A request with an id of its own in the books; `recorded` None when its client may leave unread."""
        identity = f"case-{uuid4().hex}"
        if recorded is not False:
            (self.perhaps if recorded is None else self.asked).append(identity)
        return request(method, path, body, [*headers, ("X-Request-Id", identity)])

    async def ask(
        self,
        path: str = "/api/chat",
        body: bytes | None = b'{"model":"m"}',
        headers: tuple[tuple[str, str], ...] = (),
        *,
        method: str = "POST",
        within_s: float = 10.0,
    ) -> Answer:
        """One request on a connection of its own."""
        async with await self.connect() as client:
            await client.send(self.request(path, body, headers, method=method))
            return await client.answer(method=method, within_s=within_s)

    async def look(self, path: str, method: str = "GET", *, within_s: float = 10.0) -> Answer:
        """A request answered from memory or by control: it leaves no record."""
        async with await self.connect() as client:
            await client.send(request(method, path))
            return await client.answer(method=method, within_s=within_s)

    async def arrived(self, name: str, count: int) -> None:
        """Wait until an upstream has so many whole requests."""
        found = self[name].requests
        await eventually(lambda: sum(seen.body_complete for seen in found) >= count, what=f"{count} requests at {name}")

    async def closed(self, name: str, number: int, *, within_s: float = 1.0) -> float:
        """Wait until the peer of an upstream's request (counted from 0) has closed; `time.monotonic()` of that."""
        seen = self[name].requests[number]
        await eventually(lambda: seen.closed_s is not None, within_s, f"request {number} of {name} closed")
        return seen.closed_s or 0.0

    def seen(self) -> int:
        """Requests that reached any upstream."""
        return sum(len(upstream.requests) for upstream in self.upstreams.values())

    # --- the books ----------------------------------------------------------------------------------------------

    async def count(self) -> int:
        rows = await asyncio.to_thread(self.service.rows, "select count(*) as n from requests")
        return int(rows[0]["n"])

    async def records(self) -> list[dict[str, Any]]:
        """The one record of each request asked so far, in order of asking."""
        if not self.asked:
            return []
        found = await asyncio.to_thread(self.service.records, self.asked)
        return [found[identity] for identity in self.asked]

    async def record(self) -> dict[str, Any]:
        """The record of the only request asked."""
        rows = await self.records()
        assert len(rows) == 1, f"{len(rows)} requests were asked"
        return rows[0]

    async def attempts(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The attempts of one request, in order."""
        sql = f"select * from attempts where request_id = '{record['request_id']}' order by n"  # noqa: S608
        return await asyncio.to_thread(self.service.rows, sql)

    @property
    def rows_before(self) -> int:
        """Records there were before this case."""
        return self._rows

    async def recount(self) -> None:
        """Take the records there are now for granted: for requests whose number of records is not the question."""
        self._rows = await self.count() - len(self.asked)

    async def settle(self) -> None:
        """The oracle, and exactly as many records as requests, one each."""
        await self.records()
        # What a leaver left behind is closed before it is written down.
        await asyncio.to_thread(self.service.check, self._baseline)
        counted = await asyncio.to_thread(self.service.counted, self.perhaps)
        assert set(counted.values()) <= {1}, "a request with more than one record"
        unsure = len(counted)
        count = await self.count() - self._rows
        assert count == len(self.asked) + unsure, f"{count} records of {len(self.asked)} requests (+ {unsure})"
