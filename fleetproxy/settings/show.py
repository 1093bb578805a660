"""Settings as people and editors want to see them: TOML with the place of each value, and a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from fleetproxy.settings.fields import environment_name, every_key, fields_of
from fleetproxy.settings.model import MASK, Section, Settings
from fleetproxy.settings.positions import Path
from fleetproxy.settings.problems import Origins


def as_toml(settings: Settings, origins: Origins | None = None) -> str:
    """Every setting as TOML, secrets masked; with `origins` each line says where its value was written."""
    return "\n".join(_table(settings, (), origins)) + "\n"


def as_json(settings: Settings) -> str:
    """Every setting as JSON, secrets masked."""
    return json.dumps(_plain(settings), indent=2, ensure_ascii=False) + "\n"


def schema() -> dict[str, Any]:
    """JSON Schema of the configuration file, for editors."""
    made = msgspec.json.schema(Settings)
    definitions = made["$defs"]
    for section in _sections(Settings):
        properties = definitions[section.__name__]["properties"]
        for name, field in fields_of(section).items():
            if field.doc:
                properties[name]["description"] = field.doc.replace("`", "")
    # Lists of tables take short texts as well: "gpu1=10.0.0.5:11434".
    for name in ("servers", "keys", "client_keys"):
        items = definitions["Settings"]["properties"][name]["items"]
        definitions["Settings"]["properties"][name]["items"] = {"anyOf": [items, {"type": "string"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "fleetproxy configuration", **made}


def _table(section: Section, path: Path, origins: Origins | None) -> Iterator[str]:
    fields = fields_of(type(section))
    for name, field in fields.items():
        value = getattr(section, name)
        if field.kind != "value":
            continue
        if value is None:
            if not any(isinstance(part, int) for part in path):
                yield f"# {name} =" + _note((*path, name), origins)
            continue
        if any(isinstance(part, int) for part in path) and value == field.default:
            continue
        shown = MASK if field.secret else value
        yield f"{name} = {_toml(shown)}" + _note((*path, name), origins)
    for name, field in fields.items():
        value = getattr(section, name)
        here = (*path, name)
        if field.kind == "section":
            yield from ("", f"[{'.'.join(map(str, here))}]")
            yield from _table(value, here, origins)
        elif field.kind == "list":
            for place, item in enumerate(value):
                yield from ("", f"[[{'.'.join(map(str, here))}]]")
                yield from _table(item, (*here, place), origins)


def _note(path: Path, origins: Origins | None) -> str:
    """Where a value was written; a server of `--server` has one place for all its values."""
    if origins is None:
        return ""
    found = origins.get(path) or (origins.get(path[:2]) if len(path) > 2 else None)
    return f"  # {found or 'default'}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key, ensure_ascii=False)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    return repr(value)


def _plain(section: Section) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, field in fields_of(type(section)).items():
        value = getattr(section, name)
        if field.kind == "section":
            plain[name] = _plain(value)
        elif field.kind == "list":
            plain[name] = [_plain(item) for item in value]
        else:
            plain[name] = MASK if field.secret and value else msgspec.to_builtins(value)
    return plain


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in fields_of(section).values():
        if field.section is not None:
            yield from _sections(field.section)


def environment_names() -> Iterator[tuple[str, str, str]]:
    """Every variable with what it wants and its meaning, for `fleetproxy help env` and the reference page."""
    for path, field in every_key():
        yield environment_name(path), field.wants, field.doc
