"""The fleet's lists, made from what each server listed: `/api/tags`, `/api/ps`, `/v1/models`, `/api/version`.

Entries go out as the bytes the server wrote, in the fleet's order and each server's own; nothing is invented or
re-serialised, but for `_server` and `_host` in `/api/ps`. What makes no sense is left out. Made once per snapshot by
control, so that the data plane answers from memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Raw

from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.core.names import canonical

Known = tuple[Backend, BackendState]

#: Told when no server says its version.
UNKNOWN_VERSION = "0.0.0"

_array = msgspec.json.Decoder(list[Raw]).decode
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.encode
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)([-+].*)?", re.DOTALL)


class _Entry(msgspec.Struct):
    id: str = ""
    name: str = ""
    model: str = ""
    digest: str = ""


_entry = msgspec.json.Decoder(_Entry).decode


def bodies(servers: Iterable[Known], *, version: str | None = None, hide_backends: bool = False) -> dict[str, bytes]:
    """Path -> complete body, for the servers that may be shown (`shown`). `version`: the configured one, if any."""
    known = tuple(servers)
    return {
        "/api/tags": tags(state.raw_tags for _, state in known),
        "/api/ps": ps(known, hide_backends=hide_backends),
        "/v1/models": v1_models(state.raw_v1_models for _, state in known),
        "/api/version": _encode({"version": version or lowest(state.version for _, state in known)}),
    }


def shown(servers: Iterable[Known]) -> tuple[Known, ...]:
    """Servers whose models are listed: those that are up and not in maintenance."""
    return tuple((backend, state) for backend, state in servers if state.online and backend.enabled)


def tags(arrays: Iterable[Raw]) -> bytes:
    """The body of /api/tags. Equal name and digest is one model; equal names with other digests are two, both shown."""
    found = _each_once(arrays, lambda entry: (entry.name or entry.model, entry.digest))
    return b'{"models":[' + b",".join(found) + b"]}"


def v1_models(arrays: Iterable[Raw]) -> bytes:
    """The body of /v1/models: each id once, as the first server has it."""
    return b'{"object":"list","data":[' + b",".join(_each_once(arrays, lambda entry: (entry.id, ""))) + b"]}"


def ps(servers: Iterable[Known], *, hide_backends: bool = False) -> bytes:
    """The body of /api/ps: every copy in memory, each with the server (`_server`) and its address (`_host`)."""
    found: list[bytes] = []
    for backend, state in servers:
        where = {} if hide_backends else {"_server": backend.name, "_host": _address(backend)}
        for raw, entry in _entries(state.raw_ps):
            if entry.name or entry.model:
                found.append(_extended(raw, where))
    return b'{"models":[' + b",".join(found) + b"]}"


def model_bodies(arrays: Iterable[Raw]) -> dict[str, bytes]:
    """Model id -> body of /v1/models/{id}; also under its canonical name, so that `phi` finds `phi:latest`."""
    exact: dict[str, bytes] = {}
    for array in arrays:
        for raw, entry in _entries(array):
            if entry.id:
                exact.setdefault(entry.id, raw)
    found = dict(exact)
    for name, raw in exact.items():
        found.setdefault(canonical(name), raw)
    return found


def model_body(found: Mapping[str, bytes], name: str) -> bytes | None:
    """The body of /v1/models/{name} out of `model_bodies`; None when no server lists it."""
    return found.get(name) or found.get(canonical(name))


def lowest(versions: Iterable[str | None]) -> str:
    """The lowest version told: clients choose features by it. Development builds (0.0.0) count only when alone."""
    read = [(_order(version), version) for version in versions if version is not None and _VERSION.fullmatch(version)]
    released = [pair for pair in read if any(pair[0][0])]
    return min(released or read, default=((), UNKNOWN_VERSION))[1]


def _order(version: str) -> tuple[tuple[int, ...], bool, str]:
    found = _VERSION.fullmatch(version)
    assert found is not None
    numbers = tuple(int(number[:9]) for number in found[1].split("."))
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    suffix = found[2] or ""
    return numbers, not suffix.startswith("-"), suffix


def _each_once(arrays: Iterable[Raw], key: Any) -> list[bytes]:
    found: dict[tuple[str, str], bytes] = {}
    for array in arrays:
        for raw, entry in _entries(array):
            identity = key(entry)
            if identity[0]:
                found.setdefault(identity, raw)
    return list(found.values())


def _entries(array: Raw) -> Iterable[tuple[bytes, _Entry]]:
    try:
        raws = _array(array)
    except (msgspec.MsgspecError, RecursionError):
        return
    for raw in raws:
        text = bytes(raw)
        try:
            text.decode()
            entry = _entry(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        yield text, entry


def _extended(raw: bytes, fields: dict[str, str]) -> bytes:
    """A JSON object with these fields at its end, other bytes as they were."""
    if not fields:
        return raw
    if any(b'"%b"' % name.encode() in raw for name in fields):  # another fleetproxy behind this one, perhaps
        return _encode({**_object(raw), **{name: Raw(_encode(value)) for name, value in fields.items()}})
    end = raw.rindex(b"}")
    added = _encode(fields)[1:-1]
    return raw[:end] + b"," + added + raw[end:]


def _address(backend: Backend) -> str:
    return backend.authority if backend.scheme in ("http", "https") else backend.name
