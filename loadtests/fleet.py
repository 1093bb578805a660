"""A fleet to load, on loopback: fake servers, and the real `fleetproxy serve` with two proxy processes before them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from fleetproxy.testing.service import Service
from fleetproxy.testing.spawned import FakeProcess, fetch

CHAT_MODEL, EMBED_MODEL = "llama3.2:3b", "nomic-embed-text"
SERVERS, PROCESSES = 2, 2
#: Of each fake: more streams at once than any scenario here has.
SLOTS = 256
CLIENT_KEY = "loadtest-worker-key"


class Fleet(NamedTuple):
    """Where it is."""

    url: str
    #: The fakes themselves.
    direct: tuple[str, ...]
    service: Service


@contextmanager
def running(folder: Path, speed: float = 1.0) -> Iterator[Fleet]:
    """Start everything, and stop it. `speed` of the fakes: 1 is lifelike.

    Raises AssertionError when something does not start, does not leave cleanly, or when the service is not well
    afterwards: requests still counted, errors in its log.
    """
    with ExitStack() as stack:
        models = f"{CHAT_MODEL},{EMBED_MODEL}"
        fakes = [
            stack.enter_context(
                FakeProcess(folder, f"fake{number}", models=models, seed=number, speed=speed, slots=SLOTS, queue=4096)
            )
            for number in range(SERVERS)
        ]
        settings = {"auth": {"admin_key": "loadtest-admin-key", "client_key": CLIENT_KEY}}
        servers = {fake.name: fake.url for fake in fakes}
        service = Service(folder / "service", servers, processes=PROCESSES, settings=settings)
        stack.enter_context(service)
        for fake in fakes:
            _load_models(fake)
        yield Fleet(service.url, tuple(fake.url for fake in fakes), service)
        print("the service after it: ", end="", file=sys.stderr)
        service.check()
        print("well", file=sys.stderr)


def _load_models(fake: FakeProcess) -> None:
    """Into memory now, so that no sample has it in it."""
    for path, body in (
        ("/api/chat", {"model": CHAT_MODEL, "messages": []}),
        ("/api/embed", {"model": EMBED_MODEL, "input": "x"}),
    ):
        status, _, answer = fetch(fake.url, "POST", path, json.dumps(body).encode())
        assert status == 200, answer
