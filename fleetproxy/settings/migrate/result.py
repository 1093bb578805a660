"""What came of a migration, and how it is written down."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from fleetproxy.settings.ancestors import ANCESTORS, UNUSED
from fleetproxy.settings.check import check, complete
from fleetproxy.settings.layers import Layers
from fleetproxy.settings.model import Settings
from fleetproxy.settings.problems import Origin, Problem

Tree = dict[str, Any]
#: Leaving one thing out may show another mistake; each round takes one out at least.
_MOST_ROUNDS = 100


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration file of ours, and what could not be put into it."""

    toml: str
    #: Sentences: what is different here, what has no equivalent, what is left to do.
    notes: tuple[str, ...] = ()
    #: Command lines that do what a configuration cannot: users, jobs.
    commands: tuple[str, ...] = ()


class Draft:
    """Our settings as they grow, with a remark on each that needs one."""

    def __init__(self) -> None:
        self.tree: Tree = {}
        self.remarks: dict[str, str] = {}
        self.notes: list[str] = []
        self.commands: list[str] = []

    def put(self, key: str, value: Any, remark: str = "") -> None:
        """Set a dotted key, unless it is set."""
        *sections, last = key.split(".")
        inner = self.tree
        for name in sections:
            inner = inner.setdefault(name, {})
        if last in inner:
            return
        inner[last] = value
        if remark:
            self.remarks[key] = remark

    def take(self, environment: Mapping[str, str]) -> None:
        """Every variable that `settings.ancestors` knows; the earlier of two names for one key wins."""
        for ancestor in ANCESTORS:
            text = environment.get(ancestor.name, "").strip()
            if not text:
                continue
            try:
                found = ancestor.read(text)
            except ValueError as error:
                self.notes.append(f"{ancestor.name} is left out: it {error}")
                continue
            for key, value in (dict.fromkeys(ancestor.keys, found) if ancestor.keys else found).items():
                if value is not None:
                    self.put(key, value)
        self.notes += [f"{name} has no meaning here: {why}" for name, why in UNUSED.items() if environment.get(name)]

    def finish(self, head: str) -> Migration:
        self._leave_out_what_is_refused()
        text = to_toml(self.tree, head, self.remarks)
        return Migration(toml=text, notes=tuple(self.notes), commands=tuple(self.commands))

    def _leave_out_what_is_refused(self) -> None:
        """What `config check` would not take is told, not written: the other program may have been less strict."""
        for _ in range(_MOST_ROUNDS):
            problems = _problems(self.tree)
            if not problems:
                return
            for problem in problems:
                path = _path(problem.key)
                self.notes.append(f"{problem.key} is left out: {problem.text}")
                _forget(self.tree, path)


def _problems(tree: Tree) -> list[Problem]:
    layers = Layers()
    layers.lay(tree, Origin("it"))
    if layers.problems:
        return _last_first(layers.problems)
    settings = complete(msgspec.convert(layers.tree, Settings))
    return _last_first(check(settings, layers.origins))


def _last_first(problems: Sequence[Problem]) -> list[Problem]:
    """Each place once, later entries of a list before earlier ones, so that their numbers stay true."""
    each = {tuple(_path(problem.key)[:2]): problem for problem in problems}

    def place(problem: Problem) -> list[tuple[str, int]]:
        return [("", part) if isinstance(part, int) else (part, 0) for part in _path(problem.key)]

    return sorted(each.values(), key=place, reverse=True)


def _path(key: str) -> list[str | int]:
    """servers[1].url -> ["servers", 1, "url"]"""
    return [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key)]


def _forget(tree: Tree, path: Sequence[str | int]) -> None:
    """Take a value out; of a list the whole entry."""
    inner: Any = tree
    for place, part in enumerate(path):
        last = place == len(path) - 1
        if isinstance(inner, list) and isinstance(part, int):
            del inner[part]
            return
        if last or not isinstance(inner.get(part), dict | list):
            inner.pop(part, None)
            return
        inner = inner[part]


def to_toml(tree: Tree, head: str = "", remarks: Mapping[str, str] | None = None) -> str:
    """A tree of settings as a file, secrets and all: values, then tables, then lists of tables."""
    remarks = remarks or {}
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    lines += [""] if lines else []
    lines += _values(tree, "", remarks)
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            lines += ["", f"[{name}]", *_values(value, f"{name}.", remarks)]
            for inner, part in value.items():
                if isinstance(part, dict) and part:
                    lines += ["", f"[{name}.{inner}]"]
                    lines += [f"{_key(key)} = {_value(text)}" for key, text in part.items()]
    for name, value in tree.items():
        if _is_tables(value):
            for entry in value:
                lines += ["", f"[[{name}]]", *(f"{_key(key)} = {_value(part)}" for key, part in entry.items())]
    return "\n".join(lines).strip("\n") + "\n"


def _values(tree: Tree, prefix: str, remarks: Mapping[str, str]) -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) or _is_tables(value):
            continue
        lines += [f"# {line}" for line in remarks.get(prefix + key, "").splitlines()]
        lines.append(f"{_key(key)} = {_value(value)}")
    return lines


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _key(text: str) -> str:
    plain = text and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in text)
    return text if plain else _value(text)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    # JSON's escapes are TOML's, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
