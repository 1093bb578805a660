"""Blocks of the documents that say they run, as bash.

<!-- runnable -->              the next ```sh block runs
<!-- runnable: install -->     a word names what kind of block it is
<!-- runnable: needs X -->     only where the program X is there
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"^<!-- runnable(?:: (?P<words>[a-z ]+))? -->\n+```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_MARK = re.compile(r"^<!-- runnable", re.MULTILINE)


class Block(NamedTuple):
    page: str
    line: int
    #: What stands behind "runnable:"; "" for nothing.
    words: str
    text: str

    @property
    def needs(self) -> str | None:
        """The program it cannot run without."""
        return self.words.removeprefix("needs ") if self.words.startswith("needs ") else None


def documents() -> list[Path]:
    """Every page that people read here: the README and docs/."""
    return [TOP / "README.md", *sorted((TOP / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The runnable blocks of a page, in order."""
    text = page.read_text()
    name = str(page.relative_to(TOP))
    found = [
        Block(name, text.count("\n", 0, one.start("text")) + 1, one["words"] or "", one["text"])
        for one in _BLOCK.finditer(text)
    ]
    assert len(found) == len(_MARK.findall(text)), f"{name}: a runnable mark without a ```sh block below it"
    return found


def script(parts: list[Block], ports: Mapping[int, int]) -> str:
    """One bash script of these blocks that stops at the first command that fails, with other ports in it."""
    text = "set -euo pipefail\n"
    for part in parts:
        text += f"echo '=== {part.page}:{part.line}'\n{part.text}\n"
    return re.sub(r"\b\d{4,5}\b", lambda found: str(ports.get(int(found[0]), found[0])), text)
