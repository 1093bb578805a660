"""`GET /api/plugins`: what can be plugged in: our own parts, and manifests of the plugins folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Router, get
from msgspec import Meta

from fleetproxy import __version__, log
from fleetproxy.control.api.guard import USER, Identity
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS
from fleetproxy.control.services import services_of

_log = log.get("control.plugins")

MAX_MANIFESTS = 200
MAX_MANIFEST_BYTES = 64 * 1024

_Text = Annotated[str, Meta(max_length=1000)]


class Manifest(msgspec.Struct, rename="camel", omit_defaults=True):
    """A plugin as its `plugin.json` describes it."""

    name: Annotated[str, Meta(min_length=1, max_length=128)]
    type: Literal["agent", "hook", "family"]
    version: _Text = ""
    description: _Text = ""
    default_port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    endpoint: _Text | None = None
    config_key: _Text | None = None
    enabled: bool | None = None


#: The metrics agent, which every fleet may run on its machines.
AGENT = Manifest(
    name="fleet-metrics",
    type="agent",
    version=__version__,
    description="Temperatures, memory, load, disk and boots of a server's machine",
    default_port=9100,
    endpoint="/metrics",
    config_key="metricsPort",
)
_FAMILIES = {
    "llm": "Chat, completions, embeddings and models: Ollama, OpenAI and Anthropic dialects",
    "asr": "Transcription by dial-in workers",
    "mcp": "Relay of Model Context Protocol servers",
    "transfer": "Channels that carry bytes from one caller to another",
}


@get("/api/plugins", opt=USER)
async def list_plugins(request: Request[Identity, Any, Any]) -> list[dict[str, Any]]:
    """Families and agents that are built in, then what lies in `discovery.plugins_dir`."""
    settings = services_of(request).settings()
    built_in = [
        AGENT,
        *(
            Manifest(name=name, type="family", version=__version__, description=text, enabled=name in settings.plugins)
            for name, text in _FAMILIES.items()
        ),
    ]
    folder = settings.discovery.plugins_dir
    found = await asyncio.to_thread(read_manifests, Path(folder)) if folder else []
    taken = {manifest.name for manifest in found}
    return [_shown(one) for one in [*(one for one in built_in if one.name not in taken), *found]]


def _shown(manifest: Manifest) -> dict[str, Any]:
    """A manifest as the fleet manager shows it, with `id`, `kind` and `enabled` in every one: an agent is on when its
    machine runs it, so that only what can be switched here is ever off."""
    return {
        "id": manifest.name,
        "version": manifest.version,
        "description": manifest.description,
        **msgspec.to_builtins(manifest),
        "kind": manifest.type,
        "enabled": manifest.enabled is not False,
    }


def read_manifests(folder: Path) -> list[Manifest]:
    """`<folder>/*/plugin.json`, by name; what is no manifest is left out, with a word in the log."""
    found = {}
    try:
        paths = sorted(folder.glob("*/plugin.json"))[:MAX_MANIFESTS]
    except OSError as error:
        _log.warning("the plugins folder cannot be read: %s", error.strerror)
        return []
    for path in paths:
        try:
            with path.open("rb") as file:
                manifest = msgspec.json.decode(file.read(MAX_MANIFEST_BYTES), type=Manifest)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("%s is left out: %s", path.parent.name, error)
            continue
        found[manifest.name] = manifest
    return list(found.values())


handlers = [
    Router(path="/", route_handlers=[list_plugins], exception_handlers=EXCEPTION_HANDLERS, tags=["system"]),
]
