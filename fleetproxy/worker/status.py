"""The worker's local pages: how it does, its version, drain and shutdown; and its metrics. nfrx's paths and fields."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from fleetproxy.core import access
from fleetproxy.listen import Receive, Scope, Send
from fleetproxy.worker.agent import Agent

_LOOPBACK = access.networks(("127.0.0.0/8", "::1/128"))
_TOKEN = re.compile("[0-9a-f]{64}")
_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")


def make_token(path: Path) -> str:
    """The control token, kept where this user alone can read it; one that is there already serves every worker of the
    family. Raises OSError."""
    with suppress(FileNotFoundError):
        known = path.stat()
        kept = path.read_text(errors="replace").strip()
        if _TOKEN.fullmatch(kept) and known.st_uid == os.geteuid() and not known.st_mode & 0o077:
            return kept
    token = secrets.token_hex(32)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(token + "\n")
    temporary.replace(path)
    return token


def state_word(agent: Agent) -> str:
    """One word for how the agent is doing."""
    standing = agent.standing
    if standing.leaving:
        return "terminating"
    if standing.draining:
        return "draining"
    if not standing.connected_to_server:
        return "connecting" if agent.options.reconnect else "disconnected"
    if not standing.connected_to_backend:
        return "not_ready"
    return "connected_busy" if len(agent.desk) else "connected_idle"


def status(agent: Agent) -> dict[str, Any]:
    """The body of /status."""
    standing, offer = agent.standing, agent.current
    host = offer.host
    return {
        "state": state_word(agent),
        "connected_to_server": standing.connected_to_server,
        "connected_to_backend": standing.connected_to_backend,
        "current_jobs": len(agent.desk),
        "max_concurrency": offer.slots,
        "models": list(offer.models),
        "last_error": standing.last_error,
        "last_heartbeat": _rfc3339(standing.last_heartbeat_s),
        "worker_id": agent.worker_id,
        "worker_name": agent.worker_name,
        "version": agent.version,
        "agent_config": {name: getattr(host, name) for name in host.__struct_fields__ if getattr(host, name)},
    }


class StatusPage:
    """An ASGI app for STATUS_ADDR."""

    def __init__(self, agent: Agent, token: str) -> None:
        self._agent = agent
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        if path in {"/status", "/version", "/healthz"}:
            if method not in {"GET", "HEAD"}:
                await _say(send, 405, b"", allow=b"GET")
            elif path == "/status":
                await _say(send, 200, msgspec.json.encode(status(self._agent)))
            elif path == "/version":
                agent = self._agent
                told = {"Version": agent.version, "BuildSHA": agent.build_sha, "BuildDate": agent.build_date}
                await _say(send, 200, msgspec.json.encode(told))
            else:
                await _say(send, 200, b'{"status":"ok"}')
        elif path in {"/control/drain", "/control/undrain", "/control/shutdown"}:
            await self._control(scope, send, path.rsplit("/", 1)[1])
        else:
            await _say(send, 404, b'{"error":"not_found"}')

    async def _control(self, scope: Scope, send: Send, word: str) -> None:
        client = scope["client"]
        if scope["method"] != "POST":
            await _say(send, 405, b"", allow=b"POST")
        elif not client or not access.trusted(client[0], _LOOPBACK):
            await _say(send, 403, b'{"error":"forbidden"}')
        elif not self._may(scope):
            await _say(send, 401, b'{"error":"unauthorized"}')
        else:
            {"drain": self._drain, "undrain": self._agent.undrain, "shutdown": self._agent.stop}[word]()
            await _say(send, 200, b'{"status":"ok"}')

    def _drain(self) -> None:
        if not self._agent.standing.draining:  # said twice it would mean: leave now
            self._agent.drain()

    def _may(self, scope: Scope) -> bool:
        shown = dict(scope["headers"]).get(b"x-auth-token", b"")
        return bool(self._token) and hmac.compare_digest(shown, self._token.encode())


class MetricsPage:
    """An ASGI app for METRICS_PORT."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != "/metrics":
            await _say(send, 404, b"404 page not found\n", kind=_TEXT)
            return
        version = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
        await _say(send, 200, metrics(self._agent).encode(), kind=version)


def metrics(agent: Agent) -> str:
    """Prometheus text."""
    standing, offer = agent.standing, agent.current
    rows = (
        ("connected_to_server", "gauge", "Whether the server has this worker.", int(standing.connected_to_server)),
        ("connected_to_backend", "gauge", "Whether the backend answers.", int(standing.connected_to_backend)),
        ("requests_in_flight", "gauge", "Requests being served or waiting here.", len(agent.desk)),
        ("max_concurrency", "gauge", "Requests taken at once now.", offer.slots),
        ("models", "gauge", "Models on offer.", len(offer.models)),
        ("requests_total", "counter", "Requests that have ended.", agent.desk.served),
        ("connections_total", "counter", "Connections made to the server.", standing.connections),
    )
    lines = [
        "# HELP fleetproxy_worker_build_info Version of this worker.",
        "# TYPE fleetproxy_worker_build_info gauge",
        f'fleetproxy_worker_build_info{{version="{agent.version}"}} 1',
    ]
    for name, kind, says, value in rows:
        full = f"fleetproxy_worker_{name}"
        lines += [f"# HELP {full} {says}", f"# TYPE {full} {kind}", f"{full} {value}"]
    return "\n".join([*lines, ""])


def _rfc3339(seconds: float) -> str | None:
    if not seconds:
        return None

    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


async def _say(send: Send, status: int, body: bytes, *, kind: tuple[bytes, bytes] = _JSON, allow: bytes = b"") -> None:
    headers = [kind, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    if allow:
        headers.append((b"allow", allow))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
