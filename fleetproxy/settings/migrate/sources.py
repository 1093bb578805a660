"""What other programs leave behind: `.env` files, compose files, YAML, and tables exported as CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

MAX_FILE_BYTES = 64 * 1024 * 1024
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*$")
_REFERENCE = re.compile(r"\$\$|\$\{([A-Za-z_]\w*)(?:(:?[-?+])([^}]*))?\}|\$([A-Za-z_]\w*)")
_YAML = {".yaml", ".yml"}


class BadSource(Exception):
    """A file that cannot be used; the text says which and why."""


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """All that was given, read."""

    #: Variables: of the environment, of `.env` files, of a compose file's services, later wins.
    environment: dict[str, str]
    #: Trees of YAML files that are no compose files, in the order given.
    trees: tuple[tuple[str, dict[str, Any]], ...] = ()
    #: Table name -> its rows.
    tables: dict[str, list[dict[str, Any]]] = {}


def read(paths: Iterable[Path], environment: Mapping[str, str]) -> Sources:
    """Read what was given. Raises BadSource."""
    own = dict(environment)
    composed: dict[str, str] = {}
    trees: list[tuple[str, dict[str, Any]]] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    compose: list[dict[str, Any]] = []
    for path in paths:
        if os.path.isdir(path):  # noqa: PTH112  (Path.is_dir raises where it may not look)
            tables |= _dump(path)
        elif path.suffix.lower() in _YAML:
            tree = _yaml(path)
            if isinstance(tree.get("services"), dict):
                compose.append(tree)
            else:
                trees.append((str(path), tree))
        elif path.suffix.lower() in {".csv", ".json"}:
            tables |= {path.stem: _table(path)}
        else:
            own |= variables(_text(path))
    for tree in compose:  # last: they refer to variables of .env
        composed |= of_compose(tree, own)
    return Sources(environment={**own, **composed}, trees=tuple(trees), tables=tables)


def variables(text: str) -> dict[str, str]:
    """The variables of a `.env` file."""
    found = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or line.lstrip().startswith("#"):
            continue
        name, value = match.groups()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        else:
            value = re.split(r"\s+#", value, maxsplit=1)[0]
        found[name] = value
    return found


def of_compose(tree: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of every service, `${NAME:-default}` put in."""
    found: dict[str, str] = {}
    for service in tree.get("services", {}).values():
        given = service.get("environment") if isinstance(service, dict) else None
        if isinstance(given, list):
            pairs = [str(entry).partition("=") for entry in given]
            given = {name: value if equals else environment.get(name, "") for name, equals, value in pairs}
        if not isinstance(given, dict):
            continue
        for name, value in given.items():
            text = environment.get(name, "") if value is None else _said(value)
            found[str(name)] = interpolated(text, environment)
    return {name: value for name, value in found.items() if value}


def interpolated(text: str, environment: Mapping[str, str]) -> str:
    """References to variables, as compose resolves them."""

    def put(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, how, other = match[1] or match[4], match[2] or "", match[3] or ""
        value = environment.get(name)
        there = bool(value) if how.startswith(":") else value is not None
        if how.endswith("-"):
            return value if there and value is not None else other
        if how.endswith("+"):
            return other if there else ""
        return value or ""

    return _REFERENCE.sub(put, text)


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value)


def _dump(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Every exported table of a folder, by its name."""
    found = {path.stem: _table(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in {".csv", ".json"}}
    if not found:
        raise BadSource(f"{folder} holds no table: wants servers.csv, users.csv, scheduled_jobs.csv (or .json)")
    return found


def _table(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    if path.suffix.lower() == ".csv":
        return [dict(row) for row in csv.DictReader(io.StringIO(text))]
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise BadSource(f"{path} is not valid JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadSource(f"{path} wants an array of objects, one for each row")
    return rows


def _yaml(path: Path) -> dict[str, Any]:
    try:
        tree = msgspec.yaml.decode(_text(path)) if _text(path).strip() else {}
    except msgspec.DecodeError as error:
        raise BadSource(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise BadSource(f"{path} wants keys and values")
    return tree


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadSource(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise BadSource(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSource(f"{path} is not UTF-8 text") from None
