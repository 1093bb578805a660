"""The shapes of the live stream: servers, workers, relays, totals, and one finished request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from fleetproxy.control.api.fleet import facts
from fleetproxy.control.api.reading import stamp
from fleetproxy.control.fleet import Member
from fleetproxy.control.live.rates import Failure, Pace
from fleetproxy.control.visitors import Visitor
from fleetproxy.core.backend import Backend, BackendState, ResidentModel
from fleetproxy.core.record import AuditRecord
from fleetproxy.core.wording import error_words
from fleetproxy.core.worker import Worker, backend_of, number_of
from fleetproxy.link.messages import RelayedCall, RelaysPulse

Shown = dict[str, Any]
BreakerWord = Literal["closed", "open", "half_open"]

#: Models of one backend, and calls of one relay, that are listed; the counts tell of the rest.
MAX_LISTED, MAX_CALLS = 64, 50


class Standing(msgspec.Struct, frozen=True):
    """What changes faster than a backend's state."""

    in_flight: int
    waiting: int
    breaker: BreakerWord
    pace: Pace
    failure: Failure | None


def instant(at_s: float | None) -> str | None:
    return None if at_s is None else stamp(datetime.fromtimestamp(at_s, UTC))


def server(member: Member, machine: Mapping[str, Any] | None, standing: Standing, since_s: float | None) -> Shown:
    """A configured server."""
    backend, state = member.backend, member.state
    return {
        **facts(member, machine),
        **_busy(backend, state, standing, member.loaded_at_s),
        "state": server_state(member),
        "since": instant(since_s),
    }


def server_state(member: Member) -> str:
    """One word for how a server is."""
    backend, state = member.backend, member.state
    lost: tuple[tuple[bool, str], ...] = (
        (member.leaving, "leaving"),
        (not backend.enabled, "disabled"),
        (state.polled_at_s is None, "unknown"),
        (not state.online, "offline"),
        (backend.draining, "draining"),
    )
    return next((word for applies, word in lost if applies), "online")


def worker(visitor: Visitor, holds: BackendState, standing: Standing, *, drained_here: bool) -> Shown:
    """A dial-in worker that answers requests."""
    known, pulse = visitor.worker, visitor.pulse
    offer = known.offer
    state = "draining" if offer.status == "draining" else "not_ready" if not offer.slots else "idle"
    return {
        **_arrival(visitor),
        "family": known.family,
        "protocol": known.protocol,
        "workerId": known.id,
        "host": offer.host.hostname,
        "backendFamily": offer.host.backend_family,
        "backendVersion": offer.host.backend_version,
        "state": "working" if state == "idle" and standing.in_flight else state,
        "isDraining": offer.status == "draining",
        "drainedHere": drained_here,
        "models": list(offer.models[:MAX_LISTED]),
        "modelCount": len(offer.models),
        "cpuPercent": round(pulse.cpu_percent if pulse else known.cpu_percent, 1),
        "ramPercent": round(pulse.ram_percent if pulse else known.ram_percent, 1),
        "processed": pulse.processed if pulse else 0,
        "failed": pulse.failed if pulse else 0,
        "embeddingBatchSize": offer.embedding_batch_size or None,
        **_busy(backend_of(known), holds, standing, {}),
    }


def relay(visitor: Visitor, relays: RelaysPulse, calls: Sequence[RelayedCall], *, drained_here: bool) -> Shown:
    """An MCP relay. `calls` are those of all relays that run."""
    known = visitor.worker
    functions = relays.functions.get(known.id, {})
    own = [call for call in calls if call.relay == known.id]
    return {
        **_arrival(visitor),
        "relayId": known.id,
        "inFlight": sum(functions.values()),
        "isDraining": known.offer.status == "draining",
        "drainedHere": drained_here,
        "functions": dict(sorted(functions.items())),
        "calls": [
            {"id": call.id, "method": call.method, "startedAt": instant(call.started_at_s)} for call in own[:MAX_CALLS]
        ],
    }


