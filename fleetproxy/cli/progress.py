"""Progress of long work on standard error: a line that grows on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable

from fleetproxy.cli.output import clean, cut
from fleetproxy.cli.wording import short_span, size

#: Redraws a second at most.
_REDRAW_S = 0.1
_WIDEST_BAR = 40
#: Rates are taken over this long.
_WINDOW_S = 5.0


class Progress:
    """Tells how far something is; `step` as often as one likes."""

    def __init__(self, clock_s: Callable[[], float], *, prefix: str = "") -> None:
        self._clock_s = clock_s
        self._prefix = prefix
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._step = ""
        self._drawn_s = 0.0
        self._seen: list[tuple[float, int]] = []

    def step(self, what: str, done: int | None = None, total: int | None = None) -> None:
        """`done` of `total` bytes of a step; without them only its name."""
        now_s = self._clock_s()
        fresh = what != self._step
        if fresh:
            self._finish_line()
            self._step, self._seen = what, []
        if not self._live:
            if fresh:
                sys.stderr.write(f"{clean(self._prefix + what)}\n")
            return
        if done is not None:
            self._seen = [(at_s, count) for at_s, count in self._seen if now_s - at_s < _WINDOW_S] + [(now_s, done)]
        finished = total is not None and done == total
        if fresh or finished or now_s - self._drawn_s >= _REDRAW_S:
            self._drawn_s = now_s
            width = shutil.get_terminal_size().columns - 1
            line = cut(clean(self._prefix + what), width) if not total else self._bar(what, done or 0, total, width)
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()

    def close(self) -> None:
        """The last line stays as it is."""
        self._finish_line()
        self._step = ""

    def _finish_line(self) -> None:
        if self._live and self._step:
            sys.stderr.write("\n")
            sys.stderr.flush()

    def _bar(self, what: str, done: int, total: int, width: int) -> str:
        share = min(1.0, done / total)
        speed = self._speed()
        left = f"  {short_span((total - done) / speed)}" if speed and done < total else ""
        tail = f" {size(done)}/{size(total)}" + (f"  {size(speed)}/s{left}" if speed and done < total else "")
        head = f"{cut(clean(self._prefix + what), 40)}: {share * 100:3.0f}% "
        room = min(_WIDEST_BAR, width - len(head) - len(tail) - 2)
        if room < 5:
            return cut(head + tail, width)
        full = int(room * share)
        return f"{head}▕{'█' * full}{' ' * (room - full)}▏{tail}"

    def _speed(self) -> float:
        if len(self._seen) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0
