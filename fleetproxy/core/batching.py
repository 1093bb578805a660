"""One embeddings request as many: which inputs go where, and one answer of all answers. Values in, values out.

    slices ──► Ledger ──take──► asked ──► read ──► merge
                  ▲                │
                  └──── give_back ─┘  (elsewhere only)

Vectors are never decoded: an answer's rows are handed on as the bytes they came in, floats and base64 alike; only their
`index` is written anew.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Raw

#: Where the two dialects have their vectors.
OPENAI_ROWS, OLLAMA_ROWS = "data", "embeddings"


class BadAnswer(ValueError):
    """The answer is no list of as many vectors as there were inputs."""


# --- who does what ---------------------------------------------------------------------------------------------------


class Slice(msgspec.Struct, frozen=True, gc=False):
    """Some inputs of a request, one after the other."""

    start: int
    stop: int
    #: Places at which it has failed.
    tried: frozenset[int] = frozenset()

    @property
    def items(self) -> range:
        return range(self.start, self.stop)

    def failed_at(self, place: int) -> Slice:
        return Slice(self.start, self.stop, self.tried | {place})


def portions(n: int, weights: Sequence[int]) -> tuple[range, ...]:
    """`range(n)` cut into one run per weight, in order, each as long as its weight's share to within one."""
    total, before, runs = sum(weights), 0, []
    for weight in weights:
        runs.append(range(n * before // total, n * (before + weight) // total) if total else range(0))
        before += weight
    return tuple(runs)


def slices(n: int, weights: Sequence[int], sizes: Sequence[int]) -> tuple[tuple[Slice, ...], ...]:
    """For each place its slices: a share of the inputs by its weight, in even slices of at most its size."""
    found = []
    for run, size in zip(portions(n, weights), sizes, strict=True):
        cuts = portions(len(run), [1] * math.ceil(len(run) / size))
        found.append(tuple(Slice(run.start + cut.start, run.start + cut.stop) for cut in cuts))
    return tuple(found)


class Ledger:
    """What is still to be done, by whom. A place takes its own slices first, then what others gave back or are behind
    with. Mutable, with one owner.

    `sizes` has the most each place takes at once; None marks places that only help out: they get what was given back.
    """

    def __init__(self, planned: Sequence[Sequence[Slice]], sizes: Sequence[int | None]) -> None:
        self._queues = [deque(own) for own in planned]
        self._sizes = sizes
        self._returned: list[Slice] = []

    def take(self, place: int) -> Slice | None:
        """The next slice for a place, never one that failed there; None when there is none for it now."""
        if place < len(self._queues) and self._queues[place]:
            return self._queues[place].popleft()
        for position, piece in enumerate(self._returned):
            if place not in piece.tried:
                del self._returned[position]
                return self._cut(piece, place, self._returned)
        if self._sizes[place] is None:
            return None
        longest = max(self._queues, key=lambda queue: sum(len(piece.items) for piece in queue), default=None)
        if not longest:
            return None
        return self._cut(longest.pop(), place, longest)

    def give_back(self, piece: Slice) -> None:
        """It was not done; somebody who has not tried it may."""
        self._returned.append(piece)

    def give_up(self, place: int) -> None:
        """What a place has not begun is for anybody."""
        if place < len(self._queues):
            self._returned.extend(self._queues[place])
            self._queues[place].clear()

    def waiting(self) -> Iterator[Slice]:
        """Slices nobody works on."""
        yield from self._returned
        for queue in self._queues:
            yield from queue

    def _cut(self, piece: Slice, place: int, rest: list[Slice] | deque[Slice]) -> Slice:
        size = self._sizes[place]
        if size is None or len(piece.items) <= size:
            return piece
        rest.append(Slice(piece.start, piece.stop - size, piece.tried))
        return Slice(piece.stop - size, piece.stop, piece.tried)


# --- answers ---------------------------------------------------------------------------------------------------------

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_rows = msgspec.json.Decoder(list[Raw]).decode
_index = msgspec.json.Decoder(int).decode
_anything = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_DAMAGE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Part(msgspec.Struct, frozen=True):
    """The answer to one slice."""

    start: int
    #: A JSON value for each input, in order.
    rows: list[bytes]
    #: Everything else it said, undecoded.
    fields: dict[str, bytes]


def read(body: bytes, rows_key: str, piece: Slice) -> Part:
    """The answer to a slice, its rows in the order of the inputs and numbered as in the whole. Raises BadAnswer."""
    try:
        fields = _fields(body)
        raws = _rows(fields.pop(rows_key, Raw(b"[]")))
        if len(raws) != len(piece.items):
            raise BadAnswer(f"{len(raws)} vectors for {len(piece.items)} inputs")
        numbered = rows_key == OPENAI_ROWS
        rows = _renumbered(raws, piece.start) if numbered else [bytes(raw) for raw in raws]
    except _DAMAGE:
        raise BadAnswer("no list of vectors") from None
    return Part(piece.start, rows, {name: bytes(raw) for name, raw in fields.items()})


def _renumbered(raws: Sequence[Raw], start: int) -> list[bytes]:
    entries = [_fields(raw) for raw in raws]
    rows = []
    for number, entry in enumerate(reorder(entries, [_number(entry) for entry in entries]), start):
        if "index" in entry:
            entry["index"] = Raw(b"%d" % number)
        rows.append(_encode(entry))
    return rows


def _number(entry: dict[str, Raw]) -> int | None:
    raw = entry.get("index")
    try:
        return None if raw is None else _index(raw)
    except msgspec.MsgspecError:
        return None


def reorder(entries: Sequence[Any], numbers: Sequence[int | None]) -> list[Any]:
    """The entries by their numbers; as they stand where those are not 0, 1, 2, ... in some order."""
    if sorted(number for number in numbers if number is not None) != list(range(len(entries))):
        return list(entries)
    ordered: list[Any] = [None] * len(entries)
    for entry, number in zip(entries, numbers, strict=True):
        if number is not None:
            ordered[number] = entry
    return ordered


class Merged(msgspec.Struct, frozen=True):
    """One answer."""

    #: Its bytes, in order.
    pieces: list[bytes]
    #: The answer without its vectors: a JSON object.
    rest: bytes


def merge(parts: Iterable[Part], rows_key: str) -> Merged:
    """The answer to the whole request: rows in order, tokens and counts summed, durations those of the slowest slice,
    all else as the first slice has it. A field that only some have is there; none is invented.
    """
    ordered = sorted(parts, key=lambda part: part.start)
    said: dict[str, bytes] = {}
    for part in ordered:
        for name, raw in part.fields.items():
            said[name] = _combined(name, said[name], raw) if name in said else raw
    rest = b"{" + b",".join(_encode(name) + b":" + raw for name, raw in said.items()) + b"}"
    opening = b"{" + _encode(rows_key) + b":["
    pieces = [opening]
    for part in ordered:
        for row in part.rows:
            if len(pieces) > 1:
                pieces.append(b",")
            pieces.append(row)
    pieces.append(b"]," + rest[1:] if said else b"]}")
    return Merged(pieces, rest)


def _combined(name: str, one: bytes, other: bytes) -> bytes:
    """Two slices' values of a field."""
    if name == "usage" or name.endswith("_count"):
        return _encode(_sum(_anything(one), _anything(other)))
    if name.endswith("_duration"):
        values = [value for value in (_anything(one), _anything(other)) if _is_number(value)]
        return _encode(max(values)) if values else one
    return one


def _sum(one: Any, other: Any) -> Any:
    """Numbers are added, objects field by field; where one side has something else, the first that says something."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {name: _sum(one.get(name), other.get(name)) for name in one | other}
    if _is_number(one) and _is_number(other):
        return one + other
    return other if one is None else one


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
