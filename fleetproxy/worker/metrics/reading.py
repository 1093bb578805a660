"""One look at a machine, and the two ways it is told: the fleet manager's JSON, and Prometheus' text. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

import msgspec

MIB, GIB = 1024**2, 1024**3
_PREFIX = "fleetproxy_machine_"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One graphics card; None: it does not tell."""

    index: int
    name: str = ""
    percent: float | None = None
    temp_c: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    power_w: float | None = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What could be read; None or empty: this machine does not tell."""

    hostname: str = ""
    #: Seconds since the epoch of this look, and of the boot.
    at_s: float = 0.0
    booted_s: float | None = None
    #: 0 to 100, since the look before.
    cpu_percent: float | None = None
    load: tuple[float, float, float] | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_free_bytes: int | None = None
    disk_total_bytes: int | None = None
    disk_used_bytes: int | None = None
    disk_free_bytes: int | None = None
    #: Of the processor; of each sensor by name.
    cpu_temp_c: float | None = None
    sensors: Mapping[str, float] = {}
    cards: tuple[Card, ...] = ()
    #: Seconds since the epoch of earlier boots, newest first, the present one included.
    boots: tuple[float, ...] = ()
    #: Of these, those before which nobody shut the machine down.
    unexpected: frozenset[float] = frozenset()
    version: str = ""

    @property
    def uptime_s(self) -> float | None:
        return None if self.booted_s is None else max(0.0, self.at_s - self.booted_s)


def as_json(reading: Reading) -> bytes:
    """The fleet manager's agent format, whole numbers where it wants them; `gpus`, `gpu_memory`, `agent` are ours."""
    cards = reading.cards
    percents = [card.percent for card in cards if card.percent is not None]
    temperatures = {**reading.sensors}
    temperatures |= {f"gpu{card.index}": card.temp_c for card in cards if card.temp_c is not None}
    hottest = max((card.temp_c for card in cards if card.temp_c is not None), default=None)
    for name, value in (("cpu", reading.cpu_temp_c), ("gpu", hottest)):
        if value is not None:
            temperatures[name] = value
    return msgspec.json.encode(
        {
            "hostname": reading.hostname,
            "uptime_seconds": _whole(reading.uptime_s),
            "boot_time": _instant(reading.booted_s),
            "temperatures": {name: round(value, 1) for name, value in sorted(temperatures.items())},
            "memory": {
                "total_mb": _in(MIB, reading.memory_total_bytes),
                "used_mb": _in(MIB, _less(reading.memory_total_bytes, reading.memory_available_bytes)),
                "available_mb": _in(MIB, reading.memory_available_bytes),
                "swap_total_mb": _in(MIB, reading.swap_total_bytes),
                "swap_used_mb": _in(MIB, _less(reading.swap_total_bytes, reading.swap_free_bytes)),
            },
            "load_avg": list(reading.load) if reading.load else [],
            "cpu_percent": _whole(reading.cpu_percent),
            "gpu_percent": _whole(max(percents, default=None)),
            "recent_boots": [_instant(boot) for boot in reading.boots],
            "reboot_causes": {
                str(_instant(boot)): {"cause": "unknown", "detail": "nobody shut it down: power loss or a crash"}
                for boot in reading.boots
                if boot in reading.unexpected
            },
            "disk": {
                "total_gb": _in(GIB, reading.disk_total_bytes),
                "used_gb": _in(GIB, reading.disk_used_bytes),
                "free_gb": _in(GIB, reading.disk_free_bytes),
            },
            "gpu_memory": {
                "total_mb": _in(MIB, _sum(card.memory_total_bytes for card in cards)),
                "used_mb": _in(MIB, _sum(card.memory_used_bytes for card in cards)),
            },
            "gpus": [_card(card) for card in cards],
            "agent": f"fleetproxy/{reading.version}",
        }
    )


def _card(card: Card) -> dict[str, object]:
    return {
        "index": card.index,
        "name": card.name,
        "percent": _whole(card.percent),
        "temp_c": _whole(card.temp_c),
        "memory_total_mb": _in(MIB, card.memory_total_bytes),
        "memory_used_mb": _in(MIB, card.memory_used_bytes),
        "power_w": _whole(card.power_w),
    }


def as_prometheus(reading: Reading) -> str:
    """Prometheus' text format: base units, nothing for what is not known."""
    lines: list[str] = []
    for name, doc, samples in _families(reading):
        known = [(labels, value) for labels, value in samples if value is not None]
        if known:
            full = _PREFIX + name
            lines += [f"# HELP {full} {doc}", f"# TYPE {full} gauge"]
            lines += [f"{full}{_labels(labels)} {_number(value)}" for labels, value in known]
    return "\n".join([*lines, ""])


_Samples = Iterable[tuple[dict[str, str], float | None]]


def _families(reading: Reading) -> Iterator[tuple[str, str, _Samples]]:
    alone: dict[str, str] = {}
    cards = [({"gpu": str(card.index), "name": card.name}, card) for card in reading.cards]
    yield "info", "The agent that tells.", [({"version": reading.version, "hostname": reading.hostname}, 1)]
    yield "boot_time_seconds", "When the machine booted, since the epoch.", [(alone, reading.booted_s)]
    yield (
        "cpu_usage_ratio",
        "Processor time not idle since the last look, 0 to 1.",
        [(alone, _ratio(reading.cpu_percent))],
    )
    for place, minutes in enumerate((1, 5, 15)):
        value = reading.load[place] if reading.load else None
        yield f"load{minutes}", f"Load average, {minutes} min.", [(alone, value)]
    for name, what in (("memory", "Memory"), ("swap", "Swap")):
        total = reading.memory_total_bytes if name == "memory" else reading.swap_total_bytes
        free = reading.memory_available_bytes if name == "memory" else reading.swap_free_bytes
        yield f"{name}_total_bytes", f"{what} there is.", [(alone, total)]
        yield f"{name}_used_bytes", f"{what} in use.", [(alone, _less(total, free))]
    root = {"mountpoint": "/"}
    yield "disk_total_bytes", "Size of a file system.", [(root, reading.disk_total_bytes)]
    yield "disk_used_bytes", "Of it in use.", [(root, reading.disk_used_bytes)]
    sensors = {**reading.sensors} | ({"cpu": reading.cpu_temp_c} if reading.cpu_temp_c is not None else {})
    yield (
        "temperature_celsius",
        "Temperatures, by sensor.",
        [({"sensor": name}, value) for name, value in sorted(sensors.items())],
    )
    yield "gpu_usage_ratio", "Share of time a card was busy, 0 to 1.", [(at, _ratio(c.percent)) for at, c in cards]
    yield "gpu_temperature_celsius", "Temperature of a card.", [(at, card.temp_c) for at, card in cards]
    yield "gpu_memory_total_bytes", "Memory of a card.", [(at, card.memory_total_bytes) for at, card in cards]
    yield "gpu_memory_used_bytes", "Of it in use.", [(at, card.memory_used_bytes) for at, card in cards]
    yield "gpu_power_watts", "Power a card draws.", [(at, card.power_w) for at, card in cards]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return "{" + inside + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def _ratio(percent: float | None) -> float | None:
    return None if percent is None else percent / 100


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _in(unit: int, size: int | None) -> int | None:
    return None if size is None else round(size / unit)


def _less(whole: int | None, part: int | None) -> int | None:
    return None if whole is None or part is None else max(0, whole - part)


def _sum(sizes: Iterable[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


def _instant(at_s: float | None) -> str | None:
    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
