"""Command lines as tests say them, and what came back."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from fleetproxy.cli import main
from fleetproxy.testing.service import ADMIN_KEY, Service
from fleetproxy.testing.spawned import FakeProcess, Spawned

SAME: dict[str, Any] = {"seed": 7, "epoch": 1_760_000_000, "speed": 0}
KEY = ADMIN_KEY
#: Variables that would tell the verbs of another fleetproxy, or of other colours.
_FOREIGN = ("FLEETPROXY_", "OLLAMA_", "XDG_", "NO_COLOR", "FORCE_COLOR", "NOTIFY_SOCKET")


class Said:
    """What a command line said, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def __iter__(self) -> Iterator[Any]:
        return iter((self.code, self.out, self.err))

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[list[str]]:
        """Cells of each line of a table."""
        return [re.split(r" {3,}", line.strip()) for line in self.out.splitlines()]


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**kept, **more}


def say(*words: str, text: str = "", **environment: str) -> Said:
    """A command line in this process, with no terminal anywhere."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
        mock.patch.object(sys, "stdin", io.StringIO(text)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = main(list(words))
        except SystemExit as leave:
            code = int(leave.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


class Place:
    """The service, its servers, its worker."""

    def __init__(self, folder: Path, service: Service, fakes: dict[str, FakeProcess], worker: Spawned) -> None:
        self.folder, self.service, self.fakes, self.worker = folder, service, fakes, worker

    def say(self, *words: str, text: str = "", **environment: str) -> Said:
        """As the user fleetproxy runs as: nothing but its data folder is named."""
        return say(*words, "--data-dir", str(self.service.data), text=text, **environment)

    def from_afar(self, *words: str, key: str = "", text: str = "") -> Said:
        """As somebody with the address, and perhaps a key."""
        named = {"FLEETPROXY_URL": self.service.url} | ({"FLEETPROXY_KEY": key} if key else {})
        return say(*words, text=text, **named, HOME=str(self.folder))

    def polled(self) -> None:
        self.service.admin("POST", "/api/poll")
