"""Migrations: whatever comes in, what goes out passes `config check`, and nothing is lost without a word."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleetproxy.settings import Settings
from fleetproxy.settings.ancestors import ANCESTORS
from fleetproxy.settings.load import load
from fleetproxy.settings.migrate import fleet_manager, nfrx, ollama
from fleetproxy.settings.migrate.result import Migration, to_toml
from fleetproxy.settings.migrate.sources import BadSource, Sources, interpolated, of_compose, read, variables
from fleetproxy.worker.options import resolve


def loaded(made: Migration, folder: Path) -> Settings:
    """The settings the file means; ConfigError when it would not pass the check."""
    path = folder / "made.toml"
    path.write_text(made.toml)
    return load(config=str(path), environment={}, folder=folder).settings


SERVERS = [
    {"name": "studio", "host": "http://10.0.0.5:11434", "ramGb": 192, "metricsPort": 9100},
    {"name": "vllm", "host": "http://10.0.0.6:8000", "ramGb": 80, "backendType": "vllm"},
    {"name": "nas", "host": "http://10.0.0.8", "ramGb": 8, "backendType": "generic"},
]


# --- the fleet manager ---


def test_a_fleet_manager_becomes_our_configuration(tmp_path: Path) -> None:
    environment = {
        "OLLAMA_SERVERS": json.dumps(SERVERS),
        "POLL_INTERVAL": "15",
        "HEALTH_CHECK_TIMEOUT": "4000",
        "SOURCE_NAMES": '{"10.0.0.9": "laptop"}',
        "ADMIN_USERNAME": "root",
        "ADMIN_PASSWORD": "a-good-password-9",
        "DATABASE_URL": "postgres://x",
        "API_KEY": "somebody else's",
    }
    key = "a" * 64
    tables = {
        "users": [
            {"username": "root", "api_key": "b" * 64, "is_admin": "t"},
            {"username": "ann", "api_key": key, "is_admin": "f"},
        ],
        "servers": [
            {"id": "1", "name": "studio", "host": "http://10.0.0.5:11434", "total_ram_gb": "192", "is_disabled": "t"},
            {"id": "2", "name": "old", "host": "http://10.0.0.7:11434", "total_ram_gb": "16", "backend_type": "ollama"},
        ],
        "scheduled_jobs": [
            {"name": "nightly", "cron_expression": "0 3 * * *", "target_model": "m", "preferred_server_id": 1}
        ],
        "request_logs": [{"id": 1}],
    }
    made = fleet_manager.migrate(Sources(environment=environment, tables=tables))
    settings = loaded(made, tmp_path)
    assert [(one.name, one.kind, one.max_concurrent, one.enabled) for one in settings.servers] == [
        ("studio", "ollama", 1, False),
        ("vllm", "openai", 10, True),
        ("old", "ollama", 1, True),
    ]
    assert settings.servers[0].metrics_port == 9100
    assert (settings.poll.interval_s, settings.poll.timeout_s) == (15.0, 4.0)
    assert (settings.routing.min_num_ctx, settings.routing.default_keep_alive) == (8192, "30m")
    assert settings.routing.source_names == {"10.0.0.9": "laptop"}
    assert (settings.open, settings.auth.api_key, settings.dashboard.listen) == (True, None, "0.0.0.0:3334")
    assert [(one.name, one.key) for one in settings.keys][1] == (
        "ann",
        f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",
    )
    assert key not in made.toml
    assert made.commands[0] == "fleetproxy users add ann"  # root is made by the settings
    assert '"cronExpression": "0 3 * * *"' in made.commands[1]
    told = "\n".join(made.notes)
    for words in ("nas is left out", "DATABASE_URL", "passwords of 2 users", "request_logs", "preferred server studio"):
        assert words in told


def test_what_our_check_refuses_is_left_out_and_told(tmp_path: Path) -> None:
    environment = {
        "OLLAMA_SERVERS": json.dumps([{"name": "a", "host": "http://h:1"}, {"name": "A", "host": "http://i:1"}]),
        "ADMIN_USERNAME": "root",
        "ADMIN_PASSWORD": "short",
        "OFFLINE_THRESHOLD": "0",
        "POLL_INTERVAL": "soon",
        "SOURCE_NAMES": '{"not an address": "x", "10.0.0.9": "laptop"}',
    }
    made = fleet_manager.migrate(Sources(environment=environment))
    settings = loaded(made, tmp_path)
    assert len(settings.servers) == 1
    assert settings.auth.admin_password is None
    assert settings.poll.offline_threshold == Settings().poll.offline_threshold
    told = "\n".join(made.notes)
    for words in ("auth.admin_password is left out", "poll.offline_threshold is left out", "POLL_INTERVAL is left out"):
        assert words in told
    assert "short" not in told


_TEXTS = st.one_of(
    st.text(max_size=30),
    st.integers(-10, 10**12).map(str),
    st.sampled_from(["true", "1m30s", "0", "-1", "[]", "{}", '["x"]', "http://h:1", ":9000", "0.0.0.0", "*", "a,b"]),
)
_NAMES = st.sampled_from([ancestor.name for ancestor in ANCESTORS] + ["OLLAMA_NUM_PARALLEL"])
_ENVIRONMENTS = st.dictionaries(_NAMES, _TEXTS, max_size=12)
_ENTRIES = st.lists(
    st.fixed_dictionaries(
        {"name": st.text(max_size=5), "host": _TEXTS},
        optional={
            "ramGb": st.one_of(st.integers(-1, 999), st.text(max_size=3)),
            "backendType": st.sampled_from(["ollama", "vllm", "generic"]),
            "maxConcurrent": st.one_of(st.none(), st.integers(-5, 99), st.text(max_size=3)),
            "metricsPort": st.one_of(st.none(), st.integers(-5, 99999)),
        },
    ),
    max_size=4,
)


@given(environment=_ENVIRONMENTS, entries=_ENTRIES)
@example(environment={"ADMIN_PASSWORD": "of nobody at all"}, entries=[])
@example(environment={"ADMIN_USERNAME": "root"}, entries=[])
@example(environment={"ADMIN_USERNAME": "root", "ADMIN_PASSWORD": "short"}, entries=[])
def test_whatever_comes_in_what_goes_out_passes_the_check(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], entries: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    environment["OLLAMA_SERVERS"] = json.dumps(entries)
    for migrate in (fleet_manager.migrate, nfrx.migrate, ollama.migrate):
        loaded(migrate(Sources(environment=environment)), folder)


# --- nfrx ---

SERVER_YAML = """
port: 9000
api_key: documented-key
clientkey: real-client-key
metricsaddr: ":9090"
requesttimeout: 1m30s
plugins: [llm, docling]
api_http_roles: [admin, ops]
plugin_options:
  llm: {queue_size: 50, min_score: 1}
  mcp: {max_req_bytes: 1048576, odd: 1}
