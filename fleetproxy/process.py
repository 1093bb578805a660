"""One child process of the supervisor: its settings, its folders, the words it hears.

    python -m fleetproxy.process <control|hub|proxy> <index> <runtime folder> [<listening descriptor>]

Standard input is the lifeline: a pipe whose other end the supervisor holds. At its end the supervisor is gone and this
process leaves too, at once, even when its event loop hangs.

SIGTERM once: drain (`draining`). Twice, or the lifeline's end: leave now (`stop`); who has not returned `LEAVE_S` later
is cancelled, then ended. SIGHUP: `settings` are read again and every callback of `reload` is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import importlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop

from fleetproxy import log
from fleetproxy.settings import Settings

KINDS = ("control", "hub", "proxy")
#: Blocked from before the start of a child until it has handlers for them.
HELD_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: How long a main may take to return once it has been told to leave now.
LEAVE_S = 2.0
_PR_SET_PDEATHSIG = 1


class Process:
    """What a child's `main(process)` needs to know of itself and of the supervisor's wishes."""

    def __init__(self, kind: str, index: int, runtime: Path, listen_fd: int | None = None) -> None:
        self.kind = kind
        self.index = index
        #: "control", "hub", "proxy-0", "proxy-1", ...
        self.name = f"{kind}-{index}" if kind == "proxy" else kind
        self.runtime = runtime
        self.settings = read_settings(runtime)
        self.data = Path(self.settings.data_dir or runtime)
        #: Hex, new at each start of this process: the supervisor's own, then ours. Names spool segments.
        self.boot = (runtime / "boot").read_text() + secrets.token_hex(3)
        #: Proxies: the public port's socket, bound by the supervisor, which keeps a copy so that connections wait in
        #: its backlog, instead of being refused, while this process is respawned.
        self.listen_fd = listen_fd
        self.draining = asyncio.Event()
        self.stop = asyncio.Event()
        #: Called after SIGHUP, once `settings` are the new ones.
        self.reload: list[Callable[[], None]] = []

    def terminate(self) -> None:
        """SIGTERM: first drain, then leave now."""
        if self.draining.is_set():
            self.leave()
        self.draining.set()

    def leave(self) -> None:
        self.draining.set()
        self.stop.set()

    def reread(self) -> None:
        """SIGHUP: take the settings the supervisor has checked and written."""
        logger = log.get("process")
        try:
            self.settings = read_settings(self.runtime)
        except (OSError, msgspec.MsgspecError) as error:
            logger.error("settings not reloaded: %s", error)
            return
        log.setup(self.settings, self.name)  # the new level, and no secret of the new settings in a line
        for callback in tuple(self.reload):
            try:
                callback()
            except Exception:
                logger.exception("a reload callback failed")


def read_settings(runtime: Path) -> Settings:
    """The settings of this fleetproxy, as its supervisor resolved them."""
    return msgspec.json.decode((runtime / "settings.json").read_bytes(), type=Settings)


Main = Callable[[Process], Awaitable[None]]


async def run(process: Process, main: Main) -> None:
    """Run one main until it returns, or until it was told to leave and did not."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, process.terminate)
    loop.add_signal_handler(signal.SIGINT, process.terminate)
    loop.add_signal_handler(signal.SIGHUP, process.reread)
    for ignored in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(ignored, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
    threading.Thread(target=_hold_lifeline, args=(loop, process), name="lifeline", daemon=True).start()

    running = asyncio.ensure_future(main(process))
    leaving = asyncio.ensure_future(process.stop.wait())
    try:
        await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await asyncio.wait({running}, timeout=LEAVE_S)
        if not running.done():
            running.cancel()
            await asyncio.wait({running}, timeout=LEAVE_S / 2)
        if not running.done():
            log.get("process").warning("%s did not leave in time", process.name)
            os._exit(1)
    finally:
        leaving.cancel()
        # Closing the loop waits for its threads, and one may hang: in a query, in a name lookup.
        _exit_after(LEAVE_S)
    with contextlib.suppress(asyncio.CancelledError):
        running.result()


def _exit_after(seconds: float) -> None:
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _hold_lifeline(loop: asyncio.AbstractEventLoop, process: Process) -> None:
    """Wait, in a thread of its own, for the supervisor's end of the pipe to close."""
    try:
        while os.read(0, 64):
            pass
    except OSError:
        pass
    with contextlib.suppress(RuntimeError):  # the loop is closed: we are leaving already
        loop.call_soon_threadsafe(process.leave)
    threading.Event().wait(LEAVE_S * 2)
    os._exit(1)


def _die_with_parent() -> None:
    """Linux: SIGTERM from the kernel when the supervisor dies, for the time before the lifeline is held."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(arguments: list[str]) -> int:
    kind, index, folder, *rest = arguments
    runtime = Path(folder)
    reason = runtime / (f"{kind}-{index}.failed" if kind == "proxy" else f"{kind}.failed")
    os.umask(0o077)
    faulthandler.enable()
    _die_with_parent()
    try:
        process = Process(kind, int(index), runtime, int(rest[0]) if rest else None)
        log.setup(process.settings, process.name)
        module = importlib.import_module(f"fleetproxy.{kind}.main")
        uvloop.run(run(process, module.main))
    except Exception as error:
        # One line for the supervisor's sentence; the whole story in the log.
        with contextlib.suppress(OSError):
            reason.write_text(f"{type(error).__name__}: {error}".splitlines()[0][:500])
        log.get("process").exception("%s failed", reason.stem)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
