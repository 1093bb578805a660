"""What each family is and which settings steer it, in nfrx's words: `GET /api/{family}`, `/api/state/descriptors`."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import msgspec

from fleetproxy.settings import Settings
from fleetproxy.settings.fields import Field, environment_name, every_key
from fleetproxy.settings.model import MASK

Path = tuple[str, ...]


class Described(msgspec.Struct, frozen=True):
    """A family, and the settings that steer it."""

    name: str
    summary: str
    settings: tuple[Path, ...]


_WORKERS: tuple[Path, ...] = (("hub", "listen"), ("auth", "client_key"), ("auth", "client_http_roles"))
_CALLERS: tuple[Path, ...] = (("auth", "api_key"), ("auth", "api_http_roles"))
_LINE: tuple[Path, ...] = (("queue", "size"), ("queue", "wait_s"))
_TIMES: tuple[Path, ...] = (("timeouts", "first_byte_s"), ("timeouts", "stream_idle_s"))

FAMILIES: dict[str, Described] = {
    "llm": Described(
        "Language models",
        "Chat, completions, responses, embeddings and models, by dial-in workers and configured servers.",
        _CALLERS + _WORKERS + _LINE + _TIMES,
    ),
    "asr": Described("Speech recognition", "Transcription by dial-in workers.", _CALLERS + _WORKERS + _TIMES),
    "mcp": Described("MCP", "Relay of Model Context Protocol servers that dial in.", _WORKERS),
}


def bodies(settings: Settings) -> dict[str, bytes]:
    """`/api/<family>` -> its descriptor, for the families that are on."""
    return {
        f"/api/{name}": msgspec.json.encode(_descriptor(name, described, settings)) + b"\n"
        for name, described in FAMILIES.items()
        if name in settings.plugins
    }


def all_of_them() -> dict[str, Any]:
    """Every family by id, on or off, as `/api/state/descriptors` shows them; also under names in lower case."""
    found = {}
    for name, described in sorted(FAMILIES.items()):
        said = {"ID": name, "Name": described.name, "Summary": described.summary, "Args": _arguments(described)}
        # The ancestor's own page reads lower-case names that its server never sent.
        found[name] = said | {"id": name, "name": described.name, "summary": described.summary}
    return found


def _descriptor(name: str, described: Described, settings: Settings) -> dict[str, Any]:
    options = {".".join(path): _shown(settings, path) for path in described.settings}
    return {
        "id": name,
        "name": described.name,
        "summary": described.summary,
        "args": _arguments(described),
        "options": {option: value for option, value in options.items() if value},
    }


def _arguments(described: Described) -> list[dict[str, Any]]:
    return [_argument(path) for path in described.settings]


def _argument(path: Path) -> dict[str, Any]:
    field = _fields()[path]
    return {
        "ID": ".".join(path),
        "Flag": "",
        "Env": environment_name(path),
        "YAML": ".".join(path),
        "Type": field.wants,
        "Default": _text(field.default),
        "Example": "",
        "Description": field.doc,
        "Deprecated": False,
        "Replacement": "",
        "Secret": field.secret,
    }


def _shown(settings: Settings, path: Path) -> str:
    value: Any = settings
    for part in path:
        value = getattr(value, part)
    return MASK if value and _fields()[path].secret else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


@cache
def _fields() -> dict[Path, Field]:
    return dict(every_key())
