"""Built pages are read whole and named by their content."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetproxy.control import pages


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of made pages in place of the package's own."""
    monkeypatch.setattr("fleetproxy.control.pages.resources.files", lambda _: tmp_path)
    pages.built.cache_clear()
    yield tmp_path
    pages.built.cache_clear()


def test_files_are_found_by_their_path_compressed_where_that_pays(package: Path) -> None:
    (package / "app/assets").mkdir(parents=True)
    large, small = b"let a = 1\n" * 500, b"<!doctype html>"
    (package / "app/index.html").write_bytes(small)
    (package / "app/assets/index-1.js").write_bytes(large)
    (package / "app/notes.unknown").write_bytes(b"?")
    found = pages.built("app")
    assert sorted(found) == ["assets/index-1.js", "index.html"]
    script = found["assets/index-1.js"]
    assert (script.content, script.media_type) == (large, "text/javascript")
    assert gzip.decompress(script.gzipped or b"") == large
    assert found["index.html"].gzipped is None
    assert found["index.html"].etag == f'"{hashlib.sha256(small).hexdigest()[:24]}"'


def test_what_is_replaced_while_it_is_served_stays_as_it_was(package: Path) -> None:
    (package / "app").mkdir()
    (package / "app/index.html").write_bytes(b"one")
    first = pages.built("app")
    (package / "app/index.html").write_bytes(b"two")
    assert pages.built("app") is first


def test_where_nothing_was_built_there_is_nothing(package: Path) -> None:
    assert pages.built("app") == {}
