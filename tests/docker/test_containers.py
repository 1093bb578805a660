"""Without an engine: hadolint reads the Dockerfile, and every command of image and compose file is run here, as is."""

from __future__ import annotations

import fnmatch
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from fleetproxy.control import policy
from fleetproxy.core.access import host_allowed
from fleetproxy.settings.load import load
from fleetproxy.testing.spawned import Spawned, found_url, until

TOP = Path(__file__).parents[2]
DOCKER = TOP / "docker"
HADOLINT = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))


class Stage:
    """One target of the Dockerfile, with what it takes over from the one before."""

    def __init__(self, before: Stage | None) -> None:
        self.environment: dict[str, str] = dict(before.environment) if before else {}
        self.said: dict[str, str] = dict(before.said) if before else {}
        self.runs: list[str] = list(before.runs) if before else []


def stages() -> dict[str, Stage]:
    text = (DOCKER / "Dockerfile").read_text()
    whole = re.sub(r"\\\n\s*", "", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    found: dict[str, Stage] = {}
    stage = Stage(None)
    for line in filter(None, map(str.strip, whole.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(found.get(base))
            stage.said["FROM"] = base if base not in found else stage.said["FROM"]
        elif word == "ENV":
            stage.environment |= dict(re.findall(r"(\w+)=(\S+)", rest))
        elif word == "RUN":
            stage.runs.append(rest)
        else:
            stage.said[word] = rest
    return found


STAGES = stages()
COMPOSE: dict[str, Any] = msgspec.yaml.decode((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def words_of(text: str) -> list[str]:
    words: list[str] = json.loads(text)
    return words


def health_words(stage: Stage) -> list[str]:
    return words_of(stage.said["HEALTHCHECK"].partition(" CMD ")[2])


def run(words: list[str], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A command of an image, with our Python in the place of the one there."""
    program, *rest = words
    assert program == "fleetproxy"
    return subprocess.run(
        [sys.executable, "-m", "fleetproxy", *rest],
        env=at(environment, folder),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )


def at(environment: dict[str, str], folder: Path) -> dict[str, str]:
    """The environment of an image, its folders put under one of ours."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("FLEETPROXY_", "OLLAMA_", "XDG_"))
    }
    moved = {
        name: str(folder / value[1:]) if value.startswith(("/data", "/run/")) else value
        for name, value in environment.items()
        if name != "PATH"
    }
    return {**kept, **moved, "FLEETPROXY_PORT": "0"}


def interpolated(value: str, **given: str) -> str:
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: given.get(found[1]) or found[2], value)


# --- the Dockerfile ---


@pytest.mark.skipif(HADOLINT is None, reason="hadolint comes with the development dependencies")
def test_hadolint_is_content() -> None:
    done = subprocess.run([str(HADOLINT), str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_run_as_nobody_special_and_stop_by_draining() -> None:
    assert set(STAGES) == {"build", "base", "worker", "server"}
    assert list(STAGES)[-1] == "server", "the default target is the last"
    for name in ("server", "worker"):
        said = STAGES[name].said
        assert said["USER"] == "10001:10001"
        assert said["STOPSIGNAL"] == "SIGTERM"
        assert said["FROM"].startswith("python:${PYTHON_VERSION}-slim")
        # Lists, not shells: the signal reaches the program itself.
        assert words_of(said["ENTRYPOINT"])[0] == "fleetproxy"
        assert words_of(said["CMD"])
    assert STAGES["server"].said["VOLUME"] == '["/data"]'


def test_nothing_of_the_image_belongs_to_one_architecture() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert not re.search(r"--platform=|amd64\W(?!,)|x86_64|aarch64", text.replace("linux/amd64,linux/arm64", ""))


def test_what_is_copied_is_enough_to_build_the_package() -> None:
    rules = [line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    project = (TOP / "pyproject.toml").read_text()
    for name in (*re.findall(r'(?:readme = |path = |license-files = \[)"([^"]+)"', project), "fleetproxy", "dashboard"):
        assert name in kept, name
        assert (TOP / name).exists()
    for name in (".git", "tests", ".venv", "bench"):
        assert not any(fnmatch.fnmatch(name, rule) for rule in kept)


@pytest.mark.parametrize("engine", [False, True], ids=["without-engine", "with-engine"])
def test_just_image_builds_or_says_what_to_run(tmp_path: Path, engine: bool) -> None:
    for name in ("sh", "dirname", "cat"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    if engine:
        (tmp_path / "docker").write_text(f'#!/bin/sh\necho "docker $*" >> {tmp_path}/asked\n')
        (tmp_path / "docker").chmod(0o755)
    done = subprocess.run(
        [str(DOCKER / "image"), "1.2"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "asked").read_text() if engine else done.stdout
    lines = [line.strip() for line in told.splitlines()]
    assert lines[1:] == [
        "docker build --file docker/Dockerfile --target server --tag fleetproxy:1.2 .",
        "docker build --file docker/Dockerfile --target worker --tag fleetproxy-worker:1.2 .",
    ]
    assert lines[0] == "docker info" if engine else "no container engine answers here" in lines[0]


# --- the server image ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("data", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path


def server_words() -> list[str]:
    return [*words_of(STAGES["server"].said["ENTRYPOINT"]), *words_of(STAGES["server"].said["CMD"])]


def test_the_server_asks_for_a_key_or_an_explicit_word_before_it_starts(folder: Path) -> None:
    done = run(server_words(), STAGES["server"].environment, folder)
    assert done.returncode == 6
    assert "callers must show a key, but none is configured" in done.stderr
    assert "--open" in done.stderr


@pytest.mark.parametrize(
    "given", [{"FLEETPROXY_AUTH__API_KEY": "a-long-enough-key"}, {"FLEETPROXY_OPEN": "true"}], ids=["key", "open"]
)
def test_the_server_serves_is_healthy_and_drains(folder: Path, given: dict[str, str]) -> None:
    environment = at({**STAGES["server"].environment, **given}, folder)
    one = Spawned([sys.executable, "-m", *server_words()], folder / "log", environment)
    one.environment = environment
    one.spawn()
    try:
        url = until(lambda: found_url(one, 0, "fleetproxy is ready"), 30, "it starts")
        well = run(health_words(STAGES["server"]), {**STAGES["server"].environment, **given}, folder)
        assert (well.returncode, json.loads(well.stdout)["status"]) == (0, "ok"), well.stderr
        port = int(url.rpartition(":")[2])
        assert _status(port) == (401 if "FLEETPROXY_AUTH__API_KEY" in given else 200)
        # All it writes is under its volume and its runtime folder, whatever else is read-only.
        written = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
        assert written <= {"data", "run", "log"}
        one.signal(signal.SIGTERM)
        assert one.wait(20) == 0
    finally:
        one.kill()
    gone = run(
        health_words(STAGES["server"]), {**STAGES["server"].environment, **given, "FLEETPROXY_PORT": "1"}, folder
    )
    assert gone.returncode == 4


def _status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/api/tags")
        return connection.getresponse().status
    finally:
        connection.close()


# --- the worker image ---


def test_the_worker_dials_and_its_health_check_sees_it(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        status = f"127.0.0.1:{probe.getsockname()[1]}"
    stage = STAGES["worker"]
    given = {**stage.environment, "SERVER_URL": "ws://127.0.0.1:1", "STATUS_ADDR": status}
    one = Spawned(
        [sys.executable, "-m", *words_of(stage.said["ENTRYPOINT"]), *words_of(stage.said["CMD"])], folder / "log"
    )
    one.environment = at(given, folder)
    one.spawn()
    words = [word.replace(stage.environment["STATUS_ADDR"], status) for word in health_words(stage)]
    assert words != health_words(stage)
    try:
        until(lambda: run(words, given, folder).returncode == 0, 20, "healthy")
        one.signal(signal.SIGTERM)
        assert one.wait(20) == 0
    finally:
        one.kill()
    assert run(words, given, folder).returncode == 4


# --- the compose file ---


def test_our_services_are_confined() -> None:
    assert set(OURS) == {"fleetproxy", "demo", "worker"}
    confined = COMPOSE["x-confined"]
    for service in OURS.values():
        assert all(service[key] == value for key, value in confined.items())
        assert service["build"]["target"] in STAGES
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    assert (confined["read_only"], confined["user"], confined["cap_drop"]) == (True, "10001:10001", ["ALL"])
    drain_s = load(environment={}, folder=Path("/nonexistent")).settings.timeouts.drain_s
    assert int(confined["stop_grace_period"].removesuffix("s")) > drain_s


def test_every_service_has_a_profile_and_a_pinned_image() -> None:
    assert {profile for service in SERVICES.values() for profile in service["profiles"]} == {
        "proxy", "demo", "worker", "monitoring",
    }  # fmt: skip
    for name, service in SERVICES.items():
        if name not in OURS:
            assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])


def test_what_is_mounted_exists() -> None:
    for service in SERVICES.values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_the_mounted_configuration_is_good_with_the_services_environment(tmp_path: Path) -> None:
    given = {"FLEETPROXY_KEY": "a-long-enough-key"}
    made = {key: interpolated(value, **given) for key, value in SERVICES["fleetproxy"]["environment"].items()}
    environment = {**STAGES["server"].environment, **made}
    settings = load(config=str(DOCKER / "fleetproxy.toml"), environment=environment, folder=tmp_path).settings
    assert (settings.host, settings.auth.proxy, settings.auth.api_key) == (
        "0.0.0.0",
        "required",
        given["FLEETPROXY_KEY"],
    )
    assert settings.servers
    made = {
        key: interpolated(value, FLEETPROXY_OPEN="true") for key, value in SERVICES["fleetproxy"]["environment"].items()
    }
    environment = {**STAGES["server"].environment, **made}
    settings = load(config=str(DOCKER / "fleetproxy.toml"), environment=environment, folder=tmp_path).settings
    assert settings.auth.proxy == "open"


@pytest.fixture
def demo(folder: Path) -> Iterator[tuple[Spawned, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [str(port) if word == "11434" else word for word in SERVICES["demo"]["command"]]
    assert str(port) in words
    one = Spawned([sys.executable, "-m", *words_of(STAGES["server"].said["ENTRYPOINT"]), *words], folder / "log")
    one.environment = at(STAGES["server"].environment, folder)
    one.spawn()
    yield one, port
    one.kill()


def test_the_demo_starts_is_reached_from_outside_and_is_healthy(demo: tuple[Spawned, int], folder: Path) -> None:
    one, port = demo
    until(lambda: "All of it lives in" in one.text(), 40, "the demo is up")
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert f"00000000:{port:04X}" in [line[1] for line in listening if line[3] == "0A"]
    test = SERVICES["demo"]["healthcheck"]["test"]
    assert test[0] == "CMD"
    words = [word.replace("11434", str(port)) for word in test[1:]]
    assert run(words, STAGES["server"].environment, folder).returncode == 0
    one.signal(signal.SIGTERM)
    assert one.wait(30) == 0


def test_the_workers_command_is_a_family_we_have(folder: Path) -> None:
    (family,) = SERVICES["worker"]["command"]
    done = run([*words_of(STAGES["worker"].said["ENTRYPOINT"]), interpolated(family), "--help"], {}, folder)
    assert done.returncode == 0
    made = {key: interpolated(value) for key, value in SERVICES["worker"]["environment"].items()}
    assert made["SERVER_URL"] == "ws://fleetproxy:11434"
    for name in made:
        assert f"[{name}" in done.stdout or f" {name}]" in done.stdout or name in done.stdout


@pytest.mark.parametrize("name", ["fleetproxy", "demo"])
def test_the_names_other_services_call_are_answered(name: str, tmp_path: Path) -> None:
    """A Host that is not known is refused, so a container must be called what Prometheus and workers call it."""
    config = msgspec.yaml.decode((TOP / "deploy/prometheus/prometheus.yml").read_text())
    called = [config["scrape_configs"][0]["static_configs"][0]["targets"][0]]
    called.append(urlsplit(interpolated(SERVICES["worker"]["environment"]["SERVER_URL"])).netloc)
    made = {key: interpolated(value) for key, value in SERVICES[name].get("environment", {}).items()}
    given = {**STAGES["server"].environment, **made, "FLEETPROXY_OPEN": "true"}
    settings = load(config=str(DOCKER / "fleetproxy.toml"), environment=given, folder=tmp_path).settings
    hosts = policy.access(settings, SERVICES[name]["hostname"]).hosts
    for host in called:
        assert host_allowed(host.encode(), hosts), host
        assert not host_allowed(host.encode(), policy.access(settings, "0f3a9c12d4e5").hosts)
    more = load(environment={"FLEETPROXY_HOSTS": "gpu-box,fleet.example"}, folder=tmp_path).settings
    assert host_allowed(b"gpu-box:11434", policy.access(more, "x").hosts)


def test_prometheus_and_grafana_find_what_deploy_has() -> None:
    mounted = {volume.split(":")[1]: DOCKER / volume.split(":")[0] for volume in SERVICES["prometheus"]["volumes"][:2]}
    assert f"--config.file={next(iter(mounted))}" in SERVICES["prometheus"]["command"]
    config = msgspec.yaml.decode((mounted["/etc/prometheus/prometheus.yml"]).read_text())
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["fleetproxy:11434"]
    assert "fleetproxy" in SERVICES["demo"]["networks"]["default"]["aliases"]
    assert list(mounted["/etc/prometheus/rules"].glob("*.yml"))
    grafana = {volume.split(":")[1]: DOCKER / volume.split(":")[0] for volume in SERVICES["grafana"]["volumes"][:2]}
    provider = msgspec.yaml.decode((grafana["/etc/grafana/provisioning"] / "dashboards/fleetproxy.yml").read_text())
    place = provider["providers"][0]["options"]["path"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (grafana[place] / Path(home).name).exists()
