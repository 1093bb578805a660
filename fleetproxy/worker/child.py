"""A server as a subprocess that speaks in lines over its standard streams: started, written to, read, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

_log = logging.getLogger("fleetproxy.worker.child")

#: A longer line ends the child: nobody could pass it on.
MAX_LINE_BYTES = 16 * 1024 * 1024
#: With more than this waiting to be read by it, a child takes nothing new.
MAX_UNREAD_BYTES = 16 * 1024 * 1024
#: After its input has ended a child has this long to leave by itself, and again after SIGTERM.
LEAVE_S = 2.0
#: Lines of its error output that are logged in a burst, and how fast more are allowed.
SAID_BURST, SAID_PER_S = 100.0, 5.0
MAX_SAID_CHARACTERS = 512


class Child(asyncio.SubprocessProtocol):
    """One subprocess. `on_line(line)` for each line it writes, `on_end()` once when it is gone."""

    def __init__(self, on_line: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_line = on_line
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.SubprocessTransport | None = None
        self._held = bytearray()
        self._said = bytearray()
        self._allowance, self._counted_s = SAID_BURST, self._loop.time()
        self._gone = asyncio.Event()
        self._ended = False
        self.pid = 0

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_line: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> Child:
        """Start it, in a session of its own. Raises OSError."""
        child = cls(on_line, on_end)
        await child._loop.subprocess_exec(lambda: child, *command, env=dict(environment), start_new_session=True)
        return child

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def full(self) -> bool:
        """It does not read what it is sent."""
        pipe = self._pipe(0)
        return pipe is not None and pipe.get_write_buffer_size() > MAX_UNREAD_BYTES  # type: ignore[attr-defined]

    def send(self, line: bytes) -> None:
        """Give it a line (without its end)."""
        pipe = self._pipe(0)
        if pipe is not None and not pipe.is_closing():
            pipe.writelines((line, b"\n"))  # type: ignore[attr-defined]

    def pause(self) -> None:
        """Read no further for now: nobody takes what it says."""
        with suppress(RuntimeError):
            self._reading("pause_reading")

    def resume(self) -> None:
        with suppress(RuntimeError):
            self._reading("resume_reading")

    async def stop(self) -> None:
        """End its input; wait for it to leave; then make it, and whatever it has started."""
        if self._transport is None:
            return
        pipe = self._pipe(0)
        if pipe is not None:
            pipe.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S):
                    await self._gone.wait()
                break
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
        await self._gone.wait()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it has started and left behind
        self._transport.close()

    # --- asyncio's callbacks -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.pid = transport.get_pid()  # type: ignore[attr-defined]

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._hear(data)
            return
        held = self._held
        held += data
        if b"\n" not in data:
            if len(held) > MAX_LINE_BYTES:
                _log.error("a line of the MCP server is longer than %d bytes; it is ended", MAX_LINE_BYTES)
                self._held.clear()
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            return
        *lines, rest = bytes(held).split(b"\n")
        self._held = bytearray(rest)
        for line in map(bytes.strip, lines):
            if line:
                self._on_line(line)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._finish()

    def process_exited(self) -> None:
        self._gone.set()
        self._finish()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Once: it has closed its output, or has left."""
        if not self._ended and (self._gone.is_set() or self._pipe(1) is None or self._pipe(1).is_closing()):  # type: ignore[union-attr]
            self._ended = True
            self._on_end()

    def _pipe(self, fd: int) -> asyncio.BaseTransport | None:
        return self._transport.get_pipe_transport(fd) if self._transport is not None else None

    def _reading(self, how: str) -> None:
        pipe = self._pipe(1)
        if pipe is not None and not pipe.is_closing():
            getattr(pipe, how)()

    def _hear(self, data: bytes) -> None:
        """Its error output is for people: into the log, a line each, no flood."""
        self._said += data[-64 * 1024 :]
        *lines, rest = bytes(self._said[-64 * 1024 :]).split(b"\n")
        self._said = bytearray(rest[-4096:])
        now_s = self._loop.time()
        self._allowance = min(SAID_BURST, self._allowance + (now_s - self._counted_s) * SAID_PER_S)
        self._counted_s = now_s
        for line in lines:
            if line.strip() and self._allowance >= 1.0:
                self._allowance -= 1.0
                _log.info("the MCP server says: %s", line.decode("utf-8", "replace").strip()[:MAX_SAID_CHARACTERS])
