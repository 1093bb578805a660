"""The site of the pages builds from its own sources, and a browser gets all of it from the site itself."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.runnable import TOP

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None and os.environ.get("FLEETPROXY_TEST_ALL") != "1",
    reason="zensical is not installed: pip install --group docs",
)


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", TOP / "docs/site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site") / "built"
    assert builder.build(target) == []
    return target


def test_every_page_is_there_as_html_and_as_markdown(site: Path) -> None:
    for page in (TOP / "docs").rglob("*.md"):
        inside = page.relative_to(TOP / "docs")
        html = site / (inside.with_name("index.html") if inside.name == "README.md" else inside.with_suffix(".html"))
        assert "<h1" in html.read_text()
        assert (site / inside).read_text() == page.read_text()
    assert (site / "samples/minimal.toml").is_file()
    assert not list(site.rglob("*.py"))


def test_a_browser_gets_everything_from_the_site_itself(builder: ModuleType, site: Path) -> None:
    assert list(builder.foreign(site)) == []
    for page in site.rglob("*.html"):
        for target in re.findall(r"<(?:script|img|link)\b[^>]*\b(?:src|href)=[\"']?([^\"'\s>#]+)", page.read_text()):
            there = site / target[1:] if target.startswith("/") else page.parent / target
            assert there.exists(), f"{page.name}: {target}"


def test_what_comes_from_elsewhere_is_found(builder: ModuleType, tmp_path: Path) -> None:
    foreign = [
        '<script src="https://cdn.example/x.js">',
        "<link rel=stylesheet href=//fonts.example/css>",
        '<img alt="" src="http://images.example/a.png">',
        "@import 'https://fonts.example/b.css'",
        "a{background:url(https://images.example/c.png)}",
    ]
    for text in foreign:
        (tmp_path / "a.html").write_text(text)
        assert len(list(builder.foreign(tmp_path))) == 1, text
    (tmp_path / "a.html").write_text('<a href="https://example.com"><link rel=canonical href=https://a.example/>')
    assert list(builder.foreign(tmp_path)) == []


def test_programs_find_all_pages(site: Path) -> None:
    index = (site / "llms.txt").read_text()
    full = (site / "llms-full.txt").read_text()
    links = re.findall(r"\]\(([^)]+)\)", index)
    assert len(links) == len(list((TOP / "docs").rglob("*.md")))
    for link in links:
        assert (site / link).is_file()
        assert f"<!-- {link} -->" in full


def test_the_numbers_of_the_readme_are_in_the_site(site: Path) -> None:
    shown = (site / "explanation/performance.html").read_text()
    assert "CPU per unary request" in shown
    assert "<table>" in shown
