"""`fleetproxy init` and `migrate`, and completion: what somebody new meets."""

from __future__ import annotations

import os
import pty
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fleetproxy.cli import COMMANDS
from tests.cli.spoken import clean_environment, say


def check(path: Path) -> str:
    """What `config check` says of a file; AssertionError when it is no good."""
    said = say("config", "check", "--config", str(path), HOME=str(path.parent))
    assert said.code == 0, said.err
    return str(said.out)


# --- init ---


@pytest.mark.parametrize(
    ("words", "servers"),
    [
        ([], 0),
        (["--server", "gpu1=10.0.0.5:11434", "--server", "vllm=openai+http://10.0.0.6:8000"], 2),
        (["--reach", "network", "--workers"], 0),
    ],
)
def test_init_writes_a_file_that_is_good_as_it_is(tmp_path: Path, words: list[str], servers: int) -> None:
    path = tmp_path / "new" / "fleetproxy.toml"
    said = say("init", "--yes", "--write", str(path), *words)
    assert (said.code, said.out) == (0, "")
    assert f"valid: {servers} servers" in check(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tree = tomllib.loads(path.read_text())
    if "network" in words:
        assert len(tree["auth"]["api_key"]) == len(tree["auth"]["client_key"]) == 64
        assert tree["auth"]["api_key"] in said.err
    again = say("init", "--yes", "--write", str(path))
    assert again.code == 1
    assert "is there already; --force replaces it" in again.err
    assert say("init", "--yes", "--force", "--write", str(path)).code == 0


def test_init_asks_three_questions_at_a_terminal(tmp_path: Path) -> None:
    near, far = pty.openpty()
    words = [sys.executable, "-m", "fleetproxy", "init"]
    asked = subprocess.Popen(words, stdin=far, stdout=far, stderr=far, cwd=tmp_path, env=clean_environment())
    os.close(far)
    os.write(near, b"gpu1=10.0.0.5:11434\n\ny\ny\n")
    assert asked.wait(20) == 0
    os.close(near)
    tree = tomllib.loads((tmp_path / "fleetproxy.toml").read_text())
    assert tree["servers"] == [{"name": "gpu1", "url": "10.0.0.5:11434"}]
    assert tree["host"] == "0.0.0.0"
    assert set(tree["auth"]) == {"api_key", "client_key"}


def test_init_without_a_terminal_wants_yes(tmp_path: Path) -> None:
    assert say("init", "--write", str(tmp_path / "x.toml")).code == 2
    assert say("init", "--yes", "--server", "a=ftp://x", "--write", str(tmp_path / "x.toml")).code == 2
    assert not (tmp_path / "x.toml").exists()


# --- migrate ---


def test_migrate_writes_configuration_and_commands_apart(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text('OLLAMA_SERVERS=[{"name":"studio","host":"http://10.0.0.5:11434","ramGb":64}]\n')
    (tmp_path / "compose.yaml").write_text(
        "services:\n  app:\n    environment:\n"
        "      - OLLAMA_SERVERS=${OLLAMA_SERVERS}\n      - POLL_INTERVAL=${P:-20}\n"
    )
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump/users.csv").write_text("id,username,api_key,is_admin\n1,ann," + "c" * 64 + ",t\n")
    sources = [str(tmp_path / name) for name in (".env", "compose.yaml", "dump")]
    made, then = tmp_path / "fleetproxy.toml", tmp_path / "then.sh"
    said = say("migrate", "fleet-manager", *sources, "--write", str(made), "--commands", str(then))
    assert (said.code, said.out) == (0, "")
    assert "note: passwords of 1 users cannot be carried over" in said.err
    assert "1 servers, 1 keys" in check(made)
    assert tomllib.loads(made.read_text())["poll"]["interval_s"] == 20
    assert then.read_text().splitlines()[-1] == "fleetproxy users add ann --admin"
    assert stat.S_IMODE(made.stat().st_mode) == stat.S_IMODE(then.stat().st_mode) == 0o600
    assert say("migrate", "fleet-manager", *sources, "--write", str(made)).code == 1
    to_standard_output = say("migrate", "fleet-manager", *sources)
    assert to_standard_output.out == made.read_text()
    assert "  fleetproxy users add ann --admin" in to_standard_output.err


def test_what_is_left_to_do_says_what_it_needs_before_it_begins(tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    (tmp_path / "dump/scheduled_jobs.csv").write_text("id,name,cron_expression,target_model\n1,n,0 3 * * *,m\n")
    then = tmp_path / "then.sh"
    words = ("--write", str(tmp_path / "x.toml"), "--commands", str(then))
    assert say("migrate", "fleet-manager", str(tmp_path / "dump"), *words).code == 0
    done = subprocess.run(
        ["sh", str(then)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "FLEETPROXY_KEY: set it to a key of an administrator" in done.stderr
    assert "curl" not in done.stderr


def test_migrate_tells_an_agent_from_a_server(tmp_path: Path) -> None:
    (tmp_path / "worker.yaml").write_text("serverurl: ws://h/api/llm/connect\n")
    said = say("migrate", "nfrx", str(tmp_path / "worker.yaml"))
    assert said.code == 6
    assert "say --agent llm, asr or mcp" in said.err
    assert (
        'server_url = "ws://h/api/llm/connect"'
        in say("migrate", "nfrx", str(tmp_path / "worker.yaml"), "--agent", "llm").out
    )
    missing = say("migrate", "nfrx", str(tmp_path / "none.yaml"))
    assert missing.code == 6
    assert "cannot be read" in missing.err


# --- completion ---


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "fleetproxy.bash"
    path.write_text(say("completion", "bash").out)
    return path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fleetproxy dr", {"drain"}),
        ("fleetproxy servers dis", {"disable"}),
        ("fleetproxy pull --s", {"--server"}),
        ("fleetproxy completion ", {"bash", "zsh", "fish", "--help"}),
        ("fleetproxy config s", {"show", "schema"}),
        # Models and servers come from the fleet; here a function stands for it.
        ("fleetproxy show lla", {"llama3.2:3b", "llama3.1:8b"}),
        ("fleetproxy show llama3.2:", {"3b"}),
        ("fleetproxy drain g", {"gpu1"}),
    ],
)
def test_bash_completes(bash_script: Path, line: str, expected: set[str]) -> None:
    code = f"""
      fleetproxy() {{
        case "$1" in list) printf '%s\\n' llama3.2:3b llama3.1:8b phi ;; servers) printf '%s\\n' gpu1 mac ;; esac
      }}
      source {bash_script}
      COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; read -ra COMP_WORDS <<<"$COMP_LINE"
      case "$COMP_LINE" in *' ') COMP_WORDS+=("") ;; esac
      COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _fleetproxy; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


def test_a_name_that_is_a_command_is_never_run(bash_script: Path, tmp_path: Path) -> None:
    """Names of models come from servers, which may be anybody's."""
    names = [
        "llama3:8b",
        f"x$(touch {tmp_path}/ran)",
        f"y`touch {tmp_path}/ran`",
        f"z;touch {tmp_path}/ran",
        "*",
        "a b",
    ]
    told = " ".join(shlex.quote(name) for name in names)
    words = f"""
        fleetproxy() {{ printf '%s\\n' {told}; }}
        . {bash_script}
        COMP_LINE="fleetproxy show " COMP_POINT=16 COMP_CWORD=2 COMP_WORDS=(fleetproxy show "")
        _fleetproxy
        eval "printf '%s\\n' ${{COMPREPLY[*]}}"
    """  # what is offered is put on the line as it is, and run from there
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == names
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_know_every_command_and_its_options(shell: str) -> None:
    script = say("completion", shell).out
    for word in COMMANDS:
        assert word in script
    assert ("--within" if shell == "zsh" else "-l within") in script
