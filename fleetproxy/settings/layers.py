"""Layers of settings laid upon each other, each key checked against the model and remembered with its place."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from fleetproxy.settings.fields import Field, fields_of
from fleetproxy.settings.model import Section, Settings
from fleetproxy.settings.positions import Path
from fleetproxy.settings.problems import Origin, Origins, Problem
from fleetproxy.settings.servers import BadAddress, short_server, without_password

Tree = dict[str, Any]
#: Path of a value in the tree -> where it is written.
At = Callable[[Path], Origin]


class Layers:
    """The tree so far, and every mistake met on the way."""

    def __init__(self) -> None:
        self.tree: Tree = {}
        self.origins: Origins = {}
        self.problems: list[Problem] = []

    def lay(self, tree: Tree, origin: Origin | Origins) -> None:
        """Put a layer on top: tables merge, values and lists replace."""
        self._merge(Settings, self.tree, tree, (), _places(origin))

    def extend(self, name: str, entries: Any, origin: Origin | Origins) -> None:
        """Add tables to a list of tables."""
        start = len(self.tree.get(name, ()))
        at = _places(origin)

        def shifted(path: Path) -> Origin:
            return at((name, int(path[1]) - start, *path[2:]) if len(path) > 1 else path)

        self._items(fields_of(Settings)[name], entries, (name,), shifted, self.tree.setdefault(name, []))

    def put_server(self, entry: Tree, origin: Origin) -> None:
        """Add a server, in the place of one with the same name."""
        servers = self.tree.setdefault("servers", [])
        wanted = str(entry["name"]).casefold()
        same = [place for place, old in enumerate(servers) if str(old.get("name", "")).casefold() == wanted]
        place = same[0] if same else len(servers)
        self.forget(("servers", place))
        servers[place : place + 1] = [entry]
        self.origins["servers", place] = origin

    def drop(self, name: str) -> None:
        """Forget a list of an earlier layer."""
        self.tree.pop(name, None)
        self.forget((name,))

    def forget(self, path: Path) -> None:
        for place in [place for place in self.origins if place[: len(path)] == path]:
            del self.origins[place]

    def problem(self, path: Path, origin: Origin, text: str) -> None:
        self.problems.append(Problem(dotted(path), origin, text))

    def _merge(self, section: type[Section], target: Tree, tree: Tree, path: Path, at: At) -> None:
        fields = fields_of(section)
        for key, value in tree.items():
            here = (*path, key)
            field = fields.get(key)
            if field is None:
                self.problem(here, at(here), f'unknown key "{key}"{near(key, fields)}')
            elif field.kind == "section" and field.section is not None:
                if isinstance(value, dict):
                    self._merge(field.section, target.setdefault(key, {}), value, here, at)
                else:
                    self.problem(here, at(here), f"wants a table: [{key}]")
            elif field.kind == "list":
                self.drop(key)
                self._items(field, value, here, at, target.setdefault(key, []))
            else:
                self._value(field, value, here, at, target)

    def _items(self, field: Field, entries: Any, path: Path, at: At, target: list[Tree]) -> None:
        assert field.section is not None
        if not isinstance(entries, list):
            self.problem(path, at(path), f"wants a list of tables: [[{field.name}]]")
            return
        for entry in entries:
            here = (*path, len(target))
            item: Tree = {}
            target.append(item)
            self.origins[here] = at(here)
            try:
                table = table_of(field, entry)
            except ValueError as error:
                self.problem(here, at(here), str(error))
                continue
            self._merge(field.section, item, table, here, at)
            for name, inner in fields_of(field.section).items():
                if inner.required and name not in table:
                    self.problem(here, at(here), f'"{name}" is missing')

    def _value(self, field: Field, value: Any, path: Path, at: At, target: Tree) -> None:
        self.forget(path)
        self.origins[path] = at(path)
        for part in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            self.origins[*path, part] = at((*path, part))
        if value is None:
            target.pop(field.name, None)
            return
        try:
            target[field.name] = msgspec.to_builtins(msgspec.convert(value, field.type))
        except msgspec.ValidationError:
            self.problem(path, at(path), f"wants {field.wants}" + ("" if field.secret else f", got {shown(value)}"))


def table_of(field: Field, entry: Any) -> Tree:
    """An entry of `servers` or `keys`; "gpu1=10.0.0.5:11434" and "anna=<key>" do for those who need no more."""
    if isinstance(entry, dict):
        return entry
    if not isinstance(entry, str):
        raise ValueError("wants a table")
    if field.name == "servers":
        try:
            return dict(short_server(entry))
        except BadAddress as error:
            raise ValueError(f'"{without_password(entry)}": {error}') from None
    name, equals, key = entry.partition("=")
    if not equals:
        raise ValueError("wants name=key")
    return {"name": name.strip(), "key": key.strip()}


def grow(values: Tree) -> Tree:
    """Dotted keys -> a tree.

    >>> grow({"poll.interval_s": 5, "port": 80})
    {'poll': {'interval_s': 5}, 'port': 80}
    """
    tree: Tree = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = tree
        for name in sections:
            inner = inner.setdefault(name, {})
        inner[last] = value
    return tree


def dotted(path: Iterable[str | int]) -> str:
    """("servers", 1, "url") -> servers[1].url"""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def near(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, when something known is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{found[0]}"?' if found else ""


def shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _places(origin: Origin | Origins) -> At:
    """Where a path is written: its own place, else that of the nearest table around it."""
    if isinstance(origin, Origin):
        return lambda path: origin

    def find(path: Path) -> Origin:
        while path and path not in origin:
            path = path[:-1]
        return origin[path]

    return find
