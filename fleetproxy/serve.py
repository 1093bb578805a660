"""The supervisor: starts control, hub and proxies, replaces the dead, drains them in order.

It does no work of its own, so that nothing but a signal can end it. Each child is a subprocess in a session of its own,
held by a lifeline pipe (`process.py`). Before everything was ready once, a child that dies `START_TRIES` times ends the
start with a sentence; after that a child is replaced for ever.

    SIGTERM, SIGINT   drain: proxies (503 for new work, open requests to their end), then the hub, then control
    the same again    leave now
    SIGHUP            read the configuration again; a bad one is reported and the old one stays
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fleetproxy import folders, log, ports
from fleetproxy.link import board
from fleetproxy.settings import Settings

START_TRIES = 3
#: Proxies start when control answers, or after this.
CONTROL_FIRST_S = 5.0
#: How long a first start may take until proxies and hub answer.
READY_S = 60.0
#: A child that lived this long is no crash loop.
QUIET_S = 10.0
#: From here on it will not mend by itself soon: spend less on trying.
MANY_DEATHS = 60
#: After "leave now": then SIGKILL.
KILL_S = 3.0
#: How long hub and control may take to leave in peace. Control takes in the last audit rows.
HUB_LEAVES_S, CONTROL_LEAVES_S = 5.0, 20.0
MAX_OPEN_FILES = 1 << 20
FEW_OPEN_FILES = 4096
#: Changes of these need a restart; a reload keeps the old values and says so.
FIXED = (
    "host",
    "port",
    "processes",
    "data_dir",
    "runtime_dir",
    "open",
    "tls",
    "metrics",
    "dashboard",
    "hub",
    "limits.connections",
)

SOCKETS = {"control": ("control.sock", "link.sock"), "hub": ("hub.sock",), "proxy": ()}

logger = log.get("serve")


class StartFailed(Exception):
    """fleetproxy cannot start; the text is the sentence for the user."""


def backoff_s(deaths: int) -> float:
    """How long to wait before a child is started again after so many deaths in a row, each within `QUIET_S`."""
    if deaths > MANY_DEATHS:
        return 5.0
    return min(0.05 * 2.0 ** (deaths - 1), 1.0)


class Child:
    """One child process and what became of it."""

    def __init__(self, kind: str, index: int = 0, listener: socket.socket | None = None) -> None:
        self.kind = kind
        self.index = index
        self.name = f"{kind}-{index}" if kind == "proxy" else kind
        self.listener = listener
        self.popen: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        #: When to start it (again); None while it lives or shall not live.
        self.due_s: float | None = None
        self.ready = False
        #: Deaths in a row, each soon after its start.
        self.deaths = 0
        #: Starts after the first, for ever.
        self.respawns = -1

    @property
    def alive(self) -> bool:
        return self.popen is not None


Command = Callable[[Child, Path], Sequence[str]]


def product_command(child: Child, runtime: Path) -> Sequence[str]:
    """The command line of a child."""
    words = [sys.executable, "-m", "fleetproxy.process", child.kind, str(child.index), str(runtime)]
    return [*words, str(child.listener.fileno())] if child.listener else words


class Report(msgspec.Struct, frozen=True):
    """What the supervisor tells control, in `supervisor.json` of the runtime folder."""

    pid: int
    boot: str
    started_at_s: float
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
        kinds: Sequence[str] = ("control", "hub", "proxy"),
    ) -> None:
        self.settings = settings
        self.url = ""
        self.children: list[Child] = []
        self._kinds = kinds
        self._reread = reread
        self._command = command
        self._boot = secrets.token_hex(4)
        self._wake = asyncio.Event()
        self._started = False
        self._stops_asked = 0
        self._reload_asked = False
        self._watchdog_s = _watchdog_s()
        self._report = Report(os.getpid(), self._boot, time.time(), {})

    # --- one life, from top to bottom ---

    async def run(self) -> None:
        """Serve until told to stop. Raises StartFailed, folders.FolderError or ports.PortTaken before anything runs."""
        self._prepare()
        try:
            self._listen_to_signals()
            await self._start()
            while not self._stops_asked:
                await self._step()
        finally:
            await self._drain()
            self._clean_up()

    def _prepare(self) -> None:
        os.umask(0o077)
        _raise_file_limit()
        settings = self.settings
        data, runtime = folders.data_folder(settings), folders.runtime_folder(settings)
        folders.prepare_data(data)
        folders.prepare_runtime(runtime)
        self.data, self.runtime = data, runtime
        note = folders.Running(os.getpid(), str(runtime))
        self._data_lock = folders.Lock(data, note)
        try:
            self._runtime_lock = folders.Lock(runtime, note)
            self._end_orphans()
            listeners = ports.claim(settings.host, settings.port, settings.processes)
            port = int(listeners[0].getsockname()[1])
            for section, option in (
                (settings.dashboard, "dashboard.listen"),
                (settings.metrics, "metrics.listen"),
                (settings.hub, "hub.listen"),
            ):
                if section.listen:
                    host, _, number = section.listen.rpartition(":")
                    ports.check(host.strip("[]"), int(number), option=option)
        except BaseException:
            self._data_lock.release()
            raise
        self.settings = msgspec.structs.replace(settings, port=port, data_dir=str(data), runtime_dir=str(runtime))
        self.url = _url(self.settings)
        for leftover in ("snapshot", *(name for names in SOCKETS.values() for name in names)):
            (runtime / leftover).unlink(missing_ok=True)
        self._data_lock.write(msgspec.structs.replace(note, url=self.url))
        _write(runtime / "settings.json", msgspec.json.encode(self.settings))
        _write(runtime / "boot", self._boot.encode())
        board.create(runtime / "board", settings.processes)
        self._board = board.Board(runtime / "board")
        every = [
            Child("control"),
            Child("hub"),
            *(Child("proxy", index, listener) for index, listener in enumerate(listeners)),
        ]
        self.children = [child for child in every if child.kind in self._kinds]

    def _end_orphans(self) -> None:
        """Children of a supervisor that was killed may still be on their way out; they hold our port and our files."""
        mark = os.fsencode(self.runtime)
        deadline_s = time.monotonic() + KILL_S
        while left := [pid for pid in _pids() if _is_child_of(pid, mark)]:
            kill = time.monotonic() > deadline_s
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
            time.sleep(0.1)

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
        self._reload_asked = True
        self._wake.set()

    async def _start(self) -> None:
        """Control and hub, then proxies; returns when all answer, or a stop was asked for."""
        now = time.monotonic()
        first = [child for child in self.children if child.kind != "proxy"]
        for child in first:
            child.due_s = now
        await self._until(lambda: all(c.ready for c in first if c.kind == "control"), CONTROL_FIRST_S)
        for child in self.children:
            if child.kind == "proxy":
                child.due_s = time.monotonic()
        serving = [child for child in self.children if child.kind != "control"]
        if not await self._until(lambda: all(child.ready for child in serving), READY_S) and not self._stops_asked:
            late = ", ".join(child.name for child in serving if not child.ready)
            raise StartFailed(f"{late} did not become ready within {READY_S:.0f} s; the log lines above may say why")
        await self._until(lambda: all(child.ready for child in self.children), CONTROL_FIRST_S)
        if self._stops_asked:
            return
        self._started = True
        self._write_report()
        for child in self.children:
            if not child.ready:
                logger.warning("%s is still starting; what it serves answers later", child.name)
        self._say_ready()

    def _say_ready(self) -> None:
        servers = len(self.settings.servers)
        fleet = f"{servers} server{'' if servers == 1 else 's'}" if servers else "no servers yet"
        with contextlib.suppress(OSError):
            os.write(1, f"fleetproxy is ready: {self.url} ({fleet}; dashboard {self.url}/dashboard)\n".encode())
        _notify(f"READY=1\nSTATUS=Serving {fleet} at {self.url}\nMAINPID={os.getpid()}")

    async def _until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Run the family until `done`, a stop, or the time is over; whether it is done."""
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
                child.ready = self._answers(child)
                at_most_s = min(at_most_s, 0.05)
        if self._reload_asked:
            self._reload_asked = False
            self._reload()
        due = [child.due_s - now for child in self.children if child.due_s is not None]
        await self._sleep(max(0.0, min([at_most_s, *due])))

    async def _sleep(self, timeout_s: float) -> None:
        if self._watchdog_s:
            _notify("WATCHDOG=1")
            timeout_s = min(timeout_s, self._watchdog_s / 2)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout_s)
        self._wake.clear()

    def _spawn(self, child: Child, now: float) -> None:
        child.due_s, child.started_s, child.ready = None, now, False
        for name in SOCKETS[child.kind]:
            (self.runtime / name).unlink(missing_ok=True)
        (self.runtime / f"{child.name}.failed").unlink(missing_ok=True)
        try:
            child.popen = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
                self._command(child, self.runtime),
                stdin=subprocess.PIPE,
                start_new_session=True,
                pass_fds=(child.listener.fileno(),) if child.listener else (),
            )
        except OSError as error:  # out of memory, processes or files: as good as a death
            logger.error("%s could not be started: %s", child.name, error.strerror)
            self._count_death(child, now, error.strerror or "cannot be started")
            return
        child.respawns += 1
        if child.respawns:
            self._write_report()

    def _bury(self, now: float) -> None:
        for child in self.children:
            if child.popen is None or (code := child.popen.poll()) is None:
                continue
            _close_lifeline(child.popen)
            child.popen, child.ready = None, False
            self._clear_row(child)
            if self._stops_asked:
                continue
            if now - child.started_s > QUIET_S:
                child.deaths = 0
            reason = self._reason(child, code)
            logger.warning("%s ended: %s; it is started again", child.name, reason)
            self._count_death(child, now, reason)

    def _count_death(self, child: Child, now: float, reason: str) -> None:
        child.deaths += 1
        child.due_s = now + backoff_s(child.deaths)
        if not self._started and child.deaths >= START_TRIES:
            raise StartFailed(f"{child.name} failed to start {START_TRIES} times, last with: {reason}")

    def _clear_row(self, child: Child) -> None:
        """Nothing is in flight, or waits, in a dead process."""
        if child.kind == "proxy":
            self._board.clear_row(child.index + 1)
        elif child.kind == "hub":
            self._board.clear_row(0)

    def _reason(self, child: Child, code: int) -> str:
        if code < 0:
            return f"killed by {_signal_name(-code)}"
        try:
            return (self.runtime / f"{child.name}.failed").read_text() or f"exit code {code}"
        except OSError:
            return f"exit code {code}"

    def _answers(self, child: Child) -> bool:
        if child.popen is None:
            return False
        if child.kind == "proxy":
            return ports.listens(child.popen.pid, self.settings.port)
        path = str(self.runtime / SOCKETS[child.kind][0])
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.2)
            try:
                probe.connect(path)
            except OSError:
                return False
        return True

    # --- reload ---

    def _reload(self) -> None:
        if self._reread is None:
            return
        try:
            fresh = self._reread()
        except Exception as error:
            logger.error("configuration not reloaded, the old one stays: %s", error)
            self._note_reload(str(error))
            return
        merged, kept = keep_fixed(self.settings, fresh)
        for name in kept:
            logger.warning("a new %s needs a restart; the old one stays until then", name)
        self.settings = merged
        log.setup(merged, "serve")
        _write(self.runtime / "settings.json", msgspec.json.encode(merged))
        self._note_reload("")
        for child in self.children:
            if child.popen is not None:
                child.popen.send_signal(signal.SIGHUP)
        logger.info("configuration reloaded: %d servers", len(merged.servers))

    def _note_reload(self, error: str) -> None:
        report = self._report
        self._report = msgspec.structs.replace(
            report, reloads=report.reloads + 1, reload_ok=not error, reload_error=error, reloaded_at_s=time.time()
        )
        self._write_report()

    def _write_report(self) -> None:
        respawns = {child.name: max(child.respawns, 0) for child in self.children}
        self._report = msgspec.structs.replace(self._report, respawns=respawns)
        with contextlib.suppress(OSError):
            _write(self.runtime / "supervisor.json", msgspec.json.encode(self._report))

    # --- the end ---

    async def _drain(self) -> None:
        """Proxies, then the hub, then control: each may finish what the one before still needs of it."""
        self._stops_asked = self._stops_asked or 1
        _notify("STOPPING=1")
        for kind, grace_s in (
            ("proxy", self.settings.timeouts.drain_s + 0.5),
            ("hub", HUB_LEAVES_S),
            ("control", CONTROL_LEAVES_S),
        ):
            stage = [child for child in self.children if child.kind == kind]
            for child in stage:
                child.due_s = None
            await self._end(stage, grace_s)

    async def _end(self, stage: list[Child], grace_s: float) -> None:
        """SIGTERM; after the grace, or a second stop, close the lifelines (leave now); at last SIGKILL."""
        for child in stage:
            if child.popen is not None:
                child.popen.send_signal(signal.SIGTERM)
        await self._until_dead(stage, grace_s, patient=True)
        for child in stage:
            if child.popen is not None:
                _close_lifeline(child.popen)
        await self._until_dead(stage, KILL_S, patient=False)
        for child in stage:
            if child.popen is not None:
                logger.error("%s did not leave and is killed", child.name)
                child.popen.kill()
        await self._until_dead(stage, KILL_S, patient=False)

    async def _until_dead(self, stage: list[Child], timeout_s: float, *, patient: bool) -> None:
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
        self._board.close()
        for path in self.runtime.iterdir():
            if path.name != "lock" and not path.is_dir():
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.runtime / "lock").unlink()
            self.runtime.rmdir()
        self._runtime_lock.release()
        self._data_lock.write(folders.Running(0, ""))
        self._data_lock.release()


