"""Which endpoint a path is: a dictionary for literal paths, templates for the rest, a way through for the unknown.

A proxy that lists what it lets through grows old with every release of the servers behind it. So `/api/*` and `/v1/*`
always lead to an endpoint: a known one, or the dialect's `OTHER`, which goes to a backend as it came. Whether a path is
ours at all (the dashboard's, a family's) is decided before, on whole segments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote

from fleetproxy.core.operation import Endpoint
from fleetproxy.families import asr, llm, mcp, transfer
from fleetproxy.families.base import Family
from fleetproxy.families.llm import anthropic, ollama, openai

#: First segments after /api/ that belong to families; where theirs is off or has no such path, nobody answers.
FAMILY_WORDS = frozenset({"llm", "asr", "mcp", "transfer"})

#: Prefixes of unlisted paths, most particular first.
_OTHERS = (("/v1/messages/", anthropic.OTHER), ("/v1/", openai.OTHER), ("/api/", ollama.OTHER))
#: Parameters that take the rest of the path, slashes included.
_GREEDY = "/models/{id}"
_PARAMETER = re.compile(r"\\\{(\w+)\\\}")
#: What a parameter may look like; others take anything inside one segment.
_GRAMMAR = {"digest": "sha256(?:[:-]|%3[Aa])[0-9A-Fa-f]{64}"}
#: Here an unlisted path is no new feature of a server but an attempt at its file system.
_NOT_PASSED_ON = "/api/blobs/"
#: Escapes of characters that need none (RFC 3986 section 6.2.2.2): a server undoes them before it looks for the path.
_NEEDLESS = re.compile(r"%(?:4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9Aa]|3[0-9]|2[DdEe]|5[Ff]|7[Ee])")


class Registry:
    """The endpoints of some families, ready to be found."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._literal: dict[str, dict[str, Endpoint]] = {}
        templates: dict[str, dict[str, Endpoint]] = {}
        for family in families:
            for endpoint in family.endpoints:
                known = templates if "{" in endpoint.path else self._literal
                by_method = known.setdefault(endpoint.path, {})
                for method in endpoint.methods:
                    if method in by_method:
                        raise ValueError(f"{method} {endpoint.path} is in two endpoint tables")
                    by_method[method] = endpoint
        self._templates = [(_pattern(path), by_method) for path, by_method in templates.items()]

    def find(self, method: str, path: str) -> Endpoint | None:
        """The endpoint of a path as received (raw, without the query); None when there is nothing at it.

        A known path with another method goes through to a backend like an unknown one: its 405 is the answer.
        """
        by_method = self._literal.get(path)
        if by_method is None:
            if "%" in path:
                path = _NEEDLESS.sub(lambda escape: unquote(escape[0]), path)
                by_method = self._literal.get(path)
            if by_method is None:
                by_method = self._templated(path)
        if by_method is not None:
            endpoint = by_method.get(method)
            if endpoint is not None:
                return endpoint
        return other(path)

    def methods(self, path: str) -> tuple[str, ...]:
        """The methods a path of a family's own surface takes; none where there is no such path."""
        by_method = self._literal.get(path) or self._templated(path) or {}
        return tuple(method for method, endpoint in by_method.items() if endpoint.surface == "family")

    def literal_endpoints(self) -> Iterator[Endpoint]:
        """Endpoints whose path is written out, each once: a front may keep them in a dictionary of its own."""
        seen = set()
        for by_method in self._literal.values():
            for endpoint in by_method.values():
                if endpoint.name not in seen:
                    seen.add(endpoint.name)
                    yield endpoint

    def _templated(self, path: str) -> dict[str, Endpoint] | None:
        for pattern, by_method in self._templates:
            if pattern.fullmatch(path):
                return by_method
        return None


def other(path: str) -> Endpoint | None:
    """The endpoint of paths that are in no table, by prefix; None outside the dialects."""
    if path.startswith("/api/") and (path.split("/", 3)[2] in FAMILY_WORDS or path.startswith(_NOT_PASSED_ON)):
        return None
    for prefix, endpoint in _OTHERS:
        if path.startswith(prefix) and len(path) > len(prefix):
            return endpoint
    return None


def passthrough(path: str) -> Endpoint | None:
    """The endpoint of a path of the setting `passthrough`; None inside the dialects, which have their own."""
    return None if path.startswith(("/api/", "/v1/")) else openai.PASSTHROUGH


def parameter(endpoint: Endpoint, path: str) -> str:
    """What stands for the (last) parameter of the endpoint's template in this path, percent-escapes undone."""
    prefix = endpoint.path.rpartition("{")[0]
    depth = prefix.count("/")
    return unquote("/".join(path.split("/")[depth:]), errors="replace")


def _pattern(template: str) -> re.Pattern[str]:
    greedy = template.endswith(_GREEDY)
    text = re.escape(template.removesuffix("{id}") if greedy else template)
    text = _PARAMETER.sub(lambda found: _GRAMMAR.get(found[1], "[^/]+"), text)
    return re.compile(text + ".+" if greedy else text, re.DOTALL)


#: The families that come with us; they enter by the same door as others (`fleetproxy.families`).
BUILT_IN: tuple[Family, ...] = (llm.family, asr.family, mcp.family, transfer.family)
_builtin = Registry(BUILT_IN)
find = _builtin.find
literal_endpoints = _builtin.literal_endpoints
methods = _builtin.methods
