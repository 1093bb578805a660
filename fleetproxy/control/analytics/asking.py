"""Asking the store from outside of control: through the running fleetproxy, else straight from its file.

One process may hold the file, even for reading. So while a fleetproxy runs on the data folder, its control is asked
over `control.sock`; its local key, which only the same user can read, opens the door.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

from fleetproxy.control.analytics.answers import Answer
from fleetproxy.folders import Running, data_folder, running
from fleetproxy.settings import Settings

FILE = "analytics.duckdb"
#: Control may be on its way up, or being respawned.
WAIT_S = 5.0


class AskError(Exception):
    """No answer. `kind`: "query" (the SQL is at fault), "missing", "unreachable", "refused", "timeout", "busy"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def ask(settings: Settings, sql: str, *, wait_s: float = WAIT_S) -> tuple[Answer, str | None]:
    """The answer, and a remark for whoever asked. Raises AskError."""
    folder = data_folder(settings)
    live = running(folder)
    if live is not None:
        return _ask_running(live, settings, sql, wait_s), None
    return _ask_file(folder, settings, sql)


# --- a running fleetproxy ----------------------------------------------------------------------------------------


def _ask_running(live: Running, settings: Settings, sql: str, wait_s: float) -> Answer:
    runtime = Path(live.runtime)
    body = json.dumps({"sql": sql, "shape": "table"}).encode()
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            status, answer = _post(runtime, body, settings.analytics.query_timeout_s + 10)
        except (FileNotFoundError, ConnectionError) as error:
            if time.monotonic() < deadline_s:
                time.sleep(0.1)
                continue
            raise unreachable(live, error) from None
        except TimeoutError:
            raise AskError("timeout", "control did not answer in time") from None
        except (OSError, http.client.HTTPException) as error:
            raise AskError("unreachable", f"control of process {live.pid} cannot be asked: {error}") from None
        break
    if status == 200:
        names = tuple(column["name"] for column in answer["columns"])
        types = tuple(column["type"] for column in answer["columns"])
        return Answer(names, types, answer["rows"], answer["truncated"])
    said = str(answer.get("error") or f"control answered with HTTP {status}")
    raise AskError(KINDS.get(status, "unreachable"), said)


KINDS = {400: "query", 413: "query", 401: "refused", 403: "refused", 429: "busy", 504: "timeout"}


def unreachable(live: Running, error: OSError) -> AskError:
    return AskError(
        "unreachable",
        f"a fleetproxy runs with this data folder (process {live.pid}), but its control process does not "
        f"answer: {error}; try again in a moment, or look at its log",
    )


def local_key(runtime: Path) -> str:
    """What opens control's door for its own user. Raises AskError, FileNotFoundError."""
    try:
        return (runtime / "local.key").read_text().strip()
    except PermissionError:
        raise AskError("refused", f"{runtime} belongs to another user; ask as the user fleetproxy runs as") from None


def _post(runtime: Path, body: bytes, timeout_s: float) -> tuple[int, dict[str, Any]]:
    key = local_key(runtime)
    connection = UnixConnection(runtime / "control.sock", timeout_s)
    try:
        headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        connection.request("POST", "/api/query", body, headers)
        answer = connection.getresponse()
        raw = answer.read()
    finally:
        connection.close()
    try:
        decoded = json.loads(raw)
    except ValueError:
        decoded = None
    return answer.status, decoded if isinstance(decoded, dict) else {}


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


# --- the file ----------------------------------------------------------------------------------------------------


def _ask_file(folder: Path, settings: Settings, sql: str) -> tuple[Answer, str | None]:
    import duckdb  # noqa: PLC0415  (100 ms, and not needed to ask a running one)

    from fleetproxy.control.analytics.database import StoreError, open_read_only  # noqa: PLC0415
    from fleetproxy.control.analytics.sandbox import answer  # noqa: PLC0415
    from fleetproxy.errors import BadQuery  # noqa: PLC0415

    analytics = settings.analytics
    try:
        connection = open_read_only(folder / FILE, analytics)
    except StoreError as error:
        raise AskError("unreachable" if (folder / FILE).exists() else "missing", str(error)) from None
    except PermissionError:
        text = f"{folder} is not ours to look into; ask as the user fleetproxy runs as"
        raise AskError("unreachable", text) from None
    timer = threading.Timer(analytics.query_timeout_s, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        connection.execute("BEGIN TRANSACTION READ ONLY")
        found = answer(connection, sql, analytics.query_rows)
    except BadQuery as error:
        raise AskError("query", str(error)) from None
    except duckdb.InterruptException:
        raise AskError("timeout", f"the query took longer than {analytics.query_timeout_s:g} s") from None
    except duckdb.Error as error:
        raise AskError("unreachable", f"the analytics file cannot be read: {error}") from None
    finally:
        timer.cancel()
        connection.close()
    return found, not_loaded(folder / "spool")


def not_loaded(spool: Path) -> str | None:
    """A remark when rows still wait beside the file."""
    waiting = sum(1 for path in spool.glob("*") if path.suffix in (".ndjson", ".open") and path.stat().st_size)
    if not waiting:
        return None
    return f"{waiting} files of newer rows have not been loaded yet; they are when fleetproxy starts"
