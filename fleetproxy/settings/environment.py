"""Settings from environment variables: text into what TOML would have given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fleetproxy.settings.fields import Field
from fleetproxy.settings.layers import shown

#: FLEETPROXY_* names that are no settings: the file to read, whom the command line calls (URL, KEY), those of tests,
#: builds and bench, and what Kubernetes makes of a service called fleetproxy (FLEETPROXY_SERVICE_HOST,
#: ..._PORT_11434_TCP_ADDR).
NOT_SETTINGS = re.compile(
    r"FLEETPROXY_(CONFIG|URL|KEY(_FILE)?|(TEST|FAULT|BENCH|BUILD)_.*"
    r"|(.*_)?SERVICE_(HOST|PORT(_.*)?)|(.*_)?PORT_\d+_(TCP|UDP)(_.*)?)"
)
#: FLEETPROXY_PORT as Kubernetes writes it.
KUBERNETES_PORT = re.compile(r"(tcp|udp)://.*")
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def variable(environment: Mapping[str, str], name: str, *, file: bool, secret: bool = False) -> str | None:
    """The text of a variable, or with `file` of the file that `<name>_FILE` names; None when unset or empty.

    Raises ValueError with a sentence.
    """
    text = environment.get(name) or None
    path = (environment.get(f"{name}_FILE") or None) if file else None
    if text is not None and path is not None:
        raise ValueError(f"{name} and {name}_FILE are both set; keep one")
    if path is not None:
        text = _read(name, path)
    if text is not None and secret:
        text = text.rstrip("\r\n")
        if "\n" in text or "\r" in text:
            raise ValueError("holds a line break; a secret is one line")
    return text


def from_text(field: Field, text: str) -> Any:
    """The value a text means for a key; raises ValueError with what is wanted."""
    if field.secret:
        return text
    text = text.strip()
    if field.kind == "list" or field.wants == "a list of texts":
        return (
            _json(field, text) if text.startswith("[") else [part.strip() for part in text.split(",") if part.strip()]
        )
    if field.wants == "true or false":
        if text.lower() not in _TRUTH:
            raise ValueError(f"wants {field.wants}, got {shown(text)}")
        return _TRUTH[text.lower()]
    if field.wants.startswith("a table of "):
        return _json(field, text) if text.startswith("{") else _table(field, _pairs(text))
    if field.wants.startswith(("a number", "a whole number")):
        try:
            return msgspec.convert(text, field.type, strict=False)
        except msgspec.ValidationError:
            raise ValueError(f"wants {field.wants}, got {shown(text)}") from None
    return text


def _read(name: str, path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{name}_FILE: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{name}_FILE: {path} is not UTF-8 text") from None
    if not text.strip():
        raise ValueError(f"{name}_FILE: {path} is empty")
    return text


def _json(field: Field, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ValueError(f"wants {field.wants}; this is not valid JSON: {error}") from None


def _table(field: Field, pairs: dict[str, str]) -> Any:
    try:
        return msgspec.convert(pairs, field.type, strict=False)
    except msgspec.ValidationError:
        raise ValueError(f"wants {field.wants}, got {shown(pairs)}") from None


def _pairs(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError('wants name=value,name=value or {"name": "value"}')
    return {name.strip(): value.strip() for name, _, value in pairs}
