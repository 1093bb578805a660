"""The strict front gate: what passes here is sane, and one decision about its path has been made on the raw bytes.

Everything behind may assume: a method we know, one valid Host, a path without tricks, a readable head. What is
authorised is byte for byte what is routed and forwarded (faults C-12...C-19, C-38, C-40).
"""

from __future__ import annotations

import re
from typing import Literal

from fleetproxy.core.table import Access
from fleetproxy.errors import BadHost, BadPath, BadRequest, ExpectationFailed, MethodRefused, UriTooLong
from fleetproxy.listen import Scope
from fleetproxy.wire.head import Head, read_head

Owner = Literal["backend", "family", "control", "root", "nobody"]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
ALLOW = ", ".join(sorted(METHODS))
MAX_TARGET_BYTES = 8 * 1024

#: First words after /api/ that are control's (DESIGN: who owns a path).
CONTROL_WORDS = frozenset(
    b"auth servers events requests usage server-events plugins system-metrics analytics poll scheduled-jobs users "
    b"settings models recommendations discoveries query state client workers".split()
)
FAMILY_WORDS = frozenset(b"llm asr mcp transfer".split())
CONTROL_ROOTS = frozenset(b"dashboard state metrics healthz livez readyz health".split())

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?\]|[A-Za-z0-9._~-]+)(?::[0-9]{1,5})?\Z")
_TRICKS = re.compile(rb"//|[\x00-\x20\x7f\\;]|%(?:00|0[ad]|5c|2e|25)|/\.{1,2}(?:/|\Z)", re.IGNORECASE)
_SLASH = re.compile(rb"%2f", re.IGNORECASE)
#: Model ids hold slashes, raw or encoded, and nothing is authorised by what comes after these.
_ID_PREFIXES = (b"/v1/models/", b"/api/llm/v1/models/", b"/api/asr/v1/models/")
_PINNED_ID = re.compile(rb"/api/llm/id/(?:[^/%]|%(?!2[fF]))+/v1/models/")

#: HTTP/1.0, which needs no Host: as ASGI has it, and as Granian calls it (a missing Host is an empty one there).
_OLD = frozenset({"1.0", "1"})

_good_hosts: set[bytes] = set()


def check(scope: Scope) -> Head:
    """Refuse what no part of us should see. Raises ClientError; returns the head, read."""
    if scope["method"] not in METHODS:
        raise MethodRefused(allow=ALLOW)
    raw_path: bytes = scope["raw_path"]
    if len(raw_path) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        raise UriTooLong
    head = read_head(scope["headers"])
    own = head.own
    host = own.get(b"host")
    if host not in _good_hosts:
        _check_host(host, scope["http_version"])
    expect = own.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise ExpectationFailed
    length = own.get(b"content-length")
    if length is not None and not length.isdigit():
        raise BadRequest("The Content-Length header is not a number.")
    return head


def check_path(raw_path: bytes) -> None:
    """Refuse paths that two readers could read differently. Raises BadPath."""
    if not raw_path.startswith(b"/") or _TRICKS.search(raw_path):
        raise BadPath
    if _SLASH.search(raw_path) and not raw_path.startswith(_ID_PREFIXES) and not _PINNED_ID.match(raw_path):
        raise BadPath


def owner(raw_path: bytes, access: Access) -> Owner:
    """Whose path this is, by whole segments."""
    segments = raw_path.split(b"/", 3)
    first = segments[1] if len(segments) > 1 else b""
    if first == b"api":
        word = segments[2] if len(segments) > 2 else b""
        if word in CONTROL_WORDS:
            return "control" if access.dashboard_on_public_port else "nobody"
        if word in FAMILY_WORDS:
            return "family"
        return "backend" if word else "nobody"
    if first == b"v1":
        return "backend" if len(segments) > 2 and segments[2] else "nobody"
    if first == b"":
        return "root"
    if first in CONTROL_ROOTS:
        if first == b"metrics" and not access.metrics_on_public_port:
            return "nobody"
        if first in (b"dashboard", b"state") and not access.dashboard_on_public_port:
            return "nobody"
        return "control"
    path = raw_path.decode("latin-1")
    if any(path == extra or path.startswith(extra.rstrip("/") + "/") for extra in access.passthrough):
        return "backend"
    return "nobody"


def _check_host(host: bytes | None, http_version: str) -> None:
    if not host:
        if http_version in _OLD:
            return
        raise BadHost
    if not _HOST.match(host):
        raise BadHost
    if len(_good_hosts) >= 1024:
        _good_hosts.clear()
    _good_hosts.add(host)
