"""Rows of the store as a file, from outside of control: of the running fleetproxy, else of its file. As `asking.py`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import msgspec

from fleetproxy.control.analytics.asking import (
    FILE,
    KINDS,
    WAIT_S,
    AskError,
    UnixConnection,
    local_key,
    not_loaded,
    unreachable,
)
from fleetproxy.folders import Running, data_folder, running
from fleetproxy.settings import Settings

#: Writing a table to a file may take this long before its first byte comes.
PATIENCE_S = 1900.0
_PIECE_BYTES = 1024 * 1024


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows, and how they are written."""

    table: str
    since: datetime
    #: None: the newest, too.
    until: datetime | None
    form: str


def fetch(settings: Settings, wanted: Wanted, target: Path | None, out: IO[bytes]) -> tuple[int, str | None]:
    """Write rows to `target`, or to `out`; how many, and a remark for whoever asked. Raises AskError, OSError."""
    folder = data_folder(settings)
    live = running(folder)
    with _file(target, out) as file:
        if live is not None:
            return _from_running(live, wanted, file), None
        return _from_file(folder, settings, wanted, file)


@contextlib.contextmanager
def _file(target: Path | None, out: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file that gets its name when it is whole."""
    if target is None:
        yield out
        out.flush()
        return
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _from_running(live: Running, wanted: Wanted, file: IO[bytes]) -> int:
    runtime = Path(live.runtime)
    query = {"format": wanted.form, "since": wanted.since.isoformat()}
    if wanted.until is not None:
        query["until"] = wanted.until.isoformat()
    path = f"/api/query/export/{wanted.table}?{urllib.parse.urlencode(query)}"
    connection = UnixConnection(runtime / "control.sock", PATIENCE_S)
    deadline_s = time.monotonic() + WAIT_S
    try:
        while True:
            try:
                connection.request("GET", path, headers={"authorization": f"Bearer {local_key(runtime)}"})
                answer = connection.getresponse()
            except (FileNotFoundError, ConnectionError) as error:
                connection.close()
                if time.monotonic() > deadline_s:
                    raise unreachable(live, error) from None
                time.sleep(0.1)
                continue
            break
        if answer.status != 200:
            raise AskError(KINDS.get(answer.status, "unreachable"), _said(answer))
        shutil.copyfileobj(answer, file, _PIECE_BYTES)
        return int(answer.headers.get("x-fleet-rows", 0))
    except TimeoutError:
        raise AskError("timeout", "control did not answer in time") from None
    except http.client.HTTPException as error:
        raise AskError("unreachable", f"the answer of process {live.pid} broke off: {error}") from None
    finally:
        connection.close()


def _said(answer: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(answer.read())["error"])
    except (ValueError, LookupError, TypeError):
        return f"control answered with HTTP {answer.status}"


def _from_file(folder: Path, settings: Settings, wanted: Wanted, file: IO[bytes]) -> tuple[int, str | None]:
    import duckdb  # noqa: PLC0415  (100 ms, and not needed to ask a running one)

    from fleetproxy.control.analytics import export  # noqa: PLC0415
    from fleetproxy.control.analytics.database import StoreError, open_read_only  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="fleetproxy-export-") as place:
        written = Path(place) / "rows"
        try:
            connection = open_read_only(folder / FILE, settings.analytics, Path(place))
        except StoreError as error:
            raise AskError("unreachable" if (folder / FILE).exists() else "missing", str(error)) from None
        except PermissionError:
            text = f"{folder} is not ours to look into; ask as the user fleetproxy runs as"
            raise AskError("unreachable", text) from None
        try:
            until = wanted.until or datetime.now(UTC) + timedelta(days=1)
            rows = export.write_rows(connection, export.Span(wanted.table, wanted.since, until), wanted.form, written)
        except duckdb.Error as error:
            raise AskError("unreachable", f"the analytics file cannot be read: {error}") from None
        finally:
            connection.close()
        with written.open("rb") as source:
            shutil.copyfileobj(source, file, _PIECE_BYTES)
    return rows, not_loaded(folder / "spool")
