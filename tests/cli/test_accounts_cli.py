"""`fleetproxy users`, `keys`, `backup`, `restore`: with nothing running, and through a running control."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from control_plane import PASSWORD, Control, make_control

from fleetproxy.control.api.peer import linked
from fleetproxy.control.state import Store, users
from fleetproxy.folders import Lock, Running
from fleetproxy.listen import Listener, serve
from fleetproxy.settings import Settings


def fleetproxy(data: Path, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "FLEETPROXY_"))}
    return subprocess.run(
        [sys.executable, "-m", "fleetproxy", *words, "--data-dir", str(data)],
        capture_output=True,
        text=True,
        input=text,
        cwd=data.parent,
        env={**clean, "HOME": str(data.parent)},
        check=False,
        timeout=50,
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def listed(data: Path) -> list[tuple[str, bool]]:
    rows = json.loads(fleetproxy(data, "users", "list", "--json").stdout)
    return [(row["username"], row["isAdmin"]) for row in rows]


def story(data: Path) -> None:
    """The same words, the same outcome, whether something runs or not."""
    made = fleetproxy(data, "users", "add", "Ann", "--admin", "--password-stdin", text=f"{PASSWORD}\n")
    assert (made.returncode, made.stdout) == (0, ""), made.stderr
    again = fleetproxy(data, "users", "add", "ann", "--password-stdin", text=f"{PASSWORD}\n")
    assert again.returncode == 1
    assert "taken" in again.stderr
    weak = fleetproxy(data, "users", "add", "bob", "--password-stdin", text="short\n")
    assert weak.returncode == 1
    assert "10 characters" in weak.stderr
    assert fleetproxy(data, "users", "add", "bob", "--password-stdin", text=f"{PASSWORD}\n").returncode == 0
    assert listed(data) == [("ann", True), ("bob", False)]
    assert fleetproxy(data, "users", "promote", "bob").returncode == 0
    assert fleetproxy(data, "users", "demote", "ann").returncode == 0
    last = fleetproxy(data, "users", "demote", "bob")
    assert last.returncode == 1
    assert "last administrator" in last.stderr
    assert fleetproxy(data, "users", "password", "bob", "--password-stdin", text="another horse 8\n").returncode == 0
    nobody = fleetproxy(data, "users", "remove", "cid")
    assert nobody.returncode == 3
    assert "users list" in nobody.stderr

    key = fleetproxy(
        data, "keys", "add", "ann", "--label", "laptop", "--days", "9", "--model", "phi", "--scope", "read"
    )
    assert key.returncode == 0, key.stderr
    secret = key.stdout.strip()
    assert len(secret) == 64
    (row,) = json.loads(fleetproxy(data, "keys", "list", "ann", "--json").stdout)
    assert (row["label"], row["scopes"], row["models"], row["prefix"]) == (
        "laptop", ["read"], ["phi:latest"], secret[:8],
    )  # fmt: skip
    assert row["expiresAt"]
    table = fleetproxy(data, "keys", "list", "ann").stdout
    assert "laptop" in table
    assert secret not in table
    assert fleetproxy(data, "keys", "remove", "ann", secret[:8]).returncode == 0
    assert fleetproxy(data, "keys", "remove", "ann", "laptop").returncode == 3
    assert fleetproxy(data, "keys", "list", "cid").returncode == 3
    assert fleetproxy(data, "users", "remove", "ann").returncode == 0
    assert listed(data) == [("bob", True)]


def test_accounts_without_anything_running(data: Path) -> None:
    story(data)


def test_a_label_from_elsewhere_steers_no_terminal(data: Path) -> None:
    assert fleetproxy(data, "users", "add", "ann", "--password-stdin", text="correct horse 9\n").returncode == 0
    fleetproxy(data, "keys", "add", "ann", "--label", "red\x1b[31m")
    table = fleetproxy(data, "keys", "list", "ann").stdout
    assert "red" in table
    assert "\x1b" not in table


@pytest.fixture
async def running(data: Path) -> AsyncIterator[Control]:
    """Control on control.sock, as the supervisor would have it."""
    data.mkdir()
    runtime = Path("/tmp") / f"fleetproxy-test-{os.getpid()}-{hashlib.sha256(str(data).encode()).hexdigest()[:8]}"
    runtime.mkdir(mode=0o700)
    control = await make_control(data, Settings())
    (runtime / "local.key").write_text("l" * 64)
    lock = Lock(data, Running(pid=os.getpid(), runtime=str(runtime)))
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(linked(control.app), Listener(uds=str(runtime / "control.sock")), stop))  # type: ignore[arg-type]
    while not (runtime / "control.sock").exists():
        await asyncio.sleep(0.01)
    yield control
    stop.set()
    await serving
    lock.release()
    await control.services.close()
    await control.caller.aclose()
    for file in runtime.iterdir():
        file.unlink()
    runtime.rmdir()


async def test_accounts_of_a_running_one(running: Control, data: Path) -> None:
    await asyncio.to_thread(story, data)
    login = {"username": "bob", "password": "another horse 8"}
    async with running.browser() as browser:
        assert (await browser.post("/api/auth/login", json=login)).status_code == 200
        assert (await browser.post("/api/auth/setup", json=login)).status_code == 403


async def test_a_copy_is_made_while_it_runs_and_put_back_when_not(running: Control, data: Path, tmp_path: Path) -> None:
    admin = await running.admin()
    copy = tmp_path / "copy.db"
    made = await asyncio.to_thread(fleetproxy, data, "backup", str(copy))
    assert (made.returncode, made.stdout.strip()) == (0, str(copy)), made.stderr
    assert copy.stat().st_mode & 0o777 == 0o600
    await running.user(admin, "later")
    refused = await asyncio.to_thread(fleetproxy, data, "restore", str(copy))
    assert refused.returncode == 1  # as `serve` says it; 6 is for configurations
    assert "already runs" in refused.stderr
    assert len((await admin.get("/api/users")).json()) == 2


def test_a_restored_state_is_the_copys_and_nobody_is_logged_in(data: Path, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from fleetproxy.control.state import sessions

    now = datetime.now(UTC)
    fleetproxy(data, "users", "add", "ann", "--admin", "--password-stdin", text=f"{PASSWORD}\n")
    store = Store.open_now(data / "state.db")
    store.write_now(sessions.begin, "token", 1, None, now)
    store.close_now()
    folder = tmp_path / "copies"
    folder.mkdir()
    made = fleetproxy(data, "backup", str(folder))
    copy = Path(made.stdout.strip())
    assert copy.parent == folder
    fleetproxy(data, "users", "add", "later", "--password-stdin", text=f"{PASSWORD}\n")
    done = fleetproxy(data, "restore", str(copy))
    assert done.returncode == 0, done.stderr
    assert listed(data) == [("ann", True)]
    store = Store.open_now(data / "state.db")
    assert store.read_now(sessions.user_of, "token", now) is None
    assert [user.username for user in store.read_now(users.all_users)] == ["ann"]
    store.close_now()
    (kept,) = [path for path in data.glob("state.db.before-restore-*") if path.name.endswith("Z")]
    assert str(kept) in done.stderr


def test_what_is_no_copy_is_not_put_back(data: Path, tmp_path: Path) -> None:
    fleetproxy(data, "users", "add", "ann", "--admin", "--password-stdin", text=f"{PASSWORD}\n")
    for name, content in {"empty": b"", "text": b"hello", "cut": (data / "state.db").read_bytes()[:5000]}.items():
        (tmp_path / name).write_bytes(content)
        refused = fleetproxy(data, "restore", str(tmp_path / name))
        assert refused.returncode == 1
        assert "not a usable copy" in refused.stderr
    assert fleetproxy(data, "restore", str(tmp_path / "missing")).returncode == 1
    assert listed(data) == [("ann", True)]
    assert list(data.glob("*before-restore*")) == []


def test_mistakes_are_sentences(data: Path) -> None:
    for words in (["users"], ["users", "add"], ["users", "explode"], ["keys"], ["keys", "remove", "ann"], ["restore"]):
        done = fleetproxy(data, *words)
        assert done.returncode == 2, words
        assert "Traceback" not in done.stderr
    done = fleetproxy(data, "users", "add", "ann")
    assert done.returncode == 2
    assert "--password-stdin" in done.stderr
    assert fleetproxy(data, "backup").returncode == 4
    assert fleetproxy(data, "keys", "add", "ann", "--days", "0").returncode == 2


def test_a_control_that_does_not_answer_is_told_apart(data: Path, tmp_path: Path) -> None:
    data.mkdir()
    lock = Lock(data, Running(pid=os.getpid(), runtime=str(tmp_path / "nowhere")))
    done = fleetproxy(data, "users", "list")
    lock.release()
    assert done.returncode == 4
    assert "does not answer" in done.stderr
