"""Pages and what they load: files that are served as they are, from memory, by name; nothing else is ever read."""

from __future__ import annotations

from functools import cache
from importlib import resources

import msgspec

_TYPES = {
    "html": "text/html",
    "js": "text/javascript",
    "css": "text/css",
    "txt": "text/plain",
    "svg": "image/svg+xml",
}


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
