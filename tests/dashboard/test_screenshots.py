"""The pictures in docs/screenshots, and what takes them: also that every page works with the network cut."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.kit import ROOT

SCRIPT = ROOT / "docs/screenshots.py"
#: All of them together; a clone has to carry them.
MOST_BYTES = 4_000_000
_CUT = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("screenshots", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_of_the_dashboard_is_pictured_in_every_look(script: Any) -> None:
    table = (ROOT / "dashboard/src/shell/pages.ts").read_text()
    loaded = set(re.findall(r"import\('\$/pages/([^/']+)/index\.svelte'\)", table))
    assert set(script.pages()) == loaded
    wanted = {f"{name}-{look}.webp" for name in ("login", *script.pages(), *script.BESIDE) for look in script.LOOKS}
    there = {path.name: path for path in script.FOLDER.iterdir()}
    assert set(there) == wanted, "run `just screenshots`"
    assert all(path.read_bytes()[8:12] == b"WEBP" for path in there.values())
    assert sum(path.stat().st_size for path in there.values()) < MOST_BYTES


def _can_be_cut() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        return False
    return subprocess.run([*_CUT, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.timeout(180)
@pytest.mark.skipif(
    not _can_be_cut() and os.environ.get("FLEETPROXY_TEST_ALL") != "1",
    reason="needs ip and the right to make a network of one's own (unshare --net)",
)
def test_every_page_works_with_the_network_cut(built: None, tmp_path: Path) -> None:
    into = tmp_path / "shots"
    command = (
        f"ip link set lo up && exec {sys.executable} {SCRIPT} --into {into} --looks light --warm-up 0 --settle 100"
    )
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(
        [*_CUT, "sh", "-c", command], env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(into.glob("*-light.webp"))) >= 9
