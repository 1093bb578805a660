"""What a metrics agent says of the machine a server runs on. Bytes in, values out.

Agents differ: whole or broken numbers, temperatures by purpose (`cpu`, `gpu`) or by sensor (`thermal_zone0`, `gpu0`),
causes of a reboot under the boot's own text or under `last`. All of that is read; what makes no sense counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

MAX_BOOTS = 20
MAX_TEXT_CHARACTERS = 256
_MAX_NUMBER = 1e15
SAME_BOOT = timedelta(minutes=2)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of an agent. Field names and units are those of the store's `system_metrics`."""

    cpu_temp_c: float | None = None
    gpu_temp_c: float | None = None
    cpu_percent: float | None = None
    gpu_percent: float | None = None
    mem_total_mb: float | None = None
    mem_used_mb: float | None = None
    mem_available_mb: float | None = None
    swap_total_mb: float | None = None
    swap_used_mb: float | None = None
    load_avg_1: float | None = None
    load_avg_5: float | None = None
    load_avg_15: float | None = None
    uptime_s: float | None = None
    disk_total_gb: float | None = None
    disk_used_gb: float | None = None
    #: Of all graphics cards together; agents of ours tell, the store does not keep it.
    gpu_mem_total_mb: float | None = None
    gpu_mem_used_mb: float | None = None
    #: As the agent writes them, newest first.
    recent_boots: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """A machine, and why it was started anew: the boot's text (or "last") -> the cause, in words or None."""

    machine: Machine
    causes: dict[str, str | None]


_DECODER = msgspec.json.Decoder(dict[str, Any])


def read(body: bytes) -> Report | None:
    """An agent's answer; None when it is none (another exporter on that port, perhaps)."""
    try:
        said = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    memory, disk, temperatures = (_mapping(said.get(name)) for name in ("memory", "disk", "temperatures"))
    if not memory and not disk and not temperatures and "uptime_seconds" not in said:
        return None
    loads = said.get("load_avg")
    load = [_number(value) for value in loads[:3]] if isinstance(loads, list) else []
    load += [None] * (3 - len(load))
    machine = Machine(
        cpu_temp_c=_hottest(temperatures, "cpu", "thermal_zone"),
        gpu_temp_c=_hottest(temperatures, "gpu", "gpu"),
        cpu_percent=_number(said.get("cpu_percent")),
        gpu_percent=_number(said.get("gpu_percent")),
        mem_total_mb=_number(memory.get("total_mb")),
        mem_used_mb=_number(memory.get("used_mb")),
        mem_available_mb=_number(memory.get("available_mb")),
        swap_total_mb=_number(memory.get("swap_total_mb")),
        swap_used_mb=_number(memory.get("swap_used_mb")),
        load_avg_1=load[0],
        load_avg_5=load[1],
        load_avg_15=load[2],
        uptime_s=_number(said.get("uptime_seconds")),
        disk_total_gb=_number(disk.get("total_gb")),
        disk_used_gb=_number(disk.get("used_gb")),
        gpu_mem_total_mb=_number(_mapping(said.get("gpu_memory")).get("total_mb")),
        gpu_mem_used_mb=_number(_mapping(said.get("gpu_memory")).get("used_mb")),
        recent_boots=_texts(said.get("recent_boots")),
    )
    causes = {
        boot[:MAX_TEXT_CHARACTERS]: _cause(_mapping(why)) for boot, why in _mapping(said.get("reboot_causes")).items()
    }
    return Report(machine, dict(list(causes.items())[: MAX_BOOTS + 1]))


def new_boots(before: tuple[str, ...] | None, now: tuple[str, ...]) -> tuple[str, ...]:
    """Boots that were not there at the last answer; none when there was no last answer.

    The moment of a boot is computed from clocks that are set now and then: near ones are the same.
    """
    if before is None:
        return ()
    known = [at for at in map(_moment, before) if at is not None]
    return tuple(boot for boot in now if boot not in before and not _near(_moment(boot), known))


def _moment(boot: str) -> datetime | None:
    """The instant of a boot told in ISO 8601 with a zone; other texts are only texts."""
    try:
        at = datetime.fromisoformat(boot)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _near(at: datetime | None, known: Iterable[datetime]) -> bool:
    return at is not None and any(abs(at - other) <= SAME_BOOT for other in known)


def cause(report: Report, boot: str) -> str | None:
    """Why the machine was started anew, when the agent knows."""
    return report.causes.get(boot) or report.causes.get("last")


def _cause(why: Mapping[str, Any]) -> str | None:
    detail, user = _text(why.get("detail")), _text(why.get("user"))
    if why.get("cause") == "user_command":
        return f"{detail} ({user})" if detail and user else detail
    return detail if why.get("cause") == "power_button" else None


def _hottest(temperatures: Mapping[str, Any], purpose: str, sensor: str) -> float | None:
    """The temperature told for a purpose, else the highest of its sensors."""
    told = _number(temperatures.get(purpose), lowest=-273.15)
    if told is not None:
        return told
    found = (_number(value, lowest=-273.15) for name, value in temperatures.items() if name.startswith(sensor))
    return max((value for value in found if value is not None), default=None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any, lowest: float = 0.0) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and lowest <= value <= _MAX_NUMBER:
        return float(value)
    return None


def _text(value: Any) -> str | None:
    return value[:MAX_TEXT_CHARACTERS] if isinstance(value, str) and value.isprintable() and value else None


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    found = (_text(item) for item in value[:MAX_BOOTS])
    return tuple(dict.fromkeys(text for text in found if text is not None))
