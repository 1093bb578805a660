"""A whole fleetproxy for tests: the real `serve`, as a subprocess, with everything it writes in one folder.

    with FakeProcess(models="llama3.2:3b") as fake, Service(folder, servers={"a": fake.url}) as service:
        service.url, service.rows("select ..."), service.pids()
        service.check()

Everything here blocks: tests use it around their event loop, or through `asyncio.to_thread`.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from fleetproxy.testing.processes import children, descriptors
from fleetproxy.testing.spawned import START_S, STOP_S, Spawned, fetch, found_url, until

#: Lines that mean a fault of ours, whatever the test was about.
BAD_LINES = re.compile(r"Traceback|never retrieved|panicked|\bERROR\b|\"level\":\"(error|critical)\"|never awaited")
ADMIN_KEY = "e2e-admin-key"
#: Ids asked for in one query: its text and its rows stay within what a query may have.
MOST_IDS = 1000
_ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


class Service(Spawned):
    """`fleetproxy serve` with a configuration file of its own and everything it writes under `folder`."""

    def __init__(
        self,
        folder: Path,
        servers: Mapping[str, str | dict[str, Any]] | None = None,
        *,
        processes: int = 1,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        allowed: Iterable[str] = (),
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.config = folder / "fleetproxy.toml"
        words = [*wrapper, sys.executable, "-m", "fleetproxy", "serve", "--config", str(self.config)]
        super().__init__(words, folder / "serve.log", environment)
        #: Patterns of log lines this test provokes on purpose.
        self.allowed = [re.compile(pattern) for pattern in allowed]
        self.url = ""
        entries = [
            {"name": name, **({"url": given} if isinstance(given, str) else given)}
            for name, given in (servers or {}).items()
        ]
        self.settings: dict[str, Any] = {
            "port": 0,
            "processes": processes,
            "data_dir": str(self.data),
            "log": {"format": "json"},
            "poll": {"interval_s": 0.5, "online_threshold": 1},
            "auth": {"admin_key": ADMIN_KEY},
        }
        for key, value in (settings or {}).items():
            known = self.settings.get(key)
            self.settings[key] = {**known, **value} if isinstance(known, dict) else value
        self.settings["servers"] = entries

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self, *, ready: bool = True) -> None:
        """Start and wait until it serves; with `ready`, until it has a server to serve from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_settings()
        if self.url:
            self.settings["port"] = self.port
            self.write_settings()
        before = len(self.text())
        self.spawn()
        self.url = until(lambda: found_url(self, before, "fleetproxy is ready"), START_S, "serve did not start")
        if ready:
            self.wait_ready()

    def wait_ready(self, within_s: float = 15.0) -> None:
        until(lambda: self.status("/readyz") == 200, within_s, "not ready")

    def write_settings(self) -> None:
        self.config.write_text(to_toml(self.settings))

    def reload(self, **settings: Any) -> None:
        """Change settings and tell the running service."""
        self.settings.update(settings)
        self.write_settings()
        self.signal(signal.SIGHUP)

    def stop(self, within_s: float = STOP_S) -> int:
        """SIGTERM, and the exit code."""
        if self.alive:
            self.signal(signal.SIGTERM)
        return self.wait(within_s)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            sys.stderr.write(self.text()[-8000:])
            self.kill()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            sys.stderr.write(self.text()[-8000:])
        if not self.alive:
            return
        code = self.stop()
        if kind is None:
            assert code == 0, f"left with {code}:\n{self.text()[-4000:]}"
            assert not self.bad_lines(), self.bad_lines()

    # --- asking -------------------------------------------------------------------------------------------------

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or "127.0.0.1"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def admin_url(self) -> str:
        """Where the dashboard API answers: on the public port, unless it was taken off it."""
        dashboard = self.settings.get("dashboard", {})
        return self.url if dashboard.get("on_public_port", True) else f"http://{dashboard['listen']}"

    def fetch(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        return fetch(self.url, method, path, body, headers)

    def status(self, path: str) -> int | None:
        """The status of a GET; None when nobody answers."""
        try:
            return self.fetch("GET", path)[0]
        except OSError:
            return None

    def admin(self, method: str, path: str, body: object = None) -> Any:
        """Ask the dashboard API with the admin key."""
        data = None if body is None else json.dumps(body).encode()
        status, _, answer = fetch(self.admin_url, method, path, data, _ADMIN)
        assert status < 300, (status, answer)
        return json.loads(answer or b"null")

    def listed(self, name: str, *, path: str = "/api/tags", within_s: float = 5.0, present: bool = True) -> None:
        """Poll the fleet, and wait until one of its lists has (or no longer has) this model."""
        self.admin("POST", "/api/poll")

        until(lambda: (name in self.names(path)) == present, within_s, f"{name} {'on' if present else 'off'} {path}")

    def names(self, path: str = "/api/tags") -> set[str]:
        """The models of one of the fleet's lists."""
        value = json.loads(self.fetch("GET", path)[2])
        return {entry.get("name") or entry.get("id") for entry in value.get("models", value.get("data", []))}

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Rows of the request history, by SQL."""
        rows: list[dict[str, Any]] = []

        def asked() -> bool:
            nonlocal rows
            rows = []
            data = json.dumps({"sql": sql}).encode()
            status, _, answer = fetch(self.admin_url, "POST", "/api/query", data, _ADMIN)
            assert status in {200, 503}, (status, answer)
            if status == 200:
                rows = json.loads(answer)
            return status == 200

        until(asked, 15.0, "the store is back")  # 503 and Retry-After while control is restarted
        return rows

    def records(self, ids: Iterable[str], within_s: float = 5.0) -> dict[str, dict[str, Any]]:
        """The one row of each of these requests; AssertionError when one has none, or more than one."""
        wanted = sorted(set(ids))
        found: dict[str, dict[str, Any]] = {}
        deadline_s = time.monotonic() + within_s
        for start in range(0, len(wanted), MOST_IDS):
            some = wanted[start : start + MOST_IDS]
            left_s = max(0.1, deadline_s - time.monotonic())
            sql = f"select * from requests where request_id in ({quoted(some)})"  # noqa: S608 - our own ids
            rows = until(lambda: _enough(self.rows(sql), len(some)), left_s, f"rows of {len(some)} requests")  # noqa: B023
            names = [row["request_id"] for row in rows]
            assert len(names) == len(set(names)), f"more than one row: {sorted(names)}"
            found.update((row["request_id"], row) for row in rows)
        return found

    def counted(self, ids: Iterable[str]) -> dict[str, int]:
        """How many rows each of these requests has now; those without any are left out."""
        wanted = sorted(set(ids))
        found: dict[str, int] = {}
        for start in range(0, len(wanted), MOST_IDS):
            listed = quoted(wanted[start : start + MOST_IDS])
            sql = f"select request_id, count(*) as n from requests where request_id in ({listed}) group by 1"  # noqa: S608
            found.update((row["request_id"], row["n"]) for row in self.rows(sql))
        return found

    # --- looking ------------------------------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """Process name -> pid of the running children."""
        found = {}
        for pid, words in children(self.pid):
            if "fleetproxy.process" in words:
                kind, index = words[words.index("fleetproxy.process") + 1 :][:2]
                found[f"{kind}-{index}" if kind == "proxy" else kind] = pid
        return found

    def bad_lines(self) -> list[str]:
        lines = (line for line in self.text().splitlines() if BAD_LINES.search(line))
        return [line for line in lines if not any(pattern.search(line) for pattern in self.allowed)]

    @property
    def runtime(self) -> Path:
        """The runtime folder of the running service."""
        return Path(json.loads((self.data / "lock").read_text())["runtime"])

    def in_flight(self) -> int:
        """Requests counted on the load board, over all backends."""
        from fleetproxy.link.board import Board  # noqa: PLC0415 - only where a service runs

        board = Board(self.runtime / "board")
        try:
            return sum(board.cells[4096:])
        finally:
            board.close()

    def open_files(self) -> dict[str, int]:
        """Descriptors of each proxy process, without the idle connections kept to servers and to control."""
        ports = {urlsplit(entry["url"]).port or 11434 for entry in self.settings["servers"]}
        return {name: descriptors(pid, ports) for name, pid in self.pids().items() if name.startswith("proxy")}

    def check(self, baseline: Mapping[str, int] | None = None) -> None:
        """The oracle: well within a second, nothing in flight, nothing leaked, nothing in the log."""
        until(lambda: self.status("/healthz") == 200, 1.0, "/healthz")
        until(lambda: self.in_flight() == 0, 2.0, "in flight back to 0")
        if baseline is not None:

            def back() -> bool:
                now = self.open_files()
                return all(now.get(name, 0) <= count + 2 for name, count in baseline.items())

            try:
                until(back, 2.0, "descriptors")
            except AssertionError:
                raise AssertionError(f"descriptors: {dict(baseline)} before, {self.open_files()} now") from None
        assert not self.bad_lines(), self.bad_lines()


def to_toml(settings: Mapping[str, Any]) -> str:
    """A configuration file: scalars, then sections, then arrays of tables."""
    plain, tables = [], []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            tables += [f"\n[{key}]", *(f"{name} = {_value(part)}" for name, part in value.items())]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for entry in value:
                tables += [f"\n[[{key}]]", *(f"{name} = {_value(part)}" for name, part in entry.items())]
        elif value not in ([], ()):
            plain.append(f"{key} = {_value(value)}")
    return "\n".join([*plain, *tables, ""])


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(part)}" for key, part in value.items()) + " }"
    return json.dumps(value)


def quoted(ids: Iterable[str]) -> str:
    """Ids of tests as a list of SQL."""
    return ", ".join(f"'{identity}'" for identity in ids)


def _enough(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]] | None:
    return rows if len(rows) >= count else None
