"""The command line as its user meets it: real processes, output, exit codes."""

from __future__ import annotations

import http.server
import json
import os
import resource
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from fleetproxy.cli import COMMANDS, main
from fleetproxy.cli.options import add_settings, parser, reader
from fleetproxy.folders import Lock, Running
from fleetproxy.settings.problems import ConfigError

SCRIPT = [sys.executable, "-m", "fleetproxy"]


def fleetproxy(*words: str, cwd: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "FLEETPROXY_"))}
    return subprocess.run(
        [*SCRIPT, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, "HOME": str(cwd), **(environment or {})},
        check=False,
        timeout=50,
    )


# --- help ---


def test_help_begins_with_examples_and_names_every_command_and_exit_code(tmp_path: Path) -> None:
    for words in (["--help"], ["-h"], ["help"]):
        done = fleetproxy(*words, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stdout.startswith("examples:\n  fleetproxy serve ")
        assert all(f"\n  {word} " in done.stdout for word in COMMANDS)
        assert "6 configuration invalid" in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize("word", ["serve", "config", "health"])
def test_help_of_a_command_begins_with_examples_and_ends_with_exit_codes(word: str, tmp_path: Path) -> None:
    for words in ([word, "--help"], ["help", word]):
        done = fleetproxy(*words, cwd=tmp_path)
        assert done.returncode == 0
        assert done.stdout.startswith(f"examples:\n  fleetproxy {word}")
        assert done.stdout.rstrip().endswith("130 interrupted")


def test_help_costs_less_than_150_ms_of_cpu_and_imports_no_server(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    fleetproxy("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime) < 0.15
    look = "import sys; from fleetproxy.cli import main; main(['--help']); sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert not {"granian", "litestar", "duckdb", "asyncio", "msgspec", "argparse"} & set(done.stderr.split())


def test_no_words_at_all_is_wrong_usage(tmp_path: Path) -> None:
    done = fleetproxy(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "commands:" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["sreve"], "there is no command 'sreve'; did you mean 'serve'?"),
        (["serve", "--prot", "1"], "unrecognized arguments: --prot 1"),
        (["serve", "--port", "many"], "argument --port: wants a port from 0 to 65535, got 'many'"),
        (["config"], "the following arguments are required: what"),
        (["version", "now"], "unrecognized arguments: now"),
        (["demo", "--port", "99999"], "--port: wants a port from 0 to 65535, got '99999'"),
        (["demo", "--speed", "fast"], "--speed: wants a number above 0, up to 1000, got 'fast'"),
        (["demo", "--duration", "nan"], "--duration: wants seconds, above 0 and up to 86400, got 'nan'"),
        (["health", "--timeout", "0"], "--timeout: wants seconds, above 0 and up to 86400, got '0'"),
        (["drain", "gpu1", "--within", "nan"], "--within: wants seconds, above 0 and up to 86400, got 'nan'"),
        (["servers", "add", "a=h", "--vram", "nan"], "--vram: wants GiB, above 0 and up to 1000000, got 'nan'"),
        (["servers", "add", "a=h", "--max-concurrent", "-4"], "--max-concurrent: wants a number from 1 to 1000000"),
        (["run"], "the following arguments are required: model;"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_sentence(words: list[str], says: str, tmp_path: Path) -> None:
    done = fleetproxy(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == main(["version"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert first.startswith("fleetproxy 0.")


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m fleetproxy config env | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert len(done.stdout) == 1


@pytest.mark.parametrize("words", [["version"], ["--help"], ["version", "--help"], ["config", "check"]])
def test_a_reader_that_never_reads_is_no_complaint(words: list[str], tmp_path: Path) -> None:
    near, far = os.pipe()
    os.close(near)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*SCRIPT, *words], stdout=far, stderr=subprocess.PIPE, env=environment, cwd=tmp_path, check=False
    )
    os.close(far)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("words", [["version"], ["help", "env"]])
def test_output_that_finds_no_room_is_one_sentence(words: list[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*SCRIPT, *words], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "No space left on device" in done.stderr


# --- config ---


def test_config_check_says_yes_or_every_mistake_with_exit_code_6(tmp_path: Path) -> None:
    good = tmp_path / "fleetproxy.toml"
    good.write_text('servers = ["a=h:1"]\n')
    done = fleetproxy("config", "check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"valid: 1 servers, 0 keys ({good})\n")
    good.write_text('prot = 1\nport = "x"\n')
    done = fleetproxy("config", "check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (6, "")
    assert [line.startswith("fleetproxy: ") for line in done.stderr.splitlines()] == [True, True]


def test_config_show_gives_toml_that_says_the_same_with_secrets_masked(tmp_path: Path) -> None:
    text = (
        'port = 5\n\n[[servers]]\nname = "a"\nurl = "h:1"\napi_key = "hush-hush"\n\n[routing.aliases]\n"gpt 4" = "x"\n'
    )
    (tmp_path / "fleetproxy.toml").write_text(text)
    done = fleetproxy("config", "show", cwd=tmp_path)
    shown = tomllib.loads(done.stdout)
    assert (shown["port"], shown["routing"]["aliases"]) == (5, {"gpt 4": "x"})
    assert shown["servers"] == [{"name": "a", "url": "h:1", "api_key": "***"}]
    again = tmp_path / "again"
    again.mkdir()
    (again / "fleetproxy.toml").write_text(done.stdout)
    assert fleetproxy("config", "show", cwd=again).stdout == done.stdout
    as_json = json.loads(fleetproxy("config", "show", "--json", cwd=tmp_path).stdout)
    assert as_json["servers"][0]["api_key"] == "***"


def test_config_show_origin_says_where_each_value_is_from(tmp_path: Path) -> None:
    file = tmp_path / "fleetproxy.toml"
    file.write_text("[queue]\nsize = 5\n")
    done = fleetproxy(
        "config", "show", "--origin", "--server", "a=h:1", cwd=tmp_path, environment={"LOG_LEVEL": "warn"}
    )
    lines = done.stdout.splitlines()
    assert f"size = 5  # {file}:2:1" in lines
    assert "port = 11434  # default" in lines
    assert 'level = "warn"  # LOG_LEVEL' in lines
    assert 'url = "h:1"  # --server a=h:1' in lines
    assert "note: LOG_LEVEL of the environment is used" in done.stderr


def test_config_schema_is_json_schema_with_meanings(tmp_path: Path) -> None:
    schema = json.loads(fleetproxy("config", "schema", cwd=tmp_path).stdout)
    server = schema["$defs"]["Server"]
    assert server["required"] == ["name", "url"]
    assert server["additionalProperties"] is False
    assert "default port" in server["properties"]["url"]["description"]


def test_every_variable_is_listed(tmp_path: Path) -> None:
    done = fleetproxy("help", "env", cwd=tmp_path)
    assert done.returncode == 0
    for name in ("FLEETPROXY_PORT", "FLEETPROXY_POLL__INTERVAL_S", "OLLAMA_SERVERS", "METRICS_PORT", "FLEETPROXY_KEY"):
        assert f"\n{name}" in done.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("config", "check", "--data-dir", "PLACE"), 0),
        (("init", "--yes", "--write", "PLACE"), 1),
        (("migrate", "nfrx", "PLACE"), 6),
        (("status", "--config", "PLACE"), 6),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_place_where_one_may_not_look_is_told_in_sentences(words: tuple[str, ...], code: int, tmp_path: Path) -> None:
    place = str(tmp_path / ("x" * 300))
    done = fleetproxy(*(place if word == "PLACE" else word for word in words), cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


# --- serve ---


def test_started_without_standard_files_nothing_is_written_into_others(tmp_path: Path) -> None:
    lock = Lock(tmp_path, Running(1, ""))
    words = f"{sys.executable} -m fleetproxy serve --port 0 --data-dir {tmp_path} 0<&- 1>&- 2>&-"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, check=False)
    lock.release()
    assert done.returncode == 1
    assert json.loads((tmp_path / "lock").read_text()) == {"pid": 1, "runtime": "", "url": ""}


def test_serve_refuses_a_bad_configuration_with_exit_code_6(tmp_path: Path) -> None:
    done = fleetproxy("serve", "--config", "none.toml", cwd=tmp_path)
    assert done.returncode == 6
    assert done.stderr == f"fleetproxy: {tmp_path}/none.toml: there is no such file\n"


def test_a_reload_never_takes_a_missing_file_for_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    options = parser("serve", examples="", says="")
    add_settings(options)
    read = reader(options.parse_args([]))
    assert read().settings.servers == (), "no file at all is where one begins"
    file = tmp_path / "fleetproxy.toml"
    file.write_text('servers = ["gpu1=10.0.0.5"]\n')
    assert [server.name for server in read().settings.servers] == ["gpu1"]
    file.unlink()
    with pytest.raises(ConfigError, match="is gone; put it back"):
        read()
    file.write_text("servers = []\n")
    assert read().settings.servers == ()


def test_serve_refuses_strangers_without_a_key_with_one_sentence(tmp_path: Path) -> None:
    done = fleetproxy(
        "serve", "--host", "0.0.0.0", "--port", "0", cwd=tmp_path, environment={"XDG_STATE_HOME": str(tmp_path)}
    )
    assert done.returncode == 6
    assert "can be reached from the network" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_serve_refuses_a_second_instance_with_exit_code_1(tmp_path: Path) -> None:
    lock = Lock(tmp_path, Running(os.getpid(), "/run/x"))
    done = fleetproxy("serve", "--data-dir", str(tmp_path), "--port", "0", cwd=tmp_path)
    lock.release()
    assert done.returncode == 1
    assert f"already runs with the folder {tmp_path}, process {os.getpid()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_home_that_does_not_exist_needs_a_data_folder_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = fleetproxy("serve", "--data-dir", "/proc/none", "--port", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot keep data in /proc/none" in done.stderr
    assert "Traceback" not in done.stderr


# --- health ---


class _Health(http.server.BaseHTTPRequestHandler):
    statuses = {"/healthz": 200, "/readyz": 503}

    def do_GET(self) -> None:
        self.send_response(self.statuses[self.path])
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}' if self.path == "/healthz" else b'{"status":"no backend"}')

    def log_message(self, *_: object) -> None:
        pass


def test_health_asks_the_one_of_the_data_folder(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Health) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        lock = Lock(tmp_path, Running(1, "", f"http://127.0.0.1:{server.server_port}"))
        try:
            well = fleetproxy("health", "--data-dir", str(tmp_path), cwd=tmp_path)
            unready = fleetproxy("health", "--data-dir", str(tmp_path), "--ready", cwd=tmp_path)
        finally:
            lock.release()
            server.shutdown()
            thread.join()
    assert (well.returncode, well.stdout) == (0, '{"status":"ok"}\n')
    assert (unready.returncode, unready.stdout) == (1, '{"status":"no backend"}\n')


def test_health_of_nobody_is_exit_code_4(tmp_path: Path) -> None:
    done = fleetproxy("health", "--url", "http://127.0.0.1:1", cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr.startswith("fleetproxy: no answer from http://127.0.0.1:1/healthz: ")


def test_an_interrupt_is_exit_code_130(tmp_path: Path) -> None:
    code = "import os, signal; from fleetproxy import cli; cli.COMMANDS['x'] = ('x', ''); "
    code += "cli._command = lambda *_: os.kill(os.getpid(), signal.SIGINT); raise SystemExit(cli.main(['x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd=tmp_path)
    assert done.returncode == 130
