"""The child processes of the supervisor: how one is started, seen to be ready, buried, and found when orphaned."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fleetproxy import log, ports
from fleetproxy.folders import FolderError
from fleetproxy.process import HELD_SIGNALS, KINDS

#: A child that lived this long is no crash loop.
QUIET_S = 3.0
#: From here on it will not mend by itself soon: spend less on trying.
MANY_DEATHS = 60
#: Children of a supervisor that was killed get so long to leave, then SIGKILL.
ORPHANS_LEAVE_S = 3.0
MAX_OPEN_FILES = 1 << 20
FEW_OPEN_FILES = 4096
#: For stores, sockets between the processes, libraries.
RESERVED_FILES = 64

#: Sockets of each kind in the runtime folder; the first is the one that answers when it is ready.
SOCKETS = {"control": ("control.sock", "link.sock"), "hub": ("hub.sock",), "proxy": ()}

logger = log.get("serve")


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
        #: Its row on the load board; control has none.
        self.row = {"proxy": index + 1, "hub": 0}.get(kind)
        self.listener = listener
        self.popen: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0
        #: When to start it (again); None while it lives or shall not live.
        self.due_s: float | None = None
        self.ready = False
        #: Deaths in a row, each soon after its start.
        self.deaths = 0
        #: Starts since the supervisor's.
        self.starts = 0

    @property
    def alive(self) -> bool:
        return self.popen is not None

    def start(self, command: Command, runtime: Path, now: float) -> None:
        """Start it, its old sockets swept away. Raises OSError when the system has no room for a process."""
        self.due_s, self.started_s, self.ready = None, now, False
        for name in (*SOCKETS[self.kind], f"{self.name}.failed"):
            (runtime / name).unlink(missing_ok=True)
        # A signal that comes before the child has its handlers waits for them, instead of killing it.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)
        try:
            self.popen = subprocess.Popen(  # noqa: S603  (our own interpreter and module)
                command(self, runtime),
                stdin=subprocess.PIPE,
                stdout=2,  # standard output is for the one line with the address
                start_new_session=True,
                pass_fds=(self.listener.fileno(),) if self.listener else (),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)
        self.starts += 1

    def bury(self) -> int | None:
        """The exit code of a child that has just ended; None while it lives, or when it was buried before."""
        if self.popen is None or (code := self.popen.poll()) is None:
            return None
        self.let_go()
        self.popen, self.ready = None, False
        return code

    def signal(self, number: signal.Signals) -> None:
        if self.popen is not None:
            self.popen.send_signal(number)

    def let_go(self) -> None:
        """Close the lifeline: the child leaves at once."""
        if self.popen is not None and self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()

    def answers(self, runtime: Path, port: int) -> bool:
        """Whether somebody can talk to it."""
        if self.popen is None:
            return False
        if self.kind == "proxy":
            return ports.listens(self.popen.pid, port)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.2)
            try:
                probe.connect(str(runtime / SOCKETS[self.kind][0]))
            except OSError:
                return False
        return True

    def why(self, code: int, runtime: Path) -> str:
        """What ended it, in a few words."""
        if code < 0:
            return f"killed by {_signal_name(-code)}"
        try:
            return (runtime / f"{self.name}.failed").read_text() or f"exit code {code}"
        except (OSError, UnicodeDecodeError):
            return f"exit code {code}"


Command = Callable[[Child, Path], Sequence[str]]


def product_command(child: Child, runtime: Path) -> Sequence[str]:
    """The command line of a child. -P: nothing is imported from the folder `serve` happens to be started in."""
    words = [sys.executable, "-P", "-m", "fleetproxy.process", child.kind, str(child.index), str(runtime)]
    return [*words, str(child.listener.fileno())] if child.listener else words


def end_orphans(runtime: Path) -> None:
    """Children of a supervisor that was killed may still be on their way out, holding port and files: wait for them."""
    begun_s = time.monotonic()
    while left := [pid for pid in _pids() if _serves(pid, runtime)]:
        waited_s = time.monotonic() - begun_s
        if waited_s > 2 * ORPHANS_LEAVE_S:
            raise FolderError(f"process {left[0]} of an earlier fleetproxy does not end; end it, then start again")
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL if waited_s > ORPHANS_LEAVE_S else signal.SIGTERM)
        time.sleep(0.1)


def raise_file_limit() -> int:
    """Each connection is a descriptor: take as many as the system lets us, and tell how many; children inherit them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft != resource.RLIM_INFINITY and soft < FEW_OPEN_FILES:
        logger.warning(
            "at most %d files may be open, so %d clients at once; raise `ulimit -n`", soft, affordable_connections(soft)
        )
    return MAX_OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def affordable_connections(open_files: int) -> int:
    """Clients a process may accept so that a connection to a server each, and its own files, still fit.

    At the limit itself the accept loop would spin, and nothing else could be opened.
    """
    return max((open_files - RESERVED_FILES) // 2, 8)


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


def _serves(pid: int, runtime: Path) -> bool:
    """Whether a process is a child for this runtime folder: its command line has `<kind> <index> <runtime>`."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    folder = os.fsencode(runtime)
    return any(
        word == folder and place >= 2 and words[place - 2].decode(errors="replace") in KINDS
        for place, word in enumerate(words)
    )
