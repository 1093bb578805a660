"""The state of everything (`/api/state`) as rows, and what changed between two looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from fleetproxy.remote.call import Fleet


class Backend(msgspec.Struct, frozen=True, kw_only=True):
    """A server or a dial-in worker."""

    name: str
    #: "ollama", "openai", or the worker's family with "worker" behind it.
    kind: str
    #: idle, working, not_ready, draining or gone; offline for servers nobody reaches.
    status: str
    in_flight: int = 0
    waiting: int = 0
    slots: int | None = None
    done: int = 0
    failed: int = 0
    #: Requests whose caller did not stay to the end.
    left: int = 0
    tokens_out: int = 0
    average_ms: float = 0.0
    vram_used_bytes: int | None = None
    vram_total_bytes: int | None = None
    last_error: str = ""
    id: str = ""
    #: Requests and tokens a second since the look before; None at the first.
    requests_per_s: float | None = None
    tokens_per_s: float | None = None


class View(msgspec.Struct, frozen=True, kw_only=True):
    """All of it at one moment."""

    at_s: float
    version: str
    #: ready, not_ready or draining.
    state: str
    uptime_s: float
    in_flight: int
    waiting: int
    line_size: int
    processes: tuple[str, ...]
    backends: tuple[Backend, ...]
    relays: int = 0
    channels: int = 0

    @property
    def servers(self) -> tuple[Backend, ...]:
        return tuple(backend for backend in self.backends if not backend.kind.endswith("worker"))

    @property
    def workers(self) -> tuple[Backend, ...]:
        return tuple(backend for backend in self.backends if backend.kind.endswith("worker"))


def look(fleet: Fleet, now_s: float, before: View | None = None) -> View:
    """The state now, with rates since `before`. Raises CallError."""
    return read(fleet.control("GET", "/api/state"), now_s, before)


def read(value: Any, now_s: float, before: View | None = None) -> View:
    """The same out of an envelope already read."""
    plugins: Mapping[str, Any] = value.get("plugins", {}) if isinstance(value, dict) else {}
    ours = plugins.get("fleet", {})
    llm = plugins.get("llm", {})
    summary = llm.get("server", {}) or plugins.get("asr", {}).get("server", {})
    earlier = {(backend.kind, backend.name): backend for backend in before.backends} if before else {}
    passed_s = now_s - before.at_s if before else 0.0
    backends = [
        *(_server(entry) for entry in llm.get("servers", ())),
        *(_worker(family, entry) for family in ("llm", "asr") for entry in plugins.get(family, {}).get("workers", ())),
    ]
    return View(
        at_s=now_s,
        version=str(ours.get("version", "")),
        state=str(summary.get("state", "")),
        uptime_s=float(summary.get("uptime_s", 0.0)),
        in_flight=int(ours.get("inflight", 0)),
        waiting=int(ours.get("waiting", 0)),
        line_size=int(summary.get("scheduler_queue_capacity", 0)),
        processes=tuple(ours.get("processes", ())),
        backends=tuple(_with_rates(one, earlier.get((one.kind, one.name)), passed_s) for one in backends),
        relays=len(plugins.get("mcp", {}).get("clients", ())),
        channels=int(plugins.get("transfer", {}).get("channels", 0)),
    )


def _server(entry: Mapping[str, Any]) -> Backend:
    return _backend(entry, str(entry.get("kind", "")), str(entry["status"]) if entry.get("online") else "offline")


def _worker(family: str, entry: Mapping[str, Any]) -> Backend:
    return _backend(entry, f"{family} worker", str(entry.get("status", "")))


def _backend(entry: Mapping[str, Any], kind: str, status: str) -> Backend:
    return Backend(
        name=str(entry.get("name", "")),
        id=str(entry.get("id", "")),
        kind=kind,
        status=status,
        in_flight=entry.get("inflight", 0),
        waiting=entry.get("queue_len", 0),
        slots=entry.get("max_concurrency") or None,
        done=entry.get("processed_total", 0),
        failed=entry.get("failures_total", 0),
        left=entry.get("left_total", 0),
        tokens_out=entry.get("output_tokens_total", 0),
        average_ms=entry.get("avg_processing_ms", 0.0),
        vram_used_bytes=entry.get("vram_used_bytes"),
        vram_total_bytes=entry.get("vram_total_bytes"),
        last_error=entry.get("last_error") or "",
    )


def _with_rates(now: Backend, before: Backend | None, passed_s: float) -> Backend:
    # Counters begin again with control: a smaller number than before tells nothing.
    if before is None or passed_s <= 0 or now.done < before.done or now.tokens_out < before.tokens_out:
        return now
    return msgspec.structs.replace(
        now,
        requests_per_s=(now.done - before.done) / passed_s,
        tokens_per_s=(now.tokens_out - before.tokens_out) / passed_s,
    )
