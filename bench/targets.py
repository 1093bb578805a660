"""What is measured: nginx, fleetproxy, peers that already run; each in front of the same mock."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from bench.processes import tree
from bench.programs import BenchError, mortal, stop

API_KEY, CLIENT_KEY = "bench-key-for-loopback-only", "bench-agent-key-for-loopback-only"
_READY_S = 30.0


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A proxy under test."""

    name: str
    #: http://address:port
    url: str
    version: str = ""
    headers: tuple[str, ...] = ()
    #: Its processes; descendants are found. Empty: nothing to measure but time (the mock itself).
    roots: tuple[int, ...] = ()
    #: Roles that count for the bar begin like one of these; none: the whole tree counts.
    counted: tuple[str, ...] = ()
    #: What it is asked for, instead of the run's path.
    path: str = ""
    #: What is measured of it, beside delays and sizes: the first words of its metrics.
    works: tuple[str, ...] = ("unary", "big", "step", "spread", "idle")
    #: Answers may differ in size from what the mock sent (a proxy that writes its own JSON).
    any_length: bool = False

    def roles(self) -> dict[int, str]:
        return tree(self.roots)

    def counts(self, role: str) -> bool:
        return not self.counted or role.startswith(self.counted)


_NGINX = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
worker_rlimit_nofile 16384;
{user}
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    # Larger than the largest request here: nginx would otherwise write it to a file first.
    client_body_buffer_size 128k;
    upstream mock {{
        server 127.0.0.1:{mock_port};
        keepalive 64;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""

_FLEETPROXY = """
host = "127.0.0.1"
port = {port}
processes = 1
data_dir = "{folder}/data"
runtime_dir = "{folder}/run"

[[servers]]
name = "mock"
url = "http://127.0.0.1:{mock_port}"
kind = "ollama"
metrics_port = 0

[[keys]]
name = "bench"
key = "{key}"

[auth]
proxy = "required"
"""

_DIAL_IN = """
host = "127.0.0.1"
port = {port}
processes = 1
data_dir = "{folder}/data"
runtime_dir = "{folder}/run"

[hub]
listen = "127.0.0.1:{hub_port}"

[[keys]]
name = "bench"
key = "{key}"

[auth]
proxy = "required"
client_key = "{client_key}"
"""


@contextmanager
def nginx(folder: Path, mock_port: int) -> Iterator[Target]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise BenchError("nginx is what everything is compared with: install it (Debian: apt install nginx-light)")
    shown = subprocess.run((program, "-v"), check=True, capture_output=True, encoding="utf-8").stderr
    port, folder = free_port(), folder / "nginx"
    folder.mkdir()
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(_NGINX.format(folder=folder, port=port, mock_port=mock_port, user=user))
    command = (program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config))
    with _running(command, folder / "log") as process:
        wait_for(process, port, "/api/version", folder / "error.log")
        version = shown.strip().rpartition("/")[2]
        yield Target(name="nginx", url=f"http://127.0.0.1:{port}", version=version, roots=(process.pid,))


@contextmanager
def fleetproxy(folder: Path, mock_port: int) -> Iterator[Target]:
    """The real command with keys, audit and metrics on; usable when the block begins."""
    port, folder = free_port(), folder / "fleetproxy"
    folder.mkdir()
    config = folder / "fleetproxy.toml"
    config.write_text(_FLEETPROXY.format(folder=folder, port=port, mock_port=mock_port, key=API_KEY))
    program = fleetproxy_program()
    version = subprocess.run((program, "--version"), check=False, capture_output=True, encoding="utf-8").stdout
    log = folder / "log"
    with _running((program, "serve", "--config", str(config)), log) as process:
        wait_for(process, port, "/readyz", log)
        bearer = f"Authorization: Bearer {API_KEY}"
        wait_for(process, port, "/api/chat", log, bearer)
        _expect_features(port)
        yield Target(
            name="fleetproxy",
            url=f"http://127.0.0.1:{port}",
            version=[*version.split(), "?", "?"][1],
            headers=(bearer,),
            roots=(process.pid,),
            counted=("proxy-",),
        )


@contextmanager
def dial_in(folder: Path, mock_port: int, *, stock: bool) -> Iterator[Target]:
    """The same command without a server of its own: what it is asked goes to an agent that has dialled in at
    `hub.listen` and has the mock behind it. Proxy, hub and agent count.

    The agent is `fleetproxy worker llm`; with `stock` it is `bench/stock_agent.py`, the same in nfrx's JSON.
    """
    name = "dial-in, nfrx JSON" if stock else "dial-in"
    port, hub_port, folder = free_port(), free_port(), folder / ("stock" if stock else "dial-in")
    folder.mkdir()
    config = folder / "fleetproxy.toml"
    config.write_text(
        _DIAL_IN.format(folder=folder, port=port, hub_port=hub_port, key=API_KEY, client_key=CLIENT_KEY),
    )
    program = (sys.executable, "-m", "bench.stock_agent") if stock else (fleetproxy_program(), "worker")
    log, agent_log = folder / "log", folder / "agent.log"
    with _running((fleetproxy_program(), "serve", "--config", str(config)), log) as process:
        wait_for(process, port, "/livez", log)
        options = {
            "server-url": f"ws://127.0.0.1:{hub_port}/api/llm/connect",
            "client-key": CLIENT_KEY,
            "base-url": f"http://127.0.0.1:{mock_port}/v1",
            "max-concurrency": "256",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        with _running((*program, "llm", *words), agent_log) as agent:
            bearer = f"Authorization: Bearer {API_KEY}"
            path = "/v1/chat/completions" if stock else ""
            wait_for(agent, port, path or "/api/chat", agent_log, bearer)
            yield Target(
                name=name,
                url=f"http://127.0.0.1:{port}",
                headers=(bearer,),
                roots=(process.pid, agent.pid),
                counted=("proxy-", "hub", "agent"),
                path=path,
                works=("unary", "step", "spread"),
            )


def fleetproxy_program() -> str:
    """The command beside this Python."""
    beside = Path(sys.executable).with_name("fleetproxy")
    program = str(beside) if beside.exists() else shutil.which("fleetproxy")
    if program is None:
        raise BenchError("there is no `fleetproxy` command beside this Python: install the project first")
    return program


def peer(argument: str) -> Target:
    """NAME=URL,PID[,PID..] from the command line."""
    name, _, rest = argument.partition("=")
    url, *pids = rest.split(",")
    parts = urlsplit(url)
    if not name or parts.scheme != "http" or not parts.port or not pids or not all(pid.isdigit() for pid in pids):
        raise BenchError(f"--peer {argument}: write NAME=http://ADDRESS:PORT,PID[,PID..]")
    roots = tuple(map(int, pids))
    if not all(Path(f"/proc/{pid}").exists() for pid in roots):
        raise BenchError(f"--peer {argument}: there is no such process")
    return Target(name=name, url=url.rstrip("/"), roots=roots, any_length=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, path: str, header: str = "", timeout_s: float = 5.0) -> tuple[int, bytes]:
    """One request: a GET, or a tiny chat on the path that takes one. (0, b"") when nobody answers."""
    name, _, value = header.partition(": ")
    chat = b'{"model":"bench:latest","stream":false,"messages":[{"role":"user","content":"hi"}]}'
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        method, body = ("POST", chat) if "/chat" in path else ("GET", None)
        connection.request(method, path, body, {name: value} if name else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def wait_for(process: subprocess.Popen[str], port: int, path: str, log: Path, header: str = "") -> None:
    """Until this path answers 200."""
    limit = time.monotonic() + _READY_S
    status, body = 0, b""
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise BenchError(f"it ended at once (exit code {process.returncode}):\n{_tail(log)}")
        status, body = ask(port, path, header)
        if status == 200:
            return
        time.sleep(0.05)
    raise BenchError(f"{path} answered {status} {body[:200]!r} for {_READY_S:.0f} s; its log:\n{_tail(log)}")


def _expect_features(port: int) -> None:
    """What is compared must not be a stripped version: keys are asked for, metrics are there."""
    status, _ = ask(port, "/api/chat")
    if status != 401:
        raise BenchError(f"fleetproxy answered {status} to a caller without a key, not 401: keys are off")
    status, _ = ask(port, "/metrics", f"Authorization: Bearer {API_KEY}")
    if status not in (200, 401, 403):
        raise BenchError(f"fleetproxy answered {status} on /metrics: metrics are off")


@contextmanager
def _running(command: tuple[str, ...], log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as file:
        process = subprocess.Popen(mortal(command), stdout=file, stderr=file, encoding="utf-8")
        try:
            yield process
        finally:
            stop(process)


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    except OSError:
        return "(no log)"
