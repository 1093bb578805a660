"""Where a fleetproxy keeps its files, and the locks that keep a second one out.

data folder      `data_dir`, else `$XDG_STATE_HOME/fleetproxy`, as root /var/lib/fleetproxy: survives restarts
runtime folder   `runtime_dir`, else `$XDG_RUNTIME_DIR/fleetproxy-<hash>`, else /tmp/fleetproxy-<uid>-<hash>:
                 sockets, load board, resolved settings; gone after a clean stop. <hash> is the data folder's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from pathlib import Path

import msgspec

from fleetproxy.settings import Settings

#: The longest name a runtime folder must hold a socket under, and what `sun_path` leaves for all of it.
_LONGEST_SOCKET = "/control.sock"
_SOCKET_PATH_BYTES = 107 if os.uname().sysname == "Linux" else 103


class FolderError(Exception):
    """A folder cannot be used; the text says which, why, and what to do."""


class Locked(FolderError):
    """Another fleetproxy uses this folder."""


class Running(msgspec.Struct, frozen=True):
    """What a running supervisor leaves in the lock file of its data folder."""

    pid: int
    runtime: str
    url: str = ""


def data_folder(settings: Settings) -> Path:
    """The data folder of these settings, absolute; it may not exist yet."""
    if settings.data_dir:
        return Path(settings.data_dir).expanduser().absolute()
    if os.geteuid() == 0 and not os.environ.get("XDG_STATE_HOME"):
        return Path("/var/lib/fleetproxy")
    state = os.environ.get("XDG_STATE_HOME", "")
    if state.startswith("/"):  # the XDG specification: relative values are ignored
        return Path(state) / "fleetproxy"
    try:
        return Path.home() / ".local/state/fleetproxy"
    except RuntimeError:
        raise FolderError("no home folder to keep data in; choose one with --data-dir") from None


def runtime_folder(settings: Settings) -> Path:
    """The runtime folder of these settings, absolute; it may not exist yet."""
    if settings.runtime_dir:
        return Path(settings.runtime_dir).expanduser().absolute()
    digest = hashlib.sha256(os.fsencode(data_folder(settings))).hexdigest()[:8]
    shared = os.environ.get("XDG_RUNTIME_DIR", "")
    if shared.startswith("/") and os.access(shared, os.W_OK | os.X_OK):
        folder = Path(shared) / f"fleetproxy-{digest}"
        if _sockets_fit(folder):
            return folder
    return Path("/tmp") / f"fleetproxy-{os.geteuid()}-{digest}"  # noqa: S108  (checked for its owner before use)


def prepare_data(folder: Path) -> None:
    """Make the data folder (0700) and see that it can be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "spool").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise FolderError(
            f"cannot keep data in {folder}: {error.strerror}; choose another folder with --data-dir"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FolderError(f"cannot write to the data folder {folder}; choose another one with --data-dir")


def prepare_runtime(folder: Path) -> None:
    """Make the runtime folder, ours alone (0700). Somebody else's folder, or a link put there, is refused."""
    if not _sockets_fit(folder):
        limit = _SOCKET_PATH_BYTES - len(_LONGEST_SOCKET)
        raise FolderError(
            f"the runtime folder {folder} has a name too long for sockets (at most {limit} bytes); "
            "set runtime_dir to a shorter one"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise FolderError(f"cannot make the runtime folder {folder}: {error.strerror}; set runtime_dir") from None
    if not stat.S_ISDIR(found.st_mode):
        raise FolderError(f"the runtime folder {folder} is not a folder; remove it or set runtime_dir")
    if found.st_uid != os.geteuid():
        raise FolderError(
            f"the runtime folder {folder} belongs to another user (uid {found.st_uid}); remove it or set runtime_dir"
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)


class Lock:
    """An exclusive lock on a folder, held until `release` or the end of this process, even by SIGKILL."""

    def __init__(self, folder: Path, note: Running) -> None:
        path = folder / "lock"
        while True:
            try:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise FolderError(f"cannot lock {folder}: {error.strerror}") from None
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._file)
                raise Locked(_held(folder)) from None
            try:
                if os.fstat(self._file).st_ino == path.stat().st_ino:
                    break
            except FileNotFoundError:
                pass
            os.close(self._file)  # its holder left and took the file away between our open and our lock: again
        # One on the folder itself, which whoever clears old files out of /tmp heeds (tmpfiles.d(5), "Age"): what is in
        # it is written at the start, and read when a process is replaced months later.
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            pass  # it is being cleared just now, or the file system has no locks
        self.write(note)

    def write(self, note: Running) -> None:
        """Say who holds the lock, for `running()` and for the sentence a second instance prints."""
        text = msgspec.json.encode(note)
        try:
            os.pwrite(self._file, text, 0)
            os.ftruncate(self._file, len(text))
        except OSError:
            pass  # a full disk: the lock holds all the same, only its note is missing

    def release(self) -> None:
        os.close(self._file)
        os.close(self._folder)


def running(folder: Path) -> Running | None:
    """The supervisor that holds the lock of this data folder now; None when nobody does."""
    try:
        file = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _read_note(folder)
        return None
    finally:
        os.close(file)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file whole."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.replace(path)


def _read_note(folder: Path) -> Running | None:
    try:
        return msgspec.json.decode((folder / "lock").read_bytes(), type=Running)
    except (OSError, msgspec.MsgspecError):
        return None


def _held(folder: Path) -> str:
    note = _read_note(folder)
    who = f", process {note.pid}" if note else ""
    return (
        f"fleetproxy already runs with the folder {folder}{who}; "
        "stop that one, or give this one its own folder with --data-dir"
    )


def _sockets_fit(folder: Path) -> bool:
    return len(os.fsencode(folder)) + len(_LONGEST_SOCKET) <= _SOCKET_PATH_BYTES
