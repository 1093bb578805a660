"""Builds the site of these pages: `just docs-site`. Needs zensical (dependency group `docs`) and no network.

python docs/site.py [FOLDER]      writes to FOLDER, dist/site without one; exit code 1 with what is wrong

Beside the pages there are each page as Markdown, `llms.txt` and `llms-full.txt`. What a page loads comes from the site
itself: a page that would load anything from elsewhere is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
TOP = DOCS.parent
sys.path.insert(0, str(DOCS))  # loaded by a test too, from elsewhere
import llms  # noqa: E402

#: What a browser loads by itself; links that people follow are no matter.
_LOADS = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|data)=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|alternate))[^>]*\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|(?:url\(|@import )[\"']?((?:https?:)?//[^\"')\s]+)"
)

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
#: The page of performance says this where the site has the table itself.
_IN_THE_README = 'The table of the newest run is in the README, under "What it costs".\n'


def build(target: Path) -> list[str]:
    """Write the site to this folder, in the place of what was there; what is wrong with it, in words."""
    with tempfile.TemporaryDirectory(prefix="fleetproxy-site-") as scratch:
        # The builder keeps its cache beside its settings: it works on a copy.
        work = Path(scratch)
        shutil.copytree(DOCS, work / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        shutil.copy(TOP / "mkdocs.yml", work)
        numbers = work / "docs" / "explanation" / "performance.md"
        numbers.write_text(numbers.read_text().replace(_IN_THE_README, _numbers((TOP / "README.md").read_text())))
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
            cwd=work,
            env={**os.environ, "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return [_COLOURS.sub("", done.stdout + done.stderr).split("Traceback")[0].strip()]
        site = work / "site"
        for page in llms.pages(DOCS):
            (site / page.relative_to(DOCS)).write_text(page.read_text())
        (site / "llms.txt").write_text(llms.index(DOCS).replace("](docs/", "]("))
        (site / "llms-full.txt").write_text(llms.full(DOCS))
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(site, target)
    return list(foreign(target))


def _numbers(readme: str) -> str:
    """The README's section on what it costs, without its links into the source."""
    section = readme.split("\n## What it costs\n")[1].split("\n## ", maxsplit=1)[0]
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"`\1`", section).strip() + "\n"


def foreign(site: Path) -> Iterator[str]:
    """What pages and style sheets load from elsewhere."""
    for page in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for found in _LOADS.finditer(page.read_text()):
            yield f"{page.relative_to(site)} loads {next(filter(None, found.groups()))}"


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else TOP / "dist" / "site"
    wrong = build(place)
    sys.stderr.write("".join(f"{one}\n" for one in wrong))
    if not wrong:
        sys.stdout.write(f"{place}/index.html\n")
    sys.exit(bool(wrong))
