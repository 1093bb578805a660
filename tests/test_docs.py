"""The reference pages say what the code says; what the README promises exists."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from fleetproxy.cli import COMMANDS
from fleetproxy.settings import Settings
from fleetproxy.settings.fields import environment_name, every_key, fields_of
from fleetproxy.settings.load import load
from fleetproxy.settings.model import Section

TOP = Path(__file__).parents[1]


def generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", TOP / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pages: dict[str, str] = module.pages()
    return pages


@pytest.mark.parametrize("name", ["settings.md", "commands.md", "tables.md", "fleetproxy.schema.json"])
def test_a_generated_page_is_fresh(name: str) -> None:
    assert (TOP / "docs/reference" / name).read_text() == generated()[name], "run: just docs"


def test_every_setting_says_what_it_means() -> None:
    page = generated()["settings.md"]
    sections: list[type[Section]] = [Settings]
    for section in sections:
        for name, field in fields_of(section).items():
            if field.section is not None:
                sections.append(field.section)
            else:
                assert field.wants
                assert field.doc, f"{section.__name__}.{name}"
    for path, field in every_key():
        assert field.kind == "list" or f"`{environment_name(path)}`" in page


def test_configurations_in_the_documents_are_good(tmp_path: Path) -> None:
    shown = [
        block
        for page in [TOP / "README.md", *(TOP / "docs").rglob("*.md")]
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    assert shown
    for text in shown:
        (tmp_path / "fleetproxy.toml").write_text(text)
        load(environment={}, folder=tmp_path)


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [TOP / "README.md", TOP / "CHANGELOG.md", *(TOP / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_commands_named_in_the_readme_exist() -> None:
    text = (TOP / "README.md").read_text()
    words = set(re.findall(r"fleetproxy ([a-z]+)\b", "\n".join(re.findall(r"```.*?```", text, re.DOTALL))))
    assert words
    assert words <= set(COMMANDS)


def test_just_words_named_in_the_readme_exist() -> None:
    recipes = set(re.findall(r"^([a-z][a-z0-9-]*)[^:=\n]*:", (TOP / "Justfile").read_text(), re.MULTILINE))
    named = set(re.findall(r"`just ([a-z0-9-]+)", (TOP / "README.md").read_text()))
    assert named
    assert named <= recipes
