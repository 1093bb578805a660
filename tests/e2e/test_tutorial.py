"""The tutorial, as a newcomer does it: every runnable block, in a fresh copy of the source and a fresh environment."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.runnable import TOP, blocks, script

#: Ports the page names.
PORTS = (11434, 11501, 11502, 11503, 9090)
WITHIN_S = 400
#: Programs of the system the page may need; where one is missing its blocks are left out, but never in CI.
ALL = os.environ.get("FLEETPROXY_TEST_ALL") == "1"


def copy_of_the_source(target: Path) -> None:
    """What is or would be committed, and nothing that was built."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=TOP, capture_output=True, check=True
    ).stdout
    for name in listed.decode().split("\0"):
        source = TOP / name
        if name and source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / name)


def free_ports() -> dict[int, int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in PORTS]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return {port: one.getsockname()[1] for port, one in zip(PORTS, held, strict=True)}


@pytest.mark.timeout(WITHIN_S + 60)
@pytest.mark.skipif(not (TOP / ".git").exists(), reason="what belongs to the source is told by git")
def test_every_runnable_block_of_the_tutorial_runs_in_a_fresh_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copy_of_the_source(source)
    wanted = blocks(TOP / "docs/tutorial/index.md")
    assert len(wanted) >= 10
    missing = {part.needs for part in wanted if part.needs and not shutil.which(part.needs)}
    assert not (ALL and missing), f"install {missing}"
    ports = free_ports()
    kept = ("HOME", "LANG", "LC_ALL", "PATH", "SSL_CERT_FILE", "TMPDIR")
    environment = {
        **{name: value for name, value in os.environ.items() if name in kept or name.startswith("PIP_")},
        # The interpreter and the pip that test here make the environment; the newcomer's are the machine's.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # The page says 11434 by saying nothing.
        "FLEETPROXY_PORT": str(ports[11434]),
        "XDG_RUNTIME_DIR": "",
        "NO_COLOR": "1",
        # Its build has tests of its own.
        "FLEETPROXY_BUILD_DASHBOARD": "0",
    }
    log = tmp_path / "output"
    with log.open("wb") as sink:
        shell = subprocess.Popen(
            ["bash", "-c", script([part for part in wanted if part.needs not in missing], ports)],
            cwd=source, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True,
        )  # fmt: skip
        try:
            code = shell.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            left = _end(shell.pid)
    said = log.read_text(errors="replace")
    logs = {path.name: path.read_text(errors="replace")[-1500:] for path in source.glob("my-fleet/*.log")}
    assert code == 0, f"{said[-4000:]}\n{logs}"
    assert not left, "its last block left processes behind"
    for pattern in (
        r"valid: 2 servers, 0 keys",
        r"gpu1 .* gpu2 .* basement",
        r"x-fleet-backend: gpu1",
        r"2 vectors",
        r"model_available",
        r"Aggregated.*TTFT",
        *([r'alertname="ServerDown"', r"gpu1 +ollama +✗ offline"] if "prometheus" not in missing else []),
    ):
        assert re.search(pattern, said, re.DOTALL), f"{pattern} is not in:\n{said}"
    assert "Traceback" not in said + "".join(logs.values())


def _end(group: int) -> bool:
    """End what is left of the shell's processes; whether there was anything."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
        return True
    return False
