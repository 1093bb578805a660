"""Who may call a loopback Ollama: its Host check and its CORS answers."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fleetproxy.testing.message import Request

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
ALLOW_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,OpenAI-Beta,x-stainless-arch,x-stainless-async,"
    "x-stainless-custom-poll-interval,x-stainless-helper-method,x-stainless-lang,x-stainless-os,"
    "x-stainless-package-version,x-stainless-poll-helper,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)


def host_allowed(host: str) -> bool:
    """Addresses, localhost and local names; a foreign name means a browser was led here."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in {"", "localhost"} or name.endswith(_LOCAL_SUFFIXES)
    return True


def origin_allowed(origin: str) -> bool:
    parts = urlsplit(origin)
    return parts.scheme in _SCHEMES or parts.hostname in {"localhost", "127.0.0.1", "0.0.0.0"}  # noqa: S104 - a name


def preflight(request: Request) -> tuple[int, list[tuple[str, str]]]:
    """The answer to OPTIONS: 204 with what is allowed, 403 for a foreign origin."""
    origin = request.header("origin")
    if origin and not origin_allowed(origin):
        return 403, []
    return 204, [
        ("Access-Control-Allow-Origin", origin or "*"),
        ("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
        ("Access-Control-Allow-Headers", ALLOW_HEADERS),
        ("Access-Control-Max-Age", "43200"),
    ]
