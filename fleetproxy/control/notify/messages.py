"""What notices say. Values in, text out; names are escaped for Telegram's HTML."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Literal

import msgspec

from fleetproxy.core.alerts import Alert

Kind = Literal[
    "offline", "online", "reboot", "gpu_temp", "cpu_temp", "disk", "memory", "model_not_found", "wan", "job", "test"
]
#: Those that somebody may choose among; a test comes when it is asked for.
KINDS: tuple[Kind, ...] = (
    "offline", "online", "reboot", "gpu_temp", "cpu_temp", "disk", "memory", "model_not_found", "wan", "job",
)  # fmt: skip

#: Telegram's limit is 4096 after parsing; names may hold characters that escaping makes longer.
MAX_CHARACTERS = 3500
MAX_NAME_CHARACTERS = 128

_TITLES: dict[Kind, str] = {
    "offline": "⚠️ Server Offline",
    "online": "✅ Server Online",
    "reboot": "🔄 Server Rebooted",
    "gpu_temp": "🔥 GPU Overheating",
    "cpu_temp": "🔥 CPU Overheating",
    "disk": "💾 Disk Nearly Full",
    "memory": "💨 Low Memory",
    "model_not_found": "🔍 Model not found",
    "wan": "🌐 Internet Outage Resolved",
    "job": "⏱ Scheduled Job Failed",
    "test": "🔔 Test",
}


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell: to people as `html`, to programs as it is."""

    kind: Kind
    at: datetime
    #: What it is about: a server, a model, a job; plain text.
    subject: str
    #: Lines below the title; plain text.
    lines: tuple[str, ...] = ()
    server_id: int | None = None

    @property
    def title(self) -> str:
        return _TITLES[self.kind]

    @property
    def html(self) -> str:
        body = "\n".join(escape(_clean(line, 500), quote=False) for line in self.lines)
        subject = f"<b>{escape(_clean(self.subject, MAX_NAME_CHARACTERS), quote=False)}</b>"
        return f"<b>{self.title}</b>\n{subject}{'' if body.startswith(' ') else chr(10) if body else ''}{body}"


def offline(server: str, server_id: int, at: datetime) -> Notice:
    return Notice(kind="offline", at=at, subject=server, lines=(" is not responding.",), server_id=server_id)


def online(server: str, server_id: int, at: datetime) -> Notice:
    return Notice(kind="online", at=at, subject=server, lines=(" is back online.",), server_id=server_id)


def reboot(server: str, server_id: int, detail: str | None, at: datetime) -> Notice:
    lines = (" rebooted.", *((detail,) if detail else ()))
    return Notice(kind="reboot", at=at, subject=server, lines=lines, server_id=server_id)


def test(by: str, at: datetime) -> Notice:
    return Notice(
        kind="test", at=at, subject="fleetproxy", lines=(f"{by} tries whether notices come through. They do.",)
    )


def alert(server: str, server_id: int, found: Alert, at: datetime) -> Notice:
    line = {
        "gpu_temp": f"GPU temperature: {found.value:.0f}°C",
        "cpu_temp": f"CPU temperature: {found.value:.0f}°C",
        "disk": f"Disk usage: {found.value:.0f}% ({found.left:.0f}GB free)",
        "memory": f"Memory usage: {found.value:.0f}% ({found.left:.0f}MB available)",
    }[found.kind]
    return Notice(kind=found.kind, at=at, subject=server, lines=(line,), server_id=server_id)


def model_not_found(model: str, source: str, count: int, at: datetime) -> Notice:
    times = "" if count == 1 else f" ({count} times)"
    return Notice(kind="model_not_found", at=at, subject=model, lines=(f"Requested by {source}{times}",))


def wan_resolved(began: datetime, ended: datetime) -> Notice:
    minutes = max(1, round((ended - began).total_seconds() / 60))
    span = f"{began:%H:%M} to {ended:%H:%M} UTC"
    return Notice(
        kind="wan", at=ended, subject=f"{minutes} min", lines=(span, "Server alerts of that time were left out.")
    )


def job_failed(job: str, detail: str, at: datetime) -> Notice:
    return Notice(kind="job", at=at, subject=job, lines=(detail,))


def joined(notices: Sequence[Notice]) -> str:
    """Several notices as one message: whole ones as far as they fit, then a count of the rest."""
    text = ""
    for place, notice in enumerate(notices):
        more = ("\n\n" if text else "") + notice.html
        if len(text) + len(more) > MAX_CHARACTERS:
            return f"{text}\n\n… and {len(notices) - place} more notices"
        text += more
    return text


def _clean(text: str, characters: int) -> str:
    """Without control characters and marks that turn the reading direction; cut."""
    kept = "".join(c for c in text if c.isprintable() or c == " ")
    return kept if len(kept) <= characters else kept[: characters - 1] + "…"
