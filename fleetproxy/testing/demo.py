"""The demo: a made-up fleet with a made-up past and traffic, the real `serve` in front, all in one temporary folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fleetproxy.testing import history
from fleetproxy.testing.fakes import Fake, Fault, Profile
from fleetproxy.testing.furnish import Administrator, Refused, furnish, set_up
from fleetproxy.testing.history import Machine
from fleetproxy.testing.raw import exchange, request
from fleetproxy.testing.service import to_toml
from fleetproxy.testing.traffic import Tally, drive

FLEET: tuple[Profile, ...] = (
    Profile(
        kind="ollama",
        name="workstation",
        vram_gb=24,
        slots=4,
        models=("llama3.2:3b", "llama3.1:8b", "qwen3:8b", "nomic-embed-text"),
    ),
    Profile(kind="ollama", name="laptop", vram_gb=8, slots=2, models=("llama3.2:3b", "qwen3:8b", "nomic-embed-text")),
    Profile(
        kind="openai", name="rack", vram_gb=80, slots=64, models=("meta-llama/Llama-3.1-8B-Instruct",), version="0.13.1"
    ),
    Profile(kind="llamacpp", name="minipc", vram_gb=6, slots=2, models=("phi-4-mini",)),
)
#: The machine that dials in.
ATTIC = Profile(kind="ollama", name="attic", vram_gb=16, slots=2, models=("llama3.2:3b", "qwen3:8b"))
_GB = 10**9
#: The same servers as the past knows them, numbered in the order of the configuration.
PAST: tuple[Machine, ...] = (
    Machine(
        id=1,
        name="workstation",
        pace=70,
        models={"llama3.2:3b": 3 * _GB, "llama3.1:8b": 6 * _GB, "qwen3:8b": 7 * _GB, "nomic-embed-text": _GB // 2},
        swaps=True,
    ),
    Machine(
        id=2,
        name="laptop",
        pace=32,
        models={"llama3.2:3b": 3 * _GB, "qwen3:8b": 7 * _GB, "nomic-embed-text": _GB // 2},
        swaps=True,
        away=((101.0, 95.0), (29.5, 40.0)),
    ),
    Machine(id=3, name="rack", pace=95, models={"meta-llama/Llama-3.1-8B-Instruct": 17 * _GB}, swaps=False),
    Machine(id=4, name="minipc", pace=24, models={"phi-4-mini": 3 * _GB}, swaps=False, away=((62.0, 18.0),)),
)
DEFAULT_PORT = 11434
READY_S = 30.0
#: Sockets live in the demo's folder, and a socket's whole name may have 107 bytes.
LONGEST_PLACE_BYTES = 60
#: A server fails each minute for this long, in one of these ways.
FAILS_EVERY_S, FAILS_FOR_S = 60.0, 12.0
FAILURES = ("unavailable", "reset_before", "error", "refuse")
#: `fleetproxy` that is told to leave when the demo, process `argv[1]`, dies without a word (PR_SET_PDEATHSIG), and
#: does not begin when it is dead already: of a death before the asking the kernel tells nobody.
FLEETPROXY = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
from fleetproxy.cli import main
sys.exit(main(sys.argv[2:]))
"""


class Failed(Exception):
    """The demo cannot run; the text is the sentence for the user."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for. `port` None takes 11434 if it is free, else any."""

    port: int | None = None
    seed: int = 0
    speed: float = 1.0
    traffic: bool = True
    #: Seconds; None runs until Ctrl-C.
    duration_s: float | None = None
    #: Other machines may reach it too: needed in a container.
    open: bool = False


