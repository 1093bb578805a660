"""Files that settings name: there, readable, and what they are said to be. Looked at once, before anything starts."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fleetproxy.settings.model import Settings
from fleetproxy.settings.problems import Origin, Origins, Problem


def check_files(settings: Settings, origins: Origins) -> list[Problem]:
    """Every file that cannot be used."""
    problems: list[Problem] = []

    def problem(path: tuple[str | int, ...], text: str) -> None:
        key = f"{path[0]}[{path[1]}].{path[2]}" if len(path) == 3 else ".".join(map(str, path))
        problems.append(Problem(key, origins.get(path) or origins.get(path[:2]) or Origin("default"), text))

    tls = settings.tls
    if tls.cert and tls.key:
        unreadable = [name for name in ("cert", "key") if _unreadable(getattr(tls, name))]
        for name in unreadable:
            problem(("tls", name), _unreadable(getattr(tls, name)))
        if not unreadable and (text := _bad_pair(tls.cert, tls.key)):
            problem(("tls", "cert"), text)
    for place, server in enumerate(settings.servers):
        if not server.tls_ca_file:
            continue
        text = _unreadable(server.tls_ca_file) or _bad_authorities(server.tls_ca_file)
        if text:
            problem(("servers", place, "tls_ca_file"), text)
    return problems


def certificate_end(path: str) -> datetime | None:
    """When the first certificate of a PEM file ends; None when it cannot be told."""
    decode: Any = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)
    if decode is None:
        return None
    try:
        ends = ssl.cert_time_to_seconds(decode(path)["notAfter"])
    except (OSError, ssl.SSLError, KeyError, ValueError):
        return None
    return datetime.fromtimestamp(ends, UTC)


def _unreadable(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return ""


def _bad_pair(cert: str, key: str) -> str:
    try:
        # The password is never asked for: nobody sits at the terminal of a service.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        return (
            f"{cert} and {key} are no certificate and key that belong together, without a password ({_reason(error)})"
        )
    return ""


def _bad_authorities(path: str) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        return f"{path} holds no certificates ({_reason(error)})"
    return ""


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)
