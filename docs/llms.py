"""`llms.txt`, the index of these pages for programs that read, and `llms-full.txt`, all of them in one file."""

from __future__ import annotations

import re
from pathlib import Path

_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
_KINDS = (
    ("", "Begin"),
    ("tutorial", "Tutorial"),
    ("how-to", "How to"),
    ("reference", "Reference"),
    ("explanation", "Explanation"),
    ("adr", "Decisions"),
)
_HEAD = """\
# fleetproxy

> One address in front of a fleet of inference servers (Ollama, vLLM, llama.cpp and anything that speaks OpenAI):
> routing, dial-in workers, limits, an audit row for every request in DuckDB, Prometheus metrics, a dashboard.

Clients keep their Ollama, OpenAI or Anthropic code and change one base URL. Runs on one Linux machine with Python 3.11
or newer and needs no other service. All pages in one file: `llms-full.txt`, made with the site by `just docs-site`.
"""


def pages(docs: Path) -> list[Path]:
    """Every page, in order of reading: by kind, each kind's index first, then by name."""
    rank = {folder: number for number, (folder, _) in enumerate(_KINDS)}
    return sorted(
        docs.rglob("*.md"),
        key=lambda page: (rank[_folder(docs, page)], page.name not in ("index.md", "README.md"), page.name),
    )


def index(docs: Path) -> str:
    """`llms.txt`."""
    text = _HEAD
    for folder, title in _KINDS:
        text += f"\n## {title}\n\n"
        for page in pages(docs):
            if _folder(docs, page) == folder:
                heading, says = head(page.read_text())
                # Decisions begin with their state; their titles say all.
                words = f": {says}" if folder != "adr" else ""
                text += f"- [{heading}](docs/{page.relative_to(docs)}){words}\n"
    return text


def full(docs: Path) -> str:
    """`llms-full.txt`."""
    parts = [f"<!-- {page.relative_to(docs)} -->\n\n{page.read_text().strip()}\n" for page in pages(docs)]
    return _HEAD + "\n" + "\n".join(parts)


def head(text: str) -> tuple[str, str]:
    """A page's title, and the first sentence below it: what the page is for."""
    found = _TITLE.search(text)
    if found is None:
        raise ValueError("a page has no title")
    for part in text[found.end() :].split("\n\n"):
        paragraph = " ".join(part.split())
        if paragraph and paragraph[0] not in "#|<-!" and not paragraph.startswith("```"):
            sentence = re.match(r".+?[.?](?=\s|$)", paragraph)
            return found[1], re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", sentence[0] if sentence else paragraph)
    return found[1], ""


def _folder(docs: Path, page: Path) -> str:
    inside = page.relative_to(docs).parts
    return inside[0] if len(inside) > 1 else ""
