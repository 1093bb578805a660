"""Where files are kept, and who may keep them there."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from fleetproxy.folders import (
    FolderError,
    Lock,
    Locked,
    Running,
    data_folder,
    prepare_data,
    prepare_runtime,
    running,
    runtime_folder,
)
from fleetproxy.settings import Settings


@pytest.fixture(autouse=True)
def _no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_data_folder_follows_the_setting_then_the_session_then_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert data_folder(Settings(data_dir=str(tmp_path))) == tmp_path
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert data_folder(Settings()) == Path("/state/fleetproxy")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/anna")
    assert data_folder(Settings()) == Path("/home/anna/.local/state/fleetproxy")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert data_folder(Settings()) == Path("/var/lib/fleetproxy")


def test_the_runtime_folder_is_named_after_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    one, other = (runtime_folder(Settings(data_dir=f"/data/{name}")) for name in ("a", "b"))
    assert one != other
    assert one == runtime_folder(Settings(data_dir="/data/a"))
    assert one.parent == Path("/tmp")
    assert one.name.startswith(f"fleetproxy-{os.geteuid()}-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_folder(Settings(data_dir="/data/a")).parent == tmp_path
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    assert runtime_folder(Settings(data_dir="/data/a")).parent == Path("/tmp")
    assert runtime_folder(Settings(runtime_dir="/run/mine")) == Path("/run/mine")


def test_a_session_folder_with_a_name_too_long_for_sockets_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert runtime_folder(Settings(data_dir="/data")).parent == Path("/tmp")
    with pytest.raises(FolderError, match="too long for sockets"):
        prepare_runtime(long / "run")


def test_a_runtime_folder_is_made_private_and_stays_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepare_runtime(folder)
    folder.chmod(0o755)
    prepare_runtime(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_runtime_folder_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(FolderError, match="belongs to another user"):
        prepare_runtime(folder)


def test_a_link_in_the_place_of_a_runtime_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "target")
    with pytest.raises(FolderError, match="is not a folder"):
        prepare_runtime(tmp_path / "run")


def test_a_data_folder_that_cannot_be_made_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"cannot keep data in .*Not a directory.*--data-dir"):
        prepare_data(tmp_path / "file" / "data")


def test_one_lock_at_a_time_and_the_refused_learns_who_holds_it(tmp_path: Path) -> None:
    first = Lock(tmp_path, Running(123, "/run/x"))
    with pytest.raises(Locked, match=r"already runs .*process 123.*--data-dir"):
        Lock(tmp_path, Running(456, "/run/y"))
    assert running(tmp_path) == Running(123, "/run/x")
    first.release()
    assert running(tmp_path) is None
    Lock(tmp_path, Running(456, "/run/y")).release()


def test_a_lock_file_taken_away_by_its_last_holder_is_made_anew(tmp_path: Path) -> None:
    first = Lock(tmp_path, Running(1, ""))
    (tmp_path / "lock").unlink()
    first.release()
    second = Lock(tmp_path, Running(2, ""))
    with pytest.raises(Locked):
        Lock(tmp_path, Running(3, ""))
    second.release()


def test_a_folder_in_use_is_passed_over_by_whoever_clears_old_files(tmp_path: Path) -> None:
    """tmpfiles.d(5): a folder on which somebody has a lock is skipped, with all that is in it."""
    lock = Lock(tmp_path, Running(1, "r"))
    cleaner = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.release()
        fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(cleaner)
