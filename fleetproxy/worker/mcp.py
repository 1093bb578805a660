"""The agent of an MCP server: at an address, or a command whose standard streams it speaks for."""

from __future__ import annotations

import asyncio
import hmac
import random
import shutil
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from fleetproxy.core import access
from fleetproxy.core.backend import Backend
from fleetproxy.core.worker import Host, Offer
from fleetproxy.settings.servers import Address
from fleetproxy.transport.base import Call
from fleetproxy.wire import payloads
from fleetproxy.worker import machine
from fleetproxy.worker.agent import Agent
from fleetproxy.worker.desk import Desk
from fleetproxy.worker.frame_side import FrameSide
from fleetproxy.worker.options import Options, variables
from fleetproxy.worker.outbox import Outbox
from fleetproxy.worker.probe import Found, ProbeFailed
from fleetproxy.worker.relay_side import RelaySide
from fleetproxy.worker.sides import Identity, Side, with_key
from fleetproxy.worker.stdio import StdioServer

CONNECT_S = 3.0


class McpAgent(Agent):
    """One relay of ours."""

    def __init__(self, options: Options, environment: Mapping[str, str], *, rng: random.Random | None = None) -> None:
        self.stdio: StdioServer | None = None
        if options.command:
            # A backend without an address: the agent's id is made from it, and it must tell commands apart.
            options = msgspec.structs.replace(options, backend=Address("stdio", " ".join(options.command), 0))
            ours = {name for variable in variables("mcp") if variable.secret for name in variable.environment}
            kept = {name: value for name, value in environment.items() if name.removesuffix("_FILE") not in ours}
            self.stdio = StdioServer(options.command, kept, most=options.sessions, idle_s=options.session_idle_s)
        super().__init__(options, rng=rng, transport=self.stdio)

    def drain(self) -> None:
        super().drain()
        if self.stdio is not None:
            self.stdio.hang_up()

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            if self.stdio is not None:
                await self.stdio.close()

    def _make_probe(self) -> McpProbe:
        return McpProbe(self.options, machine.host())

    def _make_side(self, out: Outbox, *, ours: bool) -> Side:
        if ours:
            return McpSide(self, self.desk, self._backend, out, self.options)
        return RelaySide(self, self.desk, self._backend, out, self.options)


class McpProbe:
    """Whether the server is there. It is asked nothing: some open a session for whatever they are asked."""

    def __init__(self, options: Options, host: Host) -> None:
        self._options = options
        self._host = host

    async def look(self) -> Found:
        command, address = self._options.command, self._options.backend
        if command:
            if shutil.which(command[0]) is None:
                raise ProbeFailed(f"there is no command {command[0]!r}")
        else:
            try:
                async with asyncio.timeout(CONNECT_S):
                    _, writer = await asyncio.open_connection(address.host, address.port)
            except (OSError, TimeoutError) as error:
                raise ProbeFailed(f"nobody listens there: {str(error) or 'no answer in time'}") from None
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        return Found(make="openai", models=(), family="mcp")

    def offer(self, found: Found | None, vram_bytes: int | None) -> Offer:
        host = msgspec.structs.replace(self._host, backend_family="mcp")
        if found is None:
            return Offer(status="not_ready", host=host)
        return Offer(max_concurrency=self._options.max_concurrency, host=host).bounded()


class McpSide(FrameSide):
    """Frames, for an MCP server: whatever comes goes to its one endpoint."""

    def __init__(self, identity: Identity, desk: Desk, backend: Backend, out: Outbox, options: Options) -> None:
        super().__init__(identity, desk, backend, out)
        self._options = options

    def goodbye(self, offer: Offer) -> None:
        super().goodbye(offer)
        self.end_listening()

    def _refusal(self, request: payloads.Request) -> str:
        token = self._options.auth_token
        if token is not None and not hmac.compare_digest(_bearer(request.header_lines), token.encode()):
            return "relay_unauthorized"
        return super()._refusal(request)

    def _call(self, request: payloads.Request) -> Call:
        options = self._options
        return Call(
            method=request.method.encode("latin-1"),
            target=options.endpoint.encode("latin-1", "replace"),
            header_lines=with_key(request.header_lines, options.api_key, drop=options.auth_token is not None),
            body=None,
            content_length=request.content_length,
            # Whether a server has read a message that came on a connection it has just closed cannot be known.
            fresh=True,
        )


def _bearer(lines: bytes) -> bytes:
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"authorization":
            return access.bearer_token(value.strip()) or b""
    return b""
