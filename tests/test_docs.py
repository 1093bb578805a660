"""The documents say what the code says: nothing is undocumented, nothing is documented that is not there."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import trustme

from fleetproxy.cli import COMMANDS
from fleetproxy.control.metrics.families import BY_NAME
from fleetproxy.errors import FleetError
from fleetproxy.families import registry
from fleetproxy.settings import Settings
from fleetproxy.settings.environment import NOT_SETTINGS
from fleetproxy.settings.fields import environment_name, every_key, fields_of
from fleetproxy.settings.load import load
from fleetproxy.settings.model import Section
from fleetproxy.wire import headers as wire_headers
from tests.runnable import TOP, blocks, documents

DOCS = TOP / "docs"
REFERENCE = DOCS / "reference"
GENERATED = (
    "settings.md", "commands.md", "tables.md", "metrics.md", "api.md", "endpoints.md", "errors.md", "headers.md",
    "fleetproxy.schema.json",
)  # fmt: skip
#: In CI a program that is missing is a failure.
ALL = os.environ.get("FLEETPROXY_TEST_ALL") == "1"
_FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@cache
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def generated() -> dict[str, str]:
    pages: dict[str, str] = generate().pages()
    return pages


def read_pages() -> list[Path]:
    """Pages that people wrote."""
    return [page for page in documents() if page.parent != REFERENCE and page.parent.name != "adr"]


# --- made from the code ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_fresh(name: str) -> None:
    assert (REFERENCE / name).read_text() == generated()[name], "run: just docs"


def test_every_generated_page_is_watched() -> None:
    assert set(generated()) == set(GENERATED)


def test_llms_txt_is_fresh() -> None:
    assert (TOP / "llms.txt").read_text() == generate().llms.index(DOCS), "run: just docs"


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


def test_every_endpoint_says_what_it_is() -> None:
    page = generated()["endpoints.md"]
    for family in registry.BUILT_IN:
        for endpoint in family.endpoints:
            path = endpoint.path.rstrip("/") or "/"
            assert f"`{path}`" in page
            assert endpoint.doc, endpoint.name


def test_every_call_of_the_dashboard_says_what_it_does() -> None:
    rows = re.findall(r"^\| [A-Z, ]+ `([^`]+)` \| [a-z-]+ \|(.*)\|$", generated()["api.md"], re.MULTILINE)
    assert len(rows) > 50
    assert [path for path, says in rows if not says.strip()] == []


def test_every_error_word_says_what_to_do() -> None:
    words = generate().error_words
    known = words.kinds()
    in_streams = {"backend_error_event"}
    assert set(words.ADVICE) == set(known) | in_streams
    for code in known:
        assert f"\n### {code}\n" in generated()["errors.md"]
    assert all(kind.__doc__ for kind in known.values() if kind is not FleetError)


def test_every_metric_says_what_it_counts() -> None:
    page = generated()["metrics.md"]
    for family in BY_NAME.values():
        assert f"`{family.exposed}`" in page
        assert family.doc


def test_every_header_of_ours_is_told() -> None:
    words = generate().header_words
    told = {name.lower() for table in (words.REQUEST, words.INFERENCE, words.CONTROL, words.SENT) for name in table}
    told |= words.PLAIN
    written = {name for folder in ("proxy", "control", "hub", "core", "wire") for name in _headers_of(folder)}
    assert {"x-fleet-backend", "retry-after", "x-fleet-query-ms", "vary"} <= written
    no_headers = {"dashboard", "idle", "stream"}
    assert written - told - no_headers == set(), "say in docs/header_words.py what these mean"
    assert {name.decode() for name in wire_headers._OURS} <= told
    looked_at = set(re.findall(r'own\.get\(b"([a-z-]+)"', _source("proxy") + _source("core") + _source("control")))
    kept = {"access-control-request-method", "x-fleet-client", "x-fleet-scheme", "x-fleet-roles", "upgrade"}
    assert looked_at - told - kept == set(), "say in docs/header_words.py what these mean"


def _headers_of(folder: str) -> Iterator[str]:
    """Names that stand first in a pair of bytes, or are keys of a dictionary of headers."""
    for file in (TOP / "fleetproxy" / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Tuple(elts=[ast.Constant(value=bytes() as name), second]) if _is_value(second):
                    text = name.decode("latin-1")
                    if re.fullmatch(r"[a-z]+(-[a-z]+)*", text):
                        yield text
                case ast.Dict(keys=keys):
                    for key in keys:
                        if isinstance(key, ast.Constant) and isinstance(key.value, str):
                            text = key.value.lower()
                            if re.fullmatch(r"(x|content|cross|permissions|referrer|retry)(-[a-z]+)+", text):
                                yield text


def _is_value(node: ast.expr) -> bool:
    """Not two names side by side, which some tables have."""
    return not (isinstance(node, ast.Constant) and not isinstance(node.value, bytes))


def _source(folder: str) -> str:
    return "\n".join(file.read_text() for file in (TOP / "fleetproxy" / folder).rglob("*.py"))


# --- written by people -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", documents(), ids=lambda page: str(page.relative_to(TOP)))
def test_links_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", text):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), target
        assert DOCS not in page.parents or DOCS in there.parents, f"{target}: the site has only what is in docs/"
        if anchor:
            assert anchor in _anchors(there), f"{target}#{anchor}"


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ +(.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_says_first_what_it_is_for() -> None:
    silent = []
    for page in documents():
        title, says = generate().llms.head(page.read_text())
        assert title
        if not says and page.parent.name != "adr":
            silent.append(page.name)
    assert silent == []


def test_every_page_is_in_the_menu_of_the_site() -> None:
    listed = re.findall(r"^ +- (?:[\w ]+: )?([\w/.-]+\.md)$", (TOP / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_configurations_in_the_documents_are_good(tmp_path: Path) -> None:
    _put_certificates(tmp_path)
    shown = [
        (page.name, block)
        for page in documents()
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    assert len(shown) > 10
    for name, text in shown:
        (tmp_path / "fleetproxy.toml").write_text(text.replace("/etc/fleetproxy", str(tmp_path)))
        try:
            load(environment={"FLEETPROXY_KEYS": "somebody=a-long-random-key"}, folder=tmp_path)
        except Exception as error:
            raise AssertionError(f"{name}:\n{text}") from error


SAMPLES = sorted((DOCS / "samples").glob("*.toml"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.stem)
def test_a_sample_passes_config_check(sample: Path, tmp_path: Path) -> None:
    assert f"{sample.stem}" in (REFERENCE / "index.md").read_text()
    _put_certificates(tmp_path)
    mine = tmp_path / sample.name
    mine.write_text(sample.read_text().replace("/etc/fleetproxy", str(tmp_path)))
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    if "FLEETPROXY_KEYS_FILE" in mine.read_text():
        (tmp_path / "keys").write_text("somebody=a-long-random-key")
        environment["FLEETPROXY_KEYS_FILE"] = str(tmp_path / "keys")
    done = subprocess.run(
        [sys.executable, "-m", "fleetproxy", "config", "check", "--config", str(mine)],
        cwd=TOP, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("valid:")


def test_there_are_samples() -> None:
    assert len(SAMPLES) >= 6


def _put_certificates(folder: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("fleet.example")
    made.cert_chain_pems[0].write_to_path(str(folder / "fullchain.pem"))
    made.private_key_pem.write_to_path(str(folder / "privkey.pem"))
    authority.cert_pem.write_to_path(str(folder / "our-ca.pem"))


def test_commands_in_the_documents_exist() -> None:
    """Every `fleetproxy word --option` of a shell block: the word and the option are there."""
    helps: dict[str, str] = {}
    found = set()
    page_of_commands = generated()["commands.md"]
    for word in COMMANDS:
        helps[word] = page_of_commands.split(f"## `fleetproxy {word}`\n")[1].split("\n## ")[0]
    for page in read_pages():
        for block in _SHELL.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                for call in re.findall(r"(?:^|[\s(])fleetproxy (?!fleetproxy)([a-z]+)\b([^|;&>#)]*)", line):
                    word, rest = call
                    assert word in COMMANDS, f"{page.name}: fleetproxy {word}"
                    found.add(word)
                    for option in re.findall(r"(?<=\s)(--[a-z-]+)", rest.split(" -- ")[0]):
                        assert option in helps[word], f"{page.name}: fleetproxy {word} {option}"
    assert len(found) > 15


def test_every_command_is_shown_in_a_page_people_read() -> None:
    text = "\n".join(page.read_text() for page in read_pages())
    aliases = {"undrain", "restore", "version", "help"}
    missing = {word for word in COMMANDS if not re.search(rf"`?fleetproxy {word}\b", text)} - aliases
    assert missing == set()


def test_settings_in_the_documents_exist() -> None:
    """Every `section.key` and FLEETPROXY_ variable."""
    keys = {".".join(path) for path, _ in every_key()}
    sections = {key.split(".")[0] for key in keys if "." in key} | {"servers", "keys"}
    keys |= {f"{name}.{key}" for name in ("servers", "keys") for key in fields_of(fields_of(Settings)[name].section)}  # type: ignore[arg-type]
    variables = {environment_name(path) for path, _ in every_key()}
    # The compose file has some of its own.
    variables |= set(re.findall(r"\$\{(FLEETPROXY_\w+)", (TOP / "docker/compose.yaml").read_text()))
    columns = generated()["tables.md"]
    for page in read_pages():
        text = page.read_text()
        for name in re.findall(r"`([a-z_]+\.[a-z_]+)(?: = [^`]*)?`", text):
            if name.split(".")[0] in sections and name.split(".")[1] not in ("toml", "duckdb", "py", "md"):
                assert name in keys, f"{page.name}: {name}"
        for name in re.findall(r"\bFLEETPROXY_[A-Z_]+\b", text):
            known = name in variables or name.removesuffix("_FILE") in variables or NOT_SETTINGS.fullmatch(name)
            assert known or name in ("FLEETPROXY_", "FLEETPROXY_SERVERS", "FLEETPROXY_KEYS"), f"{page.name}: {name}"
        for name in re.findall(r"\bfleetproxy_[a-z_]+[a-z]\b", text):
            assert f"`{name}`" in generated()["metrics.md"], f"{page.name}: {name}"
        for name in re.findall(r"\bv_[a-z_]+\b", text):
            assert f"`{name}`" in columns, f"{page.name}: {name}"


def test_just_words_in_the_documents_exist() -> None:
    recipes = set(re.findall(r"^([a-z][a-z0-9-]*)[^:=\n]*:", (TOP / "Justfile").read_text(), re.MULTILINE))
    for page in read_pages():
        named = set(re.findall(r"(?:`|^|/)just ([a-z0-9-]+)", page.read_text(), re.MULTILINE))
        assert named <= recipes, page.name


def test_the_readme_tests_as_ci_does() -> None:
    recipe = re.search(r"^test \*words:\n +(.+?) \{\{words\}\}$", (TOP / "Justfile").read_text(), re.MULTILINE)
    assert recipe
    line = recipe[1].replace("{{python}}", ".venv/bin/python")
    readme = (TOP / "README.md").read_text()
    assert f".ci/setup && {line}\n" in readme
    assert re.search(r'^step "tests" .*\bjust test$', (TOP / ".ci/run").read_text(), re.MULTILINE)


def test_runnable_blocks_are_marked_well() -> None:
    found = [block for page in documents() for block in blocks(page)]
    assert len(found) > 20
    assert {block.words for block in found} <= {"", "install", "needs prometheus"}


def test_every_page_of_the_dashboard_is_told() -> None:
    pages = (TOP / "dashboard/src/shell/pages.ts").read_text().split("ELSEWHERE")[0]
    found = re.findall(r"title: '([^']+)',\n.*?key: '(.)'", pages, re.DOTALL)
    assert len(found) >= 5
    told = (DOCS / "how-to/dashboard.md").read_text()
    for title, key in found:
        assert f"| {title} | `g {key}` |" in told, f"{title}: say in docs/how-to/dashboard.md what it shows"


# --- files of other programs -----------------------------------------------------------------------------------------


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        assert not ALL, f"install {name}"
        pytest.skip(f"needs {name}")
    return found


def _shown(page: str, language: str) -> list[str]:
    text = (DOCS / "how-to" / page).read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found
    return found


def test_nginx_takes_the_configuration_for_it(tmp_path: Path) -> None:
    nginx = _program("nginx")
    _put_certificates(tmp_path)
    (tmp_path / "fullchain.pem").rename(tmp_path / "fleet.pem")
    (tmp_path / "privkey.pem").rename(tmp_path / "fleet.key")
    (inside,) = _shown("reverse-proxy.md", "nginx")
    inside = inside.replace("/etc/ssl", str(tmp_path)).replace("listen 443", f"listen unix:{tmp_path}/s")
    places = "".join(
        f"{name}_temp_path {tmp_path}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"pid {tmp_path}/pid; error_log stderr; events {{}}\nhttp {{ access_log off;\n{places}{inside}}}\n"
    )
    done = subprocess.run([nginx, "-t", "-c", str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_prometheus_takes_the_configuration_for_it(tmp_path: Path) -> None:
    promtool = _program("promtool")
    (tmp_path / "rules").mkdir()
    for rules in (TOP / "deploy/prometheus/rules").glob("*.yml"):
        shutil.copy(rules, tmp_path / "rules")
    for number, text in enumerate(_shown("prometheus-grafana.md", "yaml")):
        config = tmp_path / f"{number}.yml"
        config.write_text(text)
        done = subprocess.run([promtool, "check", "config", str(config)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_told() -> None:
    page = (DOCS / "how-to/prometheus-grafana.md").read_text()
    rules = (TOP / "deploy/prometheus/rules/alerts.yml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert alerts
    assert alerts == set(re.findall(r"`(Fleetproxy\w+)`", page))
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `Fleetproxy")]
    assert all(len(row) == 3 for row in rows), "what it says, and what to do"
    assert alerts == {name for row in rows for name in re.findall(r"\w+", row[0])}
