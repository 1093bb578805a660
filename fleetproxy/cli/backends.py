"""How `status` and `top` write a server or worker."""

from __future__ import annotations

from fleetproxy.cli.output import Cell, Column, Style
from fleetproxy.cli.wording import count, milliseconds, size
from fleetproxy.remote.state import Backend, View

#: Never by colour alone: each has its sign.
_STATUSES: dict[str, tuple[str, Style]] = {
    "working": ("●", "good"),
    "idle": ("○", "good"),
    "draining": ("◐", "warn"),
    "not_ready": ("◌", "warn"),
    "offline": ("✗", "bad"),
    "gone": ("✗", "bad"),
}

COLUMNS = (
    Column("NAME", "name"),
    Column("KIND", "kind"),
    Column("STATUS", "status"),
    Column("BUSY", "in_flight", right=True),
    Column("LINE", "waiting", right=True),
    Column("REQ/S", "requests_per_s", right=True),
    Column("TOK/S", "tokens_per_s", right=True),
    Column("DONE", "done", right=True),
    Column("FAILED", "failed", right=True),
    Column("LEFT", "left", right=True, wide=True),
    Column("MEAN", "average_ms", right=True),
    Column("VRAM", "vram_used_bytes", right=True),
    Column("LAST ERROR", "last_error", wide=True),
)


def status(word: str) -> Cell:
    sign, style = _STATUSES.get(word, ("?", "warn"))
    return Cell(f"{sign} {word.replace('_', ' ')}", style)


def row(backend: Backend) -> tuple[str | Cell, ...]:
    """One line of the table of `COLUMNS`."""
    return (
        backend.name,
        backend.kind,
        status(backend.status),
        f"{backend.in_flight}/{backend.slots}" if backend.slots else str(backend.in_flight),
        str(backend.waiting) if backend.waiting else "-",
        "-" if backend.requests_per_s is None else count(backend.requests_per_s),
        "-" if backend.tokens_per_s is None else count(backend.tokens_per_s),
        count(backend.done),
        Cell(count(backend.failed), "warn") if backend.failed else "-",
        count(backend.left) if backend.left else "-",
        milliseconds(backend.average_ms) if backend.done else "-",
        _vram(backend),
        backend.last_error or "-",
    )


def state(view: View) -> Cell:
    """Whether it can serve, in a word."""
    styles: dict[str, Style] = {"ready": "good", "draining": "warn", "not_ready": "bad"}
    signs = {"ready": "✓", "draining": "◐", "not_ready": "✗"}
    return Cell(f"{signs.get(view.state, '?')} {view.state.replace('_', ' ')}", styles.get(view.state, "warn"))


def _vram(backend: Backend) -> str:
    if backend.vram_total_bytes:
        return f"{size(backend.vram_used_bytes or 0)}/{size(backend.vram_total_bytes)}"
    return size(backend.vram_used_bytes) if backend.vram_used_bytes else "-"
