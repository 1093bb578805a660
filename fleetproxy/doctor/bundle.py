"""What helps somebody else to help, in one archive: findings, settings without secrets, versions."""

from __future__ import annotations

import importlib.metadata
import io
import json
import platform
import tarfile
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from fleetproxy import __version__
from fleetproxy.doctor.finding import Finding
from fleetproxy.settings.load import Loaded
from fleetproxy.settings.show import as_toml


def write(path: Path, findings: Iterable[Finding], loaded: Loaded | None, now: datetime) -> list[str]:
    """Write the archive (.tar.gz); the names of the files in it. Raises OSError."""
    files = {
        "findings.json": json.dumps(msgspec.to_builtins(list(findings)), indent=2),
        "versions.txt": _versions(),
    }
    if loaded is not None:
        files["settings.toml"] = as_toml(loaded.settings, loaded.origins)
        files["notes.txt"] = "\n".join(loaded.notes) + "\n"
    _pack(path, files, now)
    return sorted(files)


def _versions() -> str:
    packages = sorted(
        f"{found.metadata['Name']} {found.version}" for found in importlib.metadata.distributions() if found.metadata
    )
    return "\n".join(
        [f"fleetproxy {__version__}", f"Python {platform.python_version()}", platform.platform(), "", *packages]
    )


def _pack(path: Path, files: Mapping[str, str], now: datetime) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            content = text.encode()
            entry = tarfile.TarInfo(f"fleetproxy-doctor/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(now.timestamp()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    path.chmod(0o600)
