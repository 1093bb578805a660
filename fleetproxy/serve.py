"""The supervisor: starts control, hub and proxies, replaces the dead, drains them in order.

It does no work of its own, so that nothing but a signal can end it. Each child is a subprocess in a session of its own,
held by a lifeline pipe (`process.py`). Before everything was ready once, a child that dies `START_TRIES` times ends the
start with a sentence; after that a child is replaced for ever.

    SIGTERM, SIGINT   drain: proxies (503 for new work, open requests to their end), then the hub, then control
    the same again    leave now
    SIGHUP            read the configuration again; a bad one is reported and the old one stays. When the terminal it
                      was started on is gone: drain
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import stat
import time
from collections.abc import Callable, Sequence

import msgspec

from fleetproxy import folders, log, ports
from fleetproxy.children import (
    QUIET_S,
    SOCKETS,
    Child,
    Command,
    affordable_connections,
    backoff_s,
    end_orphans,
    product_command,
    raise_file_limit,
)
from fleetproxy.link import board
from fleetproxy.notify import notify, watchdog_s
from fleetproxy.process import KINDS
from fleetproxy.settings import Settings
from fleetproxy.settings.fixed import keep_fixed
from fleetproxy.settings.servers import dashboard_url, parse_listen, public_url

START_TRIES = 3
#: Proxies start when control answers, or after this: they can serve without it, once they have a snapshot.
CONTROL_FIRST_S = 5.0
#: How long a start may take until proxies and hub answer.
READY_S = 60.0
#: After "leave now": then SIGKILL.
KILL_S = 3.0
#: How long hub and control may take to leave in peace. Control takes in the last audit rows.
HUB_LEAVES_S, CONTROL_LEAVES_S = 5.0, 20.0

logger = log.get("serve")


class StartFailed(Exception):
    """fleetproxy cannot start; the text is the sentence for the user."""


class Report(msgspec.Struct, frozen=True):
    """What the supervisor tells control, in `supervisor.json` of the runtime folder."""

    pid: int
    boot: str
    started_at_s: float
    #: Child -> how often it was replaced.
    respawns: dict[str, int]
    reloads: int = 0
    reload_ok: bool = True
    reload_error: str = ""
    reloaded_at_s: float | None = None


class Supervisor:
    """Runs one fleetproxy. `reread` gives the settings anew for SIGHUP, or raises with a sentence."""

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings] | None = None,
        command: Command = product_command,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        self.settings = settings
        self.url = ""
        #: Called with the dashboard's address once everything serves.
        self.on_ready: Callable[[str], None] = lambda dashboard: None
        self.children: list[Child] = []
        self._kinds = kinds
        self._reread = reread
        self._command = command
        self._wake = asyncio.Event()
        self._started = False
        self._stops_asked = 0
        self._reload_asked = False
        self._watchdog_s = watchdog_s()
        self._on_terminal = os.isatty(0)
        self._report = Report(os.getpid(), secrets.token_hex(4), time.time(), {})

    # --- one life, from top to bottom ---

    async def run(self) -> None:
        """Serve until told to stop. Raises StartFailed, FolderError or PortTaken, with nothing left running."""
        self._prepare()
        try:
            self._listen_to_signals()
            await self._start()
            while not self._stops_asked:
                try:
                    await self._step()
                except Exception:  # whatever it was, the children live on, and so does who looks after them
                    logger.exception("a step of the supervisor failed")
                    await self._sleep(1.0)
        except StartFailed:
            self._stops_asked = 2  # nobody was promised anything yet
            raise
        finally:
            await self._drain()
            self._clean_up()

    def _prepare(self) -> None:
        os.umask(0o077)
        self._connections = affordable_connections(raise_file_limit())
        self.settings = self._within_limits(self.settings)
        data, runtime = folders.data_folder(self.settings), folders.runtime_folder(self.settings)
        folders.prepare_data(data)
        folders.prepare_runtime(runtime)
        self.data, self.runtime = data, runtime
        note = folders.Running(os.getpid(), str(runtime))
        self._data_lock = folders.Lock(data, note)
        try:
            self._runtime_lock = folders.Lock(runtime, note)
            end_orphans(runtime)
            listeners = self._claim_ports()
            port = int(listeners[0].getsockname()[1])
            self.settings = msgspec.structs.replace(
                self.settings, port=port, data_dir=str(data), runtime_dir=str(runtime)
            )
            self.url = public_url(self.settings)
            self._data_lock.write(msgspec.structs.replace(note, url=self.url))
            self._lay_out()
        except OSError as error:
            raise folders.FolderError(f"cannot write to {error.filename or runtime}: {error.strerror}") from None
        every = [
            Child("control"),
            Child("hub"),
            *(Child("proxy", place, taken) for place, taken in enumerate(listeners)),
        ]
        self.children = [child for child in every if child.kind in self._kinds]

    def _within_limits(self, settings: Settings) -> Settings:
        """No more connections than there are descriptors for."""
        limits = settings.limits
        fitting = msgspec.structs.replace(limits, connections=min(limits.connections, self._connections))
        return msgspec.structs.replace(settings, limits=fitting)

    def _claim_ports(self) -> list[socket.socket]:
        settings = self.settings
        for name in ("dashboard", "metrics", "hub"):
            text = getattr(settings, name).listen
            if text:
                ports.check(*parse_listen(text, settings.host), option=f"{name}.listen")
        return ports.claim(settings.host, settings.port, settings.processes)

    def _lay_out(self) -> None:
        """Fill the runtime folder: nothing of an earlier life stays in it."""
        for leftover in ("snapshot", *(name for names in SOCKETS.values() for name in names)):
            (self.runtime / leftover).unlink(missing_ok=True)
        folders.write_whole(self.runtime / "settings.json", msgspec.json.encode(self.settings))
        folders.write_whole(self.runtime / "boot", self._report.boot.encode())
        board.create(self.runtime / "board", self.settings.processes)
        self._board = board.Board(self.runtime / "board")

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        loop.add_signal_handler(signal.SIGCHLD, self._wake.set)
        for ignored in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(ignored, signal.SIG_IGN)

    def _on_stop(self) -> None:
        self._stops_asked += 1
        self._wake.set()

    def _on_hangup(self) -> None:
        """SIGHUP: a reload; or the terminal we were started on was closed, and whoever started us with it."""
        if self._on_terminal and not os.isatty(0):
            self._on_stop()
            return
        self._reload_asked = True
        self._wake.set()

    async def _start(self) -> None:
        """Control and hub, then proxies; returns when all answer, or a stop was asked for."""
        proxies = [child for child in self.children if child.kind == "proxy"]
        others = [child for child in self.children if child.kind != "proxy"]
        control = [child for child in others if child.kind == "control"]
        serving = [child for child in self.children if child.kind != "control"]
        _due(others)
        await self._until(lambda: all(child.ready for child in control), CONTROL_FIRST_S)
        _due(proxies)
        if not await self._until(lambda: all(child.ready for child in serving), READY_S) and not self._stops_asked:
            late = ", ".join(child.name for child in serving if not child.ready)
            raise StartFailed(f"{late} did not become ready within {READY_S:.0f} s; the log lines above may say why")
        await self._until(lambda: all(child.ready for child in control), CONTROL_FIRST_S)
        if self._stops_asked:
            return
        self._started = True
        self._write_report()
        for child in control:
            if not child.ready:
                logger.warning("%s is still starting; dashboard and metrics answer later", child.name)
        self._say_ready()

    def _say_ready(self) -> None:
        count = len(self.settings.servers)
        fleet = f"{count} server{'' if count == 1 else 's'}" if count else "no servers yet"
        dashboard = dashboard_url(self.settings, self.url)
        _say(f"fleetproxy is ready: {self.url} ({fleet}){f', dashboard: {dashboard}' if dashboard else ''}\n")
        if dashboard:
            self.on_ready(dashboard)
        notify(f"READY=1\nSTATUS=Serving {fleet} at {self.url}\nMAINPID={os.getpid()}")

    async def _until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Keep the family going until `done`, a stop, or the time is over; whether it is done."""
        deadline_s = time.monotonic() + timeout_s
        while not done() and not self._stops_asked and time.monotonic() < deadline_s:
            await self._step(0.05)
        return done()

    # --- one step ---

    async def _step(self, at_most_s: float = 1.0) -> None:
        """Bury the dead, start who is due, look who became ready, reload; then sleep until something happens."""
        now = time.monotonic()
        self._bury(now)
        for child in self.children:
            if child.due_s is not None and child.due_s <= now:
                self._spawn(child, now)
            if child.alive and not child.ready:
                child.ready = child.answers(self.runtime, self.settings.port)
                at_most_s = min(at_most_s, 0.05)
        if self._reload_asked:
            self._reload_asked = False
            self._reload()
        due = [child.due_s - now for child in self.children if child.due_s is not None]
        await self._sleep(max(0.0, min([at_most_s, *due])))

    async def _sleep(self, timeout_s: float) -> None:
        if self._watchdog_s:
            notify("WATCHDOG=1")
            timeout_s = min(timeout_s, self._watchdog_s / 2)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        self._wake.clear()

    def _spawn(self, child: Child, now: float) -> None:
        try:
            child.start(self._command, self.runtime, now)
        except OSError as error:  # no memory, processes or files left: as good as a death
            self._count_death(child, now, f"cannot be started: {error.strerror}")
            return
        if child.starts > 1:
            self._write_report()

    def _bury(self, now: float) -> None:
        for child in self.children:
            code = child.bury()
            if code is None:
                continue
            if child.row is not None:  # nothing is in flight, or waits, in a dead process
                self._board.clear_row(child.row)
            if self._stops_asked:
                logger.debug("%s left: %s", child.name, child.why(code, self.runtime))
            else:
                self._count_death(child, now, child.why(code, self.runtime))

    def _count_death(self, child: Child, now: float, reason: str) -> None:
        if now - child.started_s > QUIET_S:
            child.deaths = 0
        child.deaths += 1
        child.due_s = now + backoff_s(child.deaths)
        if not self._started and child.deaths >= START_TRIES:
            raise StartFailed(f"{child.name} failed to start {START_TRIES} times, last with: {reason}")
        logger.warning("%s ended: %s; it is started again", child.name, reason)

    # --- reload ---

    def _reload(self) -> None:
        if self._reread is None:
            return
        notify("RELOADING=1")
        try:
            merged, kept = keep_fixed(self.settings, self._within_limits(self._reread()))
            folders.write_whole(self.runtime / "settings.json", msgspec.json.encode(merged))
        except Exception as error:
            logger.error("configuration not reloaded, the old one stays")
            for line in str(error).splitlines():
                logger.error("%s", line)
            self._note_reload(str(error))
        else:
            for name in kept:
                logger.warning("a new %s needs a restart; the old one holds until then", name)
            self.settings = merged
            log.setup(merged, "serve")
            self._note_reload("")
            for child in self.children:
                child.signal(signal.SIGHUP)
            logger.info("configuration reloaded: %d servers", len(merged.servers))
        notify("READY=1")

    def _note_reload(self, error: str) -> None:
        self._report = msgspec.structs.replace(
            self._report,
            reloads=self._report.reloads + 1,
            reload_ok=not error,
            reload_error=error,
            reloaded_at_s=time.time(),
        )
        self._write_report()

    def _write_report(self) -> None:
        respawns = {child.name: max(child.starts - 1, 0) for child in self.children}
        self._report = msgspec.structs.replace(self._report, respawns=respawns)
        with contextlib.suppress(OSError):
            folders.write_whole(self.runtime / "supervisor.json", msgspec.json.encode(self._report))

    # --- the end ---

    async def _drain(self) -> None:
        """Proxies, then the hub, then control: each may finish what the one before still needs of it."""
        self._stops_asked = self._stops_asked or 1
        notify("STOPPING=1")
        for child in self.children:
            child.due_s = None
        for kind, grace_s in (
            ("proxy", self.settings.timeouts.drain_s + 0.5),
            ("hub", HUB_LEAVES_S),
            ("control", CONTROL_LEAVES_S),
        ):
            await self._end([child for child in self.children if child.kind == kind], grace_s)

    async def _end(self, stage: list[Child], grace_s: float) -> None:
        """SIGTERM; after the grace, or a second stop, "leave now"; at last SIGKILL."""
        for child in stage:
            child.signal(signal.SIGTERM)
        await self._until_dead(stage, grace_s, patient=True)
        for child in stage:
            child.let_go()
        await self._until_dead(stage, KILL_S, patient=False)
        for child in stage:
            if child.alive:
                logger.error("%s did not leave and is killed", child.name)
                child.signal(signal.SIGKILL)
        await self._until_dead(stage, KILL_S, patient=False)

    async def _until_dead(self, stage: list[Child], timeout_s: float, *, patient: bool) -> None:
        """Wait for a stage; its port is given up with its last process. A second stop ends the patience."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            self._bury(now)
            for child in stage:
                if not child.alive and child.listener is not None:
                    child.listener.close()
            if not any(child.alive for child in stage) or now >= deadline_s or (patient and self._stops_asked > 1):
                return
            await self._sleep(min(deadline_s - now, 1.0))

    def _clean_up(self) -> None:
        """Leave no sockets, no settings with keys in them; the data folder keeps its lock file, free."""
        self._board.close()
        with contextlib.suppress(OSError):
            for path in self.runtime.iterdir():
                if path.name != "lock" and not path.is_dir():
                    path.unlink(missing_ok=True)
            (self.runtime / "lock").unlink()
            self.runtime.rmdir()
        self._runtime_lock.release()
        self._data_lock.write(folders.Running(0, ""))
        self._data_lock.release()


def _due(children: list[Child]) -> None:
    for child in children:
        child.due_s = time.monotonic()


def _say(text: str) -> None:
    """Write to standard output; to its end when it is a file, for the log may go there too, by its own descriptor."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(1).st_mode):
            os.lseek(1, 0, os.SEEK_END)
        os.write(1, text.encode())
