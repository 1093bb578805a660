"""`python -m fleetproxy.testing.fakes`: one fake server in the foreground, until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

import uvloop

from fleetproxy.testing.fakes.profile import Profile
from fleetproxy.testing.fakes.server import Fake

_DEFAULT = Profile()


def parser() -> argparse.ArgumentParser:
    make = argparse.ArgumentParser(prog="python -m fleetproxy.testing.fakes", description=__doc__)
    make.add_argument("--kind", choices=("ollama", "openai", "llamacpp", "asr"), default="ollama")
    make.add_argument("--host", default="127.0.0.1")
    make.add_argument("--port", type=int, default=0, help="0 takes a free one; the first line printed names it")
    make.add_argument(
        "--models",
        default=",".join(_DEFAULT.models),
        help="comma-separated: name[=size in GB][#variant]; another variant has another digest",
    )
    make.add_argument("--seed", type=int, default=_DEFAULT.seed)
    make.add_argument("--speed", type=float, default=1.0, help="1 is lifelike, 10 ten times as fast, 0 never waits")
    make.add_argument("--vram-gb", type=float, default=_DEFAULT.vram_gb)
    make.add_argument("--slots", type=int, default=_DEFAULT.slots, help="requests of one model at once")
    make.add_argument("--queue", type=int, default=_DEFAULT.queue, help="requests waiting for a load before 503")
    make.add_argument("--keep-alive", default=_DEFAULT.keep_alive)
    make.add_argument("--version", default=_DEFAULT.version)
    make.add_argument("--epoch", type=float, help="stop the clock here (seconds since 1970), for equal timestamps")
    make.add_argument("--account", help="name shown by /api/me; signed out without it")
    make.add_argument("--api-key", help="bearer token to demand")
    make.add_argument("--any-host", action="store_true", help="take any Host header")
    return make


def profile(arguments: Sequence[str] | None = None) -> tuple[Profile, str, int]:
    """(profile, host, port) from a command line."""
    given = parser().parse_args(arguments)
    made = Profile(
        kind=given.kind,
        name=f"{given.kind}-{given.port}",
        models=tuple(spec.strip() for spec in given.models.split(",") if spec.strip()),
        seed=given.seed,
        speed=given.speed,
        vram_gb=given.vram_gb,
        slots=given.slots,
        queue=given.queue,
        keep_alive=given.keep_alive,
        version=given.version,
        epoch_s=given.epoch,
        account=given.account,
        check_host=not given.any_host,
        api_key=given.api_key,
    )
    return made, given.host, given.port


async def run(made: Profile, host: str, port: int) -> None:
    fake = Fake(made)
    await fake.listen(host, port)
    sys.stdout.write(f"fake {made.kind} server on {fake.url}\n")
    sys.stdout.flush()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await fake.close()


def main() -> None:
    uvloop.run(run(*profile()))


if __name__ == "__main__":
    main()
