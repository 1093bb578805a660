"""What each key is: its type in words, default, meaning and environment name, read off the classes of `model`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect as types

from fleetproxy.settings import model
from fleetproxy.settings.model import Section, Settings, secret_fields

ENVIRONMENT_PREFIX = "FLEETPROXY_"
_COMMENT = re.compile(r"\s*#: ?(.*)")
_FIELD = re.compile(r"    (\w+): ")


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a section."""

    name: str
    #: "value"; "section" (a table); "list" (an array of tables, each with a name).
    kind: str
    #: The annotation, for `msgspec.convert`.
    type: Any
    #: The class of the table or tables; None for a value.
    section: type[Section] | None = None
    required: bool = False
    default: Any = None
    secret: bool = False
    #: What a value must be, in words: "a whole number from 0 to 65535".
    wants: str = ""
    doc: str = ""


@cache
def fields_of(section: type[Section]) -> dict[str, Field]:
    """The keys of a section, in the order of the class."""
    described = types.type_info(section)
    assert isinstance(described, types.StructType)
    hints = {field.encode_name: field.type for field in msgspec.structs.fields(section)}
    docs, secrets = _docs(section), secret_fields(section)
    return {
        field.encode_name: _field(field, hints[field.encode_name], field.encode_name in secrets, docs)
        for field in described.fields
    }


def _field(field: types.Field, hint: Any, secret: bool, docs: dict[str, str]) -> Field:
    name, inner = field.encode_name, field.type
    kind, section = "value", None
    if isinstance(inner, types.StructType):
        kind, section = "section", inner.cls
    elif isinstance(inner, types.VarTupleType) and isinstance(inner.item_type, types.StructType):
        kind, section = "list", inner.item_type.cls
    default = field.default if field.default is not msgspec.NODEFAULT else None
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return Field(
        name=name,
        kind=kind,
        type=hint,
        section=section,
        required=field.required,
        default=default,
        secret=secret,
        wants=_words(inner),
        doc=docs.get(name, ""),
    )


def environment_name(path: tuple[str, ...]) -> str:
    """FLEETPROXY_SECTION__KEY of a key."""
    return ENVIRONMENT_PREFIX + "__".join(part.upper() for part in path)


def every_key(
    section: type[Section] = Settings, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Field]]:
    """Every key with its path, tables opened, lists not."""
    for name, field in fields_of(section).items():
        if field.kind == "section" and field.section is not None:
            yield from every_key(field.section, (*prefix, name))
        else:
            yield (*prefix, name), field


def _words(kind: types.Type) -> str:
    """What a value must be."""
    match kind:
        case types.Metadata():
            return _words(kind.type)
        case types.UnionType():
            return " or ".join(_words(part) for part in kind.types if not isinstance(part, types.NoneType))
        case types.LiteralType():
            return "one of " + ", ".join(f'"{value}"' for value in kind.values)
        case types.BoolType():
            return "true or false"
        case types.IntType() | types.FloatType():
            return ("a whole number" if isinstance(kind, types.IntType) else "a number") + _range(kind)
        case types.VarTupleType():
            inner = "texts" if isinstance(kind.item_type, types.StrType) else "tables"
            return f"a list of {inner}"
        case types.DictType():
            return "a table of " + ("texts" if isinstance(kind.value_type, types.StrType) else "whole numbers")
        case types.StructType():
            return "a table"
        case types.StrType():
            longest = f" of at most {kind.max_length} characters" if kind.max_length else ""
            return f"a text{longest}" if not kind.min_length else f"a text that is not empty{longest}"
        case _:
            return "a value"


def _range(kind: types.IntType | types.FloatType) -> str:
    if kind.gt is not None:
        return f" above {kind.gt:g}" + (f", at most {kind.le:.10g}" if kind.le is not None else "")
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge:.10g} to {kind.le:.10g}"
    return f", {kind.ge:.10g} or more" if kind.ge is not None else ""


@cache
def _source() -> list[str]:
    return inspect.getsource(model).splitlines()


def _docs(section: type[Section]) -> dict[str, str]:
    """The `#:` comments of a class, by field."""
    docs: dict[str, str] = {}
    lines = iter(_source())
    for line in lines:
        if line.startswith(f"class {section.__name__}("):
            break
    pending: list[str] = []
    for line in lines:
        if line.startswith("class "):
            break
        if comment := _COMMENT.match(line):
            pending.append(comment[1])
            continue
        if pending and (field := _FIELD.match(line)):
            docs[field[1]] = " ".join(pending)
        pending = []
    return docs
