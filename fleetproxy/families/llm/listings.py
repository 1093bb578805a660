"""What servers list, read: `/api/version`, `/api/ps`, `/api/tags`, `/v1/models`. Bytes in, values out.

Servers of many makes and versions answer here, so reading is lenient: an entry that makes no sense is left out, a field
of another type counts as absent. Only an answer that is no listing at all is refused (BadListing).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from fleetproxy.core.backend import DiskModel, ResidentModel

#: Entries of one listing that are read.
MAX_ENTRIES = 10_000
MAX_TEXT_CHARACTERS = 512
_MAX_NUMBER = 2**53

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw] | None)
_ENTRY = msgspec.json.Decoder(dict[str, Any])
_ANY = msgspec.json.Decoder()

Fields = dict[str, Any]
_Model = TypeVar("_Model", ResidentModel, DiskModel)


class BadListing(ValueError):
    """The answer is not what this path answers; the text says so."""


class Listing(msgspec.Struct, frozen=True):
    """The usable entries of a list, and the list of them as the server wrote each."""

    entries: tuple[tuple[str, Fields], ...] = ()
    raw: msgspec.Raw = msgspec.Raw(b"[]")


def version(body: bytes) -> str | None:
    """The version a server tells; None when it tells none. Raises BadListing when this is no JSON object."""
    told = _object(body).get("version")
    return None if told is None else _text(_decoded(told))


def listing(body: bytes, key: str, name: str) -> Listing:
    """The list under `key`; entries are known by their field `name`. Raises BadListing."""
    value = _object(body).get(key)
    if value is None:
        raise BadListing(f"the answer has no {key!r}")
    try:
        raws = _LIST.decode(value) or []
    except (msgspec.MsgspecError, RecursionError):
        raise BadListing(f"{key!r} is no list") from None
    entries: list[tuple[str, Fields]] = []
    kept: list[bytes] = []
    for raw in raws[:MAX_ENTRIES]:
        try:
            fields = _ENTRY.decode(raw)
        except (msgspec.MsgspecError, RecursionError):
            continue
        text = _text(fields.get(name))
        if text:
            entries.append((text, fields))
            kept.append(bytes(raw))
    return Listing(tuple(entries), msgspec.Raw(b"[" + b",".join(kept) + b"]"))


def resident(found: Listing) -> tuple[ResidentModel, ...]:
    """Entries of `/api/ps`, or of a server that holds what it lists, as models in memory; each name once."""
    return _each_once(
        found,
        lambda name, fields: ResidentModel(
            name=name,
            size_bytes=_number(fields.get("size")) or 0,
            size_vram_bytes=_number(fields.get("size_vram")) or 0,
            digest=_text(fields.get("digest")) or "",
            context_length=_number(fields.get("context_length")) or _number(fields.get("max_model_len")),
            expires_at=_text(fields.get("expires_at")),
            parameter_size=_detail(fields, "parameter_size"),
            quantization=_detail(fields, "quantization_level"),
        ),
    )


def on_disk(found: Listing) -> tuple[DiskModel, ...]:
    """Entries of `/api/tags`, or of `/v1/models`, as models a server could load; each name once."""
    return _each_once(
        found,
        lambda name, fields: DiskModel(
            name=name,
            size_bytes=_number(fields.get("size")) or 0,
            digest=_text(fields.get("digest")) or "",
            parameter_size=_detail(fields, "parameter_size"),
            quantization=_detail(fields, "quantization_level"),
        ),
    )


def _each_once(found: Listing, read: Callable[[str, Fields], _Model]) -> tuple[_Model, ...]:
    models: dict[str, _Model] = {}
    for name, fields in found.entries:
        if name not in models:
            models[name] = read(name, fields)
    return tuple(models.values())


def _object(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        return _OBJECT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadListing("the answer is no JSON object") from None


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return _ANY.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _text(value: Any) -> str | None:
    """A text fit to be shown and routed by; None otherwise."""
    if isinstance(value, str) and 0 < len(value) <= MAX_TEXT_CHARACTERS and value.isprintable():
        return value
    return None


def _number(value: Any) -> int | None:
    """A count of bytes or tokens; None when it is none. NaN never equals itself, and JSON has no infinity."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER:
        return int(value)
    return None


def _detail(fields: Fields, name: str) -> str | None:
    details = fields.get("details")
    return _text(details.get(name)) if isinstance(details, dict) else None