"""


def test_an_nfrx_server_becomes_our_configuration(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(SERVER_YAML)
    made = nfrx.migrate(read([path], {"DRAIN_TIMEOUT": "2m"}))
    settings = loaded(made, tmp_path)
    assert (settings.host, settings.port, settings.open) == ("0.0.0.0", 9000, False)
    assert (settings.auth.api_key, settings.auth.client_key) == ("documented-key", "real-client-key")
    assert settings.auth.api_http_roles == ("admin", "ops")
    assert settings.metrics.listen == "0.0.0.0:9090"
    assert (settings.timeouts.first_byte_s, settings.timeouts.drain_s, settings.queue.size) == (90.0, 120.0, 50)
    assert settings.mcp.max_request_bytes == 1048576
    assert settings.plugins == ("llm",)
    told = "\n".join(made.notes)
    for words in ("nfrx ignored api_key", "docling has no equivalent", "mcp.odd has no equivalent", "LLM_MIN_SCORE"):
        assert words in told
    assert "api_http_roles" not in told


def test_an_open_nfrx_server_stays_open_and_says_so(tmp_path: Path) -> None:
    made = nfrx.migrate(Sources(environment={"METRICS_PORT": "8080"}))
    settings = loaded(made, tmp_path)
    assert (settings.port, settings.open, settings.metrics.listen) == (8080, True, None)
    assert "It had no API key" in made.toml
    assert any("no client key" in note for note in made.notes)


@pytest.mark.parametrize(
    ("family", "yaml", "expected"),
    [
        ("llm", "completionbaseurl: http://10.0.0.4:8000/v1\nmaxconcurrency: 4\n", "10.0.0.4"),
        ("asr", "asr_base_url: http://10.0.0.5:5002/v1\n", "10.0.0.5"),
        ("mcp", "providerurl: http://10.0.0.6:7777/mcp\nauthtoken: hush\n", "10.0.0.6"),
    ],
)
def test_an_agents_file_is_read_by_our_worker(tmp_path: Path, family: Any, yaml: str, expected: str) -> None:
    path = tmp_path / "worker.yaml"
    path.write_text(f"serverurl: wss://fleet.example/api/{family}/connect\nclientkey: word\n{yaml}")
    sources = read([path], {})
    assert nfrx.looks_like_agent(sources)
    made = nfrx.migrate_agent(sources, family)
    (tmp_path / "made.toml").write_text(made.toml)
    options = resolve(family, {"config": str(tmp_path / "made.toml")}, {})
    assert options.backend.host == expected
    assert options.client_key == "word"
    assert options.server_url == f"wss://fleet.example/api/{family}/connect"
    assert any("holds secrets" in note for note in made.notes)


# --- Ollama alone ---


def test_fleetproxy_takes_ollamas_place(tmp_path: Path) -> None:
    environment = {
        "OLLAMA_HOST": "0.0.0.0",
        "OLLAMA_KEEP_ALIVE": "1h",
        "OLLAMA_NUM_PARALLEL": "4",
        "OLLAMA_MODELS": "/m",
    }
    made = ollama.migrate(Sources(environment=environment))
    settings = loaded(made, tmp_path)
    assert (settings.host, settings.port, settings.open) == ("0.0.0.0", 11434, True)
    assert [(one.url, one.max_concurrent) for one in settings.servers] == [("http://127.0.0.1:11435", 4)]
    assert settings.routing.default_keep_alive == "1h"
    assert any("OLLAMA_MODELS" in note for note in made.notes)
    assert made.commands == ("OLLAMA_HOST=127.0.0.1:11435 ollama serve",)


# --- sources ---


def test_env_files_are_read_as_shells_read_them() -> None:
    text = "# no\nA=1\nexport B = two # remark\nC='x # y'\nD=\"q\"\nnonsense\nE=\n"
    assert variables(text) == {"A": "1", "B": "two", "C": "x # y", "D": "q", "E": ""}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "1"), ("$A-$A", "1-1"), ("${B:-d}", "d"), ("${EMPTY:-d}", "d"), ("${EMPTY-d}", ""), ("${A:+x}", "x"),
        ("${B:+x}", ""), ("$$A", "$A"), ("${B:?must}", ""), ("plain", "plain"),
    ],
)  # fmt: skip
def test_references_are_resolved_as_compose_does(text: str, value: str) -> None:
    assert interpolated(text, {"A": "1", "EMPTY": ""}) == value


def test_compose_services_give_their_variables() -> None:
    tree = {
        "services": {"app": {"environment": ["A=${X:-1}", "B"]}, "db": {"environment": {"C": True, "D": 5}}, "e": {}}
    }
    assert of_compose(tree, {"B": "from outside"}) == {"A": "1", "B": "from outside", "C": "true", "D": "5"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.json", "{", "is not valid JSON"),
        ("x.json", "{}", "wants an array of objects"),
        ("x.yaml", "a: [", "is not valid YAML"),
        ("x.yaml", "- a", "wants keys and values"),
        ("x.env", b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadSource, match=says):
        read([path], {})
    with pytest.raises(BadSource, match="cannot be read"):
        read([tmp_path / "none.env"], {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadSource, match="holds no table"):
        read([tmp_path / "empty"], {})


_VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
_TABLES = st.dictionaries(st.text(max_size=8), _VALUES, max_size=4)


@given(
    st.dictionaries(st.text(max_size=8), st.one_of(_VALUES, st.lists(_VALUES, max_size=3)), max_size=5),
    st.lists(_TABLES),
)
def test_a_tree_written_is_read_again_the_same(plain: dict[str, Any], tables: list[dict[str, Any]]) -> None:
    tree = {**plain, "section": {"inner": {"a b": "c"}, **{f"k{key}": value for key, value in plain.items()}}}
    tree |= {"entries": tables} if tables else {}
    assert tomllib.loads(to_toml(tree, "head\nlines", {"section.inner": "x"})) == tree
