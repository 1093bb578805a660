"""Pages and what they load: files that are served as they are, from memory, by name; nothing else is ever read."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import msgspec

_TYPES = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "txt": "text/plain",
    "svg": "image/svg+xml",
    "webmanifest": "application/manifest+json",
    "png": "image/png",
}
#: Files this small, and those that are compressed already, go as they are.
_WORTH_COMPRESSING_BYTES = 1024
_COMPRESSED = frozenset({"image/png"})


class Page(msgspec.Struct, frozen=True):
    """One file."""

    content: bytes
    media_type: str
    #: The content is compressed: `gzip`, for callers that take it.
    gzipped: bool = False


@cache
def folder(name: str) -> dict[str, Page]:
    """The files of a folder of this package, by name. `x.js.gz` is `x.js`, compressed."""
    found = {}
    for entry in resources.files(__package__).joinpath(name).iterdir():
        if entry.is_file():
            plain = entry.name.removesuffix(".gz")
            kind = _TYPES.get(plain.rpartition(".")[2])
            if kind is not None:
                found[plain] = Page(entry.read_bytes(), kind, plain != entry.name)
    return found


class Asset(msgspec.Struct, frozen=True):
    """One file of a built page, as it is sent."""

    content: bytes
    media_type: str
    #: The content compressed with gzip; None where that does not pay.
    gzipped: bytes | None
    #: Quoted, for `ETag`.
    etag: str


@cache
def built(name: str) -> dict[str, Asset]:
    """Every file of a folder of this package and of its subfolders, by path. Empty where nothing was built.

    All of them are read at once: a newer build that replaces the folder does not mix with this one.
    """
    root = resources.files(__package__).joinpath(name)
    found = {}
    for path, entry in sorted(_files(root)) if root.is_dir() else ():
        kind = _TYPES.get(path.rpartition(".")[2])
        if kind is not None:
            content = entry.read_bytes()
            worth = len(content) >= _WORTH_COMPRESSING_BYTES and kind not in _COMPRESSED
            etag = f'"{hashlib.sha256(content).hexdigest()[:24]}"'
            found[path] = Asset(content, kind, gzip.compress(content, 9, mtime=0) if worth else None, etag)
    return found


def _files(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_file():
            yield prefix + entry.name, entry
        elif entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
