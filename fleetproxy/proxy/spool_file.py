"""The beginning of an upload, kept so that it can be sent once it is known where to: in memory, and then in a file.

The file is unlinked as it is made; what all of them hold together is bounded. Reading and writing it happens beside the
loop.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from fleetproxy.errors import BodyTooLarge, Overloaded
from fleetproxy.wire.multipart import Field

#: Kept in memory; and the size of the pieces that a file is read in.
MEMORY_BYTES = 256 * 1024
PIECE_BYTES = 256 * 1024


class Disk:
    """Bytes that the uploads of this process may have in files at once."""

    __slots__ = ("folder", "held_bytes", "limit_bytes")

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.held_bytes = 0


class Kept:
    """What has been read of one body. `close` it."""

    __slots__ = ("_disk", "_file", "_on_disk", "_pieces", "size")

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._on_disk = 0
        self.size = 0

    async def add(self, piece: bytes) -> None:
        """Keep the next piece. Raises BodyTooLarge when there is no room."""
        if self._file is None and self.size + len(piece) <= MEMORY_BYTES:
            self._pieces.append(piece)
        else:
            disk = self._disk
            fresh = len(piece) if self._file is not None else self.size + len(piece)
            if disk.held_bytes + fresh > disk.limit_bytes:
                raise BodyTooLarge(
                    "The form's `model` part comes after more of the file than this server keeps (`asr.spool_bytes`); "
                    "send the `model` part first."
                )
            disk.held_bytes += fresh
            self._on_disk += fresh
            pieces, self._pieces = [*self._pieces, piece], []
            try:
                await asyncio.to_thread(self._write, pieces)
            except OSError as error:
                raise Overloaded(f"The upload cannot be kept: {error.strerror}.") from None
        self.size += len(piece)

    async def pieces(self, instead: tuple[Field, bytes] | None = None) -> AsyncIterator[bytes]:
        """All of it from the beginning; with a field's value replaced, if `instead` says so."""
        if instead is None:
            async for piece in self._stored():
                yield piece
            return
        field, value = instead
        at = 0
        async for piece in self._stored():
            end = at + len(piece)
            if end <= field.start or at >= field.end:
                yield piece
            else:
                if field.start >= at:
                    yield piece[: field.start - at] + value
                if field.end < end:
                    yield piece[field.end - at :]
            at = end

    def close(self) -> None:
        self._pieces.clear()
        self._disk.held_bytes -= self._on_disk
        self._on_disk = 0
        file, self._file = self._file, None
        if file is not None:
            file.close()

    async def _stored(self) -> AsyncIterator[bytes]:
        if self._file is None:
            for piece in self._pieces:
                yield piece
            return
        at = 0
        while piece := await asyncio.to_thread(self._read, at):
            at += len(piece)
            yield piece

    def _write(self, pieces: list[bytes]) -> None:
        if self._file is None:
            self._disk.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self._disk.folder)  # noqa: SIM115 - closed by `close`
        self._file.seek(0, 2)
        for piece in pieces:
            self._file.write(piece)
        self._file.flush()

    def _read(self, at: int) -> bytes:
        assert self._file is not None
        self._file.seek(at)
        return self._file.read(PIECE_BYTES)