def keep_fixed(old: Settings, fresh: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The fresh settings with what needs a restart kept from the old ones, and the names of what would have changed."""
    kept: list[str] = []
    for name in FIXED:
        section, _, key = name.rpartition(".")
        was, now = (getattr(s, section) if section else s for s in (old, fresh))
        if getattr(was, key) == getattr(now, key):
            continue
        if not (key in {"port", "data_dir", "runtime_dir"} and not getattr(now, key)):  # left to us: we chose already
            kept.append(name)
        now = msgspec.structs.replace(now, **{key: getattr(was, key)})
        fresh = msgspec.structs.replace(fresh, **{section: now}) if section else now
    return fresh, tuple(kept)


def _write(path: Path, content: bytes) -> None:
    """Replace a file whole."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _url(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{'https' if settings.tls.cert else 'http'}://{host}:{settings.port}"


def _raise_file_limit() -> None:
    """Each connection is a descriptor: take as many as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft != resource.RLIM_INFINITY and soft < FEW_OPEN_FILES:
        logger.warning("at most %d files may be open, so about %d clients at once; raise `ulimit -n`", soft, soft // 3)


def _close_lifeline(popen: subprocess.Popen[bytes]) -> None:
    if popen.stdin is not None:
        with contextlib.suppress(OSError):
            popen.stdin.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _pids() -> list[int]:
    try:
        return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    except OSError:
        return []


def _is_child_of(pid: int, runtime: bytes) -> bool:
    """Whether a process is a child of some supervisor of this runtime folder."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b"fleetproxy.process" in words and runtime in words
    except OSError:
        return False


def _notify(message: str) -> None:
    """Tell systemd (`Type=notify`); nothing when it did not start us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(message.encode())


def _watchdog_s() -> float:
    """The interval systemd wants to hear from us in; 0 when it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and os.environ.get("NOTIFY_SOCKET") else 0.0
