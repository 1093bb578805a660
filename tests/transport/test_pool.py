"""Kept connections: what becomes of them when their server is taken out or gets another address."""

from __future__ import annotations

import asyncio

from fleetproxy.core.backend import Backend
from fleetproxy.testing.fault import FaultUpstream
from fleetproxy.transport.base import Call
from fleetproxy.transport.pool import Http1Transport, tls_context

CALL = Call(method=b"POST", target=b"/api/show", header_lines=b"", body=b"{}")


async def test_a_connection_in_use_when_its_server_was_taken_out_is_closed_after_it() -> None:
    transport = Http1Transport(asyncio.get_running_loop(), tls_context)
    async with FaultUpstream() as upstream:
        backend = Backend(name="s", id=1, column=0, host=upstream.host, port=upstream.port)
        kept = await transport.open(backend, CALL, 1.0)
        await kept.answer()
        kept.close()
        assert kept.open, "the server is still there"
        used = await transport.open(backend, CALL, 1.0)
        assert used is kept
        await used.answer()
        transport.keep_only(frozenset())
        used.close()
        assert not used.open
        transport.close()


async def test_a_connection_in_use_when_its_server_moved_is_closed_after_it() -> None:
    transport = Http1Transport(asyncio.get_running_loop(), tls_context)
    async with FaultUpstream() as old, FaultUpstream() as new:
        used = await transport.open(Backend(name="s", id=1, column=0, host=old.host, port=old.port), CALL, 1.0)
        await used.answer()
        other = await transport.open(Backend(name="s", id=1, column=0, host=new.host, port=new.port), CALL, 1.0)
        await other.answer()
        used.close()
        other.close()
        assert (used.open, other.open) == (False, True)
        transport.close()