async def run(plan: Plan, say: Callable[[str], None], ready: Callable[[str], None] = lambda dashboard: None) -> None:
    """Run the demo until Ctrl-C, SIGTERM, or its time is over; `ready` is given the dashboard's address.

    Raises Failed when it cannot start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    usual = tempfile.gettempdir()
    place = usual if len(os.fsencode(usual)) <= LONGEST_PLACE_BYTES else "/tmp"  # noqa: S108 - mkdtemp makes its own
    folder = Path(tempfile.mkdtemp(prefix="fleetproxy-demo-", dir=place))
    fakes: list[Fake] = []
    running: list[asyncio.subprocess.Process] = []
    try:
        for profile in (*FLEET, ATTIC):
            fakes.append(Fake(msgspec.structs.replace(profile, seed=plan.seed, speed=plan.speed)))
            await fakes[-1].listen()
        port = _port(plan.port)
        if plan.traffic:
            history.write(folder / "data" / "spool", plan.seed, time.time(), PAST)
        serve = await _serve(folder, port, fakes[: len(FLEET)], open_to_all=plan.open)
        running.append(serve)
        await _ready(serve, folder, port, stop)
        if not stop.is_set():
            password = secrets.token_urlsafe(9)
            try:
                administrator = await set_up(port, "demo", password)
            except Refused as error:
                raise Failed(f"no administrator could be made: {error}") from None
            running.append(await _worker(folder, port, fakes[-1]))
            say(_card(plan, port, password, folder))
            ready(f"http://127.0.0.1:{port}/dashboard/")
            await _live(plan, administrator, fakes[: len(FLEET)], stop, serve)
    finally:
        for process in reversed(running):
            await _end(process)
        for fake in fakes:
            await fake.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _live(
    plan: Plan,
    administrator: Administrator,
    fakes: list[Fake],
    stop: asyncio.Event,
    serve: asyncio.subprocess.Process,
) -> None:
    """Traffic and failures until the end, and what people have set up."""
    parts = [asyncio.create_task(_watch(serve, stop)), asyncio.create_task(furnish(administrator))]
    if plan.traffic:
        parts.append(asyncio.create_task(drive("127.0.0.1", administrator.port, plan.seed, plan.speed, Tally())))
        parts.append(asyncio.create_task(_fail(fakes, plan.seed)))
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), plan.duration_s)
    finally:
        for part in parts:
            part.cancel()
        results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _watch(serve: asyncio.subprocess.Process, stop: asyncio.Event) -> None:
    await serve.wait()
    if not stop.is_set():
        stop.set()
        raise Failed(f"serve ended with exit code {serve.returncode}")


async def _fail(fakes: list[Fake], seed: int) -> None:
    """One server fails each minute, in turn, each time in another way."""
    number = seed
    while True:
        await asyncio.sleep(FAILS_EVERY_S - FAILS_FOR_S)
        fake, failure = fakes[number % len(fakes)], FAILURES[number % len(FAILURES)]
        number += 1
        if failure == "refuse":
            fake.http.refuse()
        else:
            fake.faults.add(Fault(name=failure, for_s=FAILS_FOR_S))
        try:
            await asyncio.sleep(FAILS_FOR_S)
        finally:
            if failure == "refuse":
                await fake.http.listen()


# --- the service in front ---------------------------------------------------------------------------------------


def _port(asked: int | None) -> int:
    """A port that is free now: the one asked for, or 11434, or any."""
    for port in (DEFAULT_PORT, 0) if asked is None else (asked,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if asked is not None:
                    raise Failed(f"port {port} cannot be had: {error.strerror}; choose one with --port") from None
                continue
            return int(probe.getsockname()[1])
    raise Failed("no free port")


async def _serve(folder: Path, port: int, fakes: list[Fake], *, open_to_all: bool) -> asyncio.subprocess.Process:
    servers = [
        {
            "name": fake.profile.name,
            "url": fake.url,
            "kind": "ollama" if fake.profile.kind == "ollama" else "openai",
            "vram_gb": fake.profile.vram_gb,
            "max_concurrent": fake.profile.slots,
        }
        for fake in fakes
    ]
    settings = {
        "host": "0.0.0.0" if open_to_all else "127.0.0.1",  # noqa: S104
        "open": open_to_all,
        "port": port,
        "data_dir": str(folder / "data"),
        "runtime_dir": str(folder / "run"),
        "poll": {"interval_s": 2.0, "online_threshold": 1},
        "timeouts": {"drain_s": 1.0},
        "servers": servers,
    }
    config = folder / "fleetproxy.toml"
    config.write_text(to_toml(settings))
    return await _start(folder, "serve", "--config", str(config))


async def _worker(folder: Path, port: int, fake: Fake) -> asyncio.subprocess.Process:
    name, slots = fake.profile.name, str(fake.profile.slots)
    where = ["--server-url", f"ws://127.0.0.1:{port}", "--base-url", f"{fake.url}/v1"]
    return await _start(folder, "worker", "llm", *where, "--client-name", name, "--max-concurrency", slots)


async def _start(folder: Path, *words: str) -> asyncio.subprocess.Process:
    """`fleetproxy` with these words, its output in the demo's folder under the first of them."""
    # The demo is the same everywhere: nobody's own settings reach it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEETPROXY_")}
    with (folder / f"{words[0]}.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            FLEETPROXY,
            str(os.getpid()),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours to pass on
        )


async def _ready(serve: asyncio.subprocess.Process, folder: Path, port: int, stop: asyncio.Event) -> None:
    deadline_s = time.monotonic() + READY_S
    while not stop.is_set():
        if serve.returncode is not None:
            raise Failed(f"serve did not start:\n{_tail(folder)}")
        if time.monotonic() > deadline_s:
            raise Failed(f"serve was not ready within {READY_S:.0f} s:\n{_tail(folder)}")
        with contextlib.suppress(OSError, AssertionError):
            if (await exchange("127.0.0.1", port, request("GET", "/readyz"), within_s=2)).status == 200:
                return
        await asyncio.sleep(0.05)


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then less politely."""
    for number, patience_s in ((signal.SIGTERM, 8.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 5.0)):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience_s)


def _tail(folder: Path) -> str:
    return "\n".join((folder / "serve.log").read_text(errors="replace").splitlines()[-15:])


def _card(plan: Plan, port: int, password: str, folder: Path) -> str:
    url = f"http://127.0.0.1:{port}"
    names = ", ".join(profile.name for profile in FLEET)
    traffic = f"traffic {'on' if plan.traffic else 'off'}"
    body = '{"model":"llama3.2:3b","messages":[{"role":"user","content":"hello"}]}'
    return f"""\
fleetproxy demo: {len(FLEET)} made-up servers ({names}) and a dial-in worker ({ATTIC.name}), seed {plan.seed}, {traffic}

  dashboard  {url}/dashboard/   (login: demo, password: {password})
  proxy      {url}
  API        {url}/api/client/

  export OLLAMA_HOST={url}
  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=demo
  export ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=demo

  curl {url}/api/chat -d '{body}'

All of it lives in {folder} and goes with Ctrl-C.
"""