def _arrival(visitor: Visitor) -> Shown:
    known, pulse = visitor.worker, visitor.pulse
    heard_s = max(known.last_heartbeat_s, pulse.last_heartbeat_s if pulse else 0.0)
    return {
        "id": worker_number(known),
        "name": known.name,
        "version": known.version,
        "remote": known.remote,
        "connectedAt": instant(known.connected_at_s),
        "lastHeartbeat": instant(heard_s),
    }


def worker_number(known: Worker) -> int:
    return number_of(known.family, known.id)


def _busy(backend: Backend, state: BackendState, standing: Standing, loaded_at_s: Mapping[str, float]) -> Shown:
    failure, resident = standing.failure, state.resident
    last = failure and {"code": failure.code, "words": error_words(failure.code), "at": instant(failure.at_s)}
    return {
        "inFlight": standing.in_flight,
        "slots": backend.max_concurrent,
        "waiting": standing.waiting,
        "breaker": standing.breaker,
        "tokensPerSecond": standing.pace.tokens_per_s,
        "requestsPerSecond": standing.pace.requests_per_s,
        "failedLastMinute": standing.pace.failed_last_minute,
        "lastFailure": last,
        "vramUsedBytes": state.vram_used_bytes,
        "vramTotalBytes": backend.vram_bytes,
        "resident": [_resident(model, loaded_at_s.get(model.name)) for model in resident[:MAX_LISTED]],
        "residentCount": len(resident),
        "diskCount": len(state.on_disk),
    }


def _resident(model: ResidentModel, loaded_at_s: float | None) -> Shown:
    return {
        "name": model.name,
        "sizeBytes": model.size_bytes,
        "vramBytes": model.size_vram_bytes,
        "contextLength": model.context_length,
        "expiresAt": model.expires_at,
        "loadedAt": instant(loaded_at_s),
        "parameterSize": model.parameter_size,
        "quantization": model.quantization,
    }


def sums(servers: Iterable[Shown], workers: Iterable[Shown], relays: Iterable[Shown]) -> Shown:
    """The fleet as one."""
    servers, workers = list(servers), list(workers)
    everybody = [*servers, *workers]
    usable = [one for one in servers if one["state"] == "online"]
    serving = [*usable, *(one for one in workers if one["state"] in ("idle", "working"))]
    slots = [one["slots"] for one in serving]
    return {
        "servers": len(servers),
        "serversOnline": sum(one["isOnline"] for one in servers),
        "serversUsable": len(usable),
        "workers": len(workers),
        "relays": len(list(relays)),
        "inFlight": sum(one["inFlight"] for one in everybody),
        # One without a limit makes the sum meaningless.
        "slots": sum(slots) if slots and None not in slots else None,
        "waiting": sum(one["waiting"] for one in everybody),
        "vramUsedBytes": sum(one["vramUsedBytes"] for one in everybody),
        "vramTotalBytes": sum(one["vramTotalBytes"] or 0 for one in everybody),
    }


def request(record: AuditRecord, hosts: Mapping[str, str]) -> Shown:
    """A finished request, as `GET /api/requests` shows its row; the row's number is not known yet."""
    backend = record.backend
    return {
        "id": None,
        "sourceIp": record.source,
        "model": record.model,
        "endpoint": record.path,
        "method": record.method,
        "targetHost": hosts.get(backend, backend) if backend else None,
        "statusCode": record.status,
        "durationMs": int(record.total_ms + 0.5),
        "createdAt": instant(record.started_at_us / 1e6),
        "requestId": record.request_id,
        "user": record.user,
        "serverName": backend,
        "serverId": record.server_id,
        "routingReason": record.route_reason,
        "outcome": record.outcome,
        "error": record.error,
        "retries": record.retries,
        "streamed": record.streamed,
        "queueMs": _rounded(record.queue_ms),
        "ttftMs": _rounded(record.ttft_ms),
        "overheadMs": _rounded(record.overhead_ms),
        "bytesIn": record.bytes_in,
        "bytesOut": record.bytes_out,
        "tokensIn": record.tokens_in,
        "tokensOut": record.tokens_out,
        "family": record.family,
        "dialect": record.dialect,
        "route": record.endpoint,
        "modelServed": record.model_served,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
