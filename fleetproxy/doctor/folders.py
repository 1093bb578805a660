"""Where files go, and whose ports are whose."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fleetproxy import ports
from fleetproxy.doctor.finding import Finding, fail, ok, warn
from fleetproxy.folders import FolderError, Running, data_folder, runtime_folder
from fleetproxy.settings import Settings
from fleetproxy.settings.servers import parse_listen

_GIB = 1024**3
#: Below this, rows of requests are soon dropped; below the other one somebody should look.
TOO_LITTLE_BYTES = 256 * 1024 * 1024
LITTLE_BYTES = 2 * _GIB
#: Closed segments waiting to be loaded: one a second for each process, loaded each second.
MANY_SEGMENTS = 120


def folders(settings: Settings, live: Running | None) -> Iterator[Finding]:
    try:
        data = data_folder(settings)
        runtime = Path(live.runtime) if live else runtime_folder(settings)
    except FolderError as error:
        yield fail("data folder", str(error), "name one: --data-dir, or data_dir in the file")
        return
    there = _existing(data)
    if there == data and not there.is_dir():
        yield fail("data folder", f"{data} is no folder", "move it away, or choose another with --data-dir")
    elif there == data and there.stat().st_uid != os.geteuid():
        yield warn(
            "data folder",
            f"{data} belongs to uid {there.stat().st_uid}, you are {os.geteuid()}",
            "run the doctor as the user fleetproxy runs as",
        )
    elif not os.access(there, os.W_OK | os.X_OK):
        yield fail(
            "data folder",
            f"{data} cannot be written" if there == data else f"{data} cannot be made in {there}",
            "run the doctor as the user fleetproxy runs as, give that user the folder, or choose another",
        )
    else:
        yield ok("data folder", f"{data}" + ("" if there == data else " (made at the first start)"))
        yield from _spool(data)
    yield from _disk(there)
    if live is None and not os.access(_existing(runtime), os.W_OK | os.X_OK):
        yield fail("runtime folder", f"{runtime} cannot be made", "set runtime_dir to a folder of yours")
    else:
        yield ok("runtime folder", str(runtime))


def _disk(folder: Path) -> Iterator[Finding]:
    space = shutil.disk_usage(folder)
    text = f"{space.free / _GIB:.1f} GiB free of {space.total / _GIB:.1f}"
    fix = "free some, move data_dir, or lower analytics.retention_days"
    if space.free < TOO_LITTLE_BYTES:
        yield fail("disk", text, fix)
    elif space.free < LITTLE_BYTES:
        yield warn("disk", text, fix)
    else:
        yield ok("disk", text)


def _spool(data: Path) -> Iterator[Finding]:
    try:
        waiting = sum(1 for _ in (data / "spool").glob("*"))
    except OSError:
        return
    if waiting > MANY_SEGMENTS:
        yield warn(
            "spool",
            f"{waiting} files of request rows wait to be loaded",
            "the store may be broken or slow: look for the logger `store` in the log",
        )


def addresses(settings: Settings, live: Running | None) -> Iterator[Finding]:
    """Every address it listens on: free, or its own."""
    wanted = [("port", settings.host, settings.port)]
    for name in ("dashboard", "metrics", "hub"):
        text = getattr(settings, name).listen
        if text:
            wanted.append((f"{name}.listen", *parse_listen(text, settings.host)))
    for name, host, port in wanted:
        option = "--port" if name == "port" else name
        try:
            ports.check(host, port, option=option)
        except ports.PortTaken as error:
            if live is not None and _is_its_own(port, live):
                yield ok(name, f"{host}:{port} is held by the fleetproxy that runs (process {live.pid})")
            else:
                yield fail(name, str(error), f"choose another with {option}, or stop who holds it")
        else:
            state = "free" if live is None else "free: the one that runs listens elsewhere"
            yield ok(name, f"{host}:{port} is {state}")


def _is_its_own(port: int, live: Running) -> bool:
    return live.url.endswith(f":{port}") or "fleetproxy" in (ports.holder(port) or "")


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there and that we may see."""
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110  (Path.exists raises where it may not look)
        path = path.parent
    return path
