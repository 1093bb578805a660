"""Where settings come from and which of two wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.settings import Settings
from fleetproxy.settings.check import check, complete, strangers
from fleetproxy.settings.fields import Field, environment_name, every_key
from fleetproxy.settings.fixed import FIXED, keep_fixed
from fleetproxy.settings.load import Loaded, load
from fleetproxy.settings.model import MASK, Section, secrets_of
from fleetproxy.settings.problems import ConfigError


def read(folder: Path, text: str = "", environment: dict[str, str] | None = None, **options: Any) -> Loaded:
    if text:
        (folder / "fleetproxy.toml").write_text(text)
    return load(folder=folder, environment=environment or {}, **options)


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    assert read(tmp_path).settings == complete(Settings())
    assert check(complete(Settings())) == []


def test_later_sources_win(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    seen = []
    environment: dict[str, str] = {}
    flags: dict[str, Any] = {}
    for lay in (
        lambda: None,
        lambda: environment.update(LLM_QUEUE_SIZE="1"),
        lambda: (tmp_path / "fleetproxy.toml").write_text("[queue]\nsize = 2\n"),
        lambda: (tmp_path / "config.d" / "10.toml").write_text("[queue]\nsize = 3\n"),
        lambda: (tmp_path / "config.d" / "20.toml").write_text("[queue]\nsize = 4\n"),
        lambda: environment.update(FLEETPROXY_QUEUE__SIZE="5"),
        lambda: flags.update({"queue.size": 6}),
    ):
        lay()
        seen.append(read(tmp_path, environment=environment, flags=flags).settings.queue.size)
    assert seen == [512, 1, 2, 3, 4, 5, 6]


def test_the_first_folder_with_a_configuration_is_taken(tmp_path: Path) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    (home / ".config/fleetproxy").mkdir(parents=True)
    here.mkdir()
    (home / ".config/fleetproxy/fleetproxy.toml").write_text("port = 2\n")
    environment = {"HOME": str(home)}
    assert read(here, environment=environment).settings.port == 2
    other = tmp_path / "xdg"
    (other / "fleetproxy/config.d").mkdir(parents=True)
    (other / "fleetproxy/config.d/a.toml").write_text("port = 3\n")
    environment["XDG_CONFIG_HOME"] = str(other)
    assert read(here, environment=environment).settings.port == 3
    assert read(here, "port = 4\n", environment=environment).settings.port == 4
    named = tmp_path / "named.toml"
    named.write_text("port = 5\n")
    assert read(here, environment={**environment, "FLEETPROXY_CONFIG": str(named)}).settings.port == 5
    assert read(here, environment=environment, config=str(named)).files == (named,)


@pytest.mark.parametrize("named", [True, False], ids=["named", "looked-for"])
def test_a_place_where_we_may_not_look_is_a_mistake_not_an_empty_one(named: bool, tmp_path: Path) -> None:
    """What cannot be seen there may be what asks callers for a key."""
    place = tmp_path / ("x" * 300)
    environment = {"FLEETPROXY_CONFIG": str(place)} if named else {"XDG_CONFIG_HOME": str(place)}
    with pytest.raises(ConfigError, match="cannot be read: File name too long; be the user fleetproxy runs as"):
        read(tmp_path, environment=environment)


def test_servers_and_keys_of_several_files_add_up_and_their_places_are_their_own(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    second = tmp_path / "config.d" / "more.toml"
    second.write_text(
        'keys = ["b=bbbbbbbb"]\n\n[[servers]]\nname = "b"\nurl = "h:2"\n\n[[servers]]\nname="c"\nurl="h:3"\n'
    )
    loaded = read(tmp_path, 'servers = ["a=h:1"]\nkeys = ["a=aaaaaaaa"]\n')
    assert [server.name for server in loaded.settings.servers] == ["a", "b", "c"]
    assert [key.name for key in loaded.settings.keys] == ["a", "b"]
    assert str(loaded.origins["servers", 2, "url"]) == f"{second}:9:1"
    second.write_text('[[servers]]\nname = "A"\nurl = "h:2"\n')
    with pytest.raises(ConfigError, match=rf"{second}:2:1: servers\[1\].name"):
        read(tmp_path)


def test_a_server_flag_adds_or_takes_the_place_of_its_name(tmp_path: Path) -> None:
    text = '[[servers]]\nname = "a"\nurl = "h:1"\nvram_gb = 24\n\n[[servers]]\nname = "b"\nurl = "h:2"\n'
    loaded = read(tmp_path, text, servers=["A=h:7", "c=openai+https://h"])
    assert [(s.name, s.url, s.kind) for s in loaded.settings.servers] == [
        ("A", "h:7", "ollama"),
        ("b", "h:2", "ollama"),
        ("c", "https://h", "openai"),
    ]
    assert loaded.settings.servers[0].vram_gb is None


def test_lists_of_the_environment_replace_those_of_files(tmp_path: Path) -> None:
    environment = {"FLEETPROXY_SERVERS": "b=h:2, vllm=openai+http://h:8000", "FLEETPROXY_HOSTS": "x.example,y.example"}
    settings = read(tmp_path, 'hosts = ["z"]\nservers = ["a=h:1"]\n', environment).settings
    assert [server.name for server in settings.servers] == ["b", "vllm"]
    assert settings.hosts == ("x.example", "y.example")
    environment = {
        "FLEETPROXY_SERVERS": json.dumps([{"name": "c", "url": "h:3", "max_concurrent": 4}]),
        "FLEETPROXY_ROUTING__ALIASES": "gpt-4=llama3:70b,mini=phi",
        "FLEETPROXY_ROUTING__SOURCE_NAMES": '{"10.0.0.9": "laptop"}',
    }
    settings = read(tmp_path, environment=environment).settings
    assert settings.servers[0].max_concurrent == 4
    assert settings.routing.aliases == {"gpt-4": "llama3:70b", "mini": "phi"}
    assert settings.routing.source_names == {"10.0.0.9": "laptop"}


def test_secrets_may_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("abcdefgh\n")
    (tmp_path / "servers").write_text('[{"name": "a", "url": "h:1", "api_key": "token123"}]')
    environment = {
        "FLEETPROXY_AUTH__API_KEY_FILE": str(tmp_path / "key"),
        "FLEETPROXY_SERVERS_FILE": str(tmp_path / "servers"),
        "ADMIN_USERNAME": "root",
        "ADMIN_PASSWORD_FILE": str(tmp_path / "password"),
    }
    (tmp_path / "password").write_text("correct horse")
    settings = read(tmp_path, environment=environment).settings
    assert settings.auth.api_key == "abcdefgh"
    assert settings.auth.admin_password == "correct horse"
    assert settings.servers[0].api_key == "token123"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfport = 5\n", b"port = 5\r\n", b"# \xe2\x80\xa8\r\nport = 5"])
def test_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fleetproxy.toml").write_bytes(content)
    assert read(tmp_path).settings.port == 5


def test_what_kubernetes_adds_for_a_service_of_our_name_is_no_setting(tmp_path: Path) -> None:
    environment = {
        "FLEETPROXY_SERVICE_HOST": "10.96.0.7",
        "FLEETPROXY_SERVICE_PORT": "11434",
        "FLEETPROXY_SERVICE_PORT_HTTP": "11434",
        "FLEETPROXY_PORT": "tcp://10.96.0.7:11434",
        "FLEETPROXY_PORT_11434_TCP": "tcp://10.96.0.7:11434",
        "FLEETPROXY_PORT_11434_TCP_ADDR": "10.96.0.7",
    }
    assert read(tmp_path, environment=environment).settings == complete(Settings())


# --- names of other programs ---


def test_a_fleet_manager_environment_is_read_as_it_is(tmp_path: Path) -> None:
    environment = {
        "OLLAMA_SERVERS": json.dumps(
            [
                {"name": "gpu1", "host": "http://10.0.0.5:11434", "ramGb": 24, "metricsPort": 9100},
                {"name": "v", "host": "http://10.0.0.6:8000", "ramGb": 80, "backendType": "vllm", "maxConcurrent": 10},
                {"name": "mac", "host": "10.0.0.7", "ramGb": 0, "metricsPort": None, "type": "ollama"},
            ]
        ),
        "POLL_INTERVAL": "15",
        "OFFLINE_THRESHOLD": "5",
        "HEALTH_CHECK_TIMEOUT": "2500",
        "SOURCE_NAMES": '{"10.0.0.9": "laptop"}',
        "ADMIN_USERNAME": "root",
        "ADMIN_PASSWORD": "correct horse",
        "TELEGRAM_BOT_TOKEN": "123:abc",
        "TELEGRAM_CHAT_ID": "42",
        "MUTE_MODEL_NOT_FOUND_ALERTS": "true",
        "PROXY_PROTECT_WRITES": "1",
        "PROXY_MIN_NUM_CTX": "8192",
        "PROXY_DEFAULT_KEEP_ALIVE": "30m",
        "WAN_CHECK_INTERVAL": "90",
    }
    loaded = read(tmp_path, environment=environment)
    settings = loaded.settings
    assert [(s.name, s.url, s.kind, s.vram_gb, s.metrics_port, s.max_concurrent) for s in settings.servers] == [
        ("gpu1", "http://10.0.0.5:11434", "ollama", 24, 9100, None),
        ("v", "http://10.0.0.6:8000", "openai", 80, None, 10),
        ("mac", "10.0.0.7", "ollama", None, None, None),
    ]
    assert (settings.poll.interval_s, settings.poll.offline_threshold, settings.poll.timeout_s) == (15, 5, 2.5)
    assert settings.auth.protect_writes
    assert settings.telegram.mute_model_not_found
    assert (settings.routing.min_num_ctx, settings.routing.default_keep_alive) == (8192, "30m")
    assert len(loaded.notes) == len(environment)


def test_an_nfrx_environment_is_read_as_it_is(tmp_path: Path) -> None:
    environment = {
        "PORT": "8080",
        "METRICS_PORT": ":9090",
        "API_KEY": "abcdefgh",
        "CLIENT_KEY": "ijklmnop",
        "API_HTTP_ROLES": "staff, ops",
        "REQUEST_TIMEOUT": "12.5",
        "DRAIN_TIMEOUT": "1m30s",
        "ALLOWED_ORIGINS": "https://a.example,https://b.example",
        "PLUGINS": "llm,docling,mcp",
        "LLM_QUEUE_SIZE": "100",
        "LOG_LEVEL": "trace",
        "REDIS_ADDR": "redis:6379",
    }
    loaded = read(tmp_path, environment=environment)
    settings = loaded.settings
    assert (settings.port, settings.metrics.listen) == (8080, "127.0.0.1:9090")
    assert (settings.auth.api_key, settings.auth.client_key) == ("abcdefgh", "ijklmnop")
    assert settings.auth.api_http_roles == ("staff", "ops")
    assert (settings.timeouts.first_byte_s, settings.timeouts.stream_idle_s, settings.timeouts.drain_s) == (
        12.5,
        12.5,
        90,
    )
    assert settings.cors.origins == ("https://a.example", "https://b.example")
    assert settings.plugins == ("llm", "mcp")
    assert (settings.queue.size, settings.log.level) == (100, "all")
    assert "REDIS_ADDR has no meaning here: one fleetproxy needs no Redis" in loaded.notes


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("0.0.0.0", "0.0.0.0", 11434),
        ("10.0.0.1:9999", "10.0.0.1", 9999),
        ("http://10.0.0.1", "10.0.0.1", 80),
        ("https://example.org/path", "example.org", 443),
        (":5000", "0.0.0.0", 5000),
        ("[::1]:5000", "::1", 5000),
        ("::", "::", 11434),
        ("example.org", "example.org", 11434),
        ('"0.0.0.0:5000"', "0.0.0.0", 5000),
    ],
)
def test_ollama_host_is_read_with_ollamas_own_leniency(tmp_path: Path, text: str, host: str, port: int) -> None:
    settings = read(tmp_path, environment={"OLLAMA_HOST": text, "API_KEY": "abcdefgh"}).settings
    assert (settings.host, settings.port) == (host, port)


def test_ollama_origins_are_read_as_ollama_reads_them(tmp_path: Path) -> None:
    origins = "chrome-extension://*,*.example.com,192.168.1.*:3000,http://10.0.0.*,http://pc:*,*"
    loaded = read(tmp_path, environment={"OLLAMA_ORIGINS": origins})
    assert loaded.settings.cors.origins == tuple(origins.split(","))
    for wrong in ("example.com", "http://a/b*", "*.a b"):
        with pytest.raises(ConfigError, match="is no origin"):
            read(tmp_path, environment={"OLLAMA_ORIGINS": wrong})


def test_a_name_of_another_program_yields_to_our_own_and_to_a_file(tmp_path: Path) -> None:
    environment = {"PORT": "1", "LLM_QUEUE_SIZE": "1", "OLLAMA_SERVERS": '[{"name": "x", "host": "h"}]'}
    loaded = read(tmp_path, 'port = 2\nservers = ["a=h:1"]\n', {**environment, "FLEETPROXY_QUEUE__SIZE": "3"})
    assert (loaded.settings.port, loaded.settings.queue.size) == (2, 3)
    assert [server.name for server in loaded.settings.servers] == ["a"]
    assert any(note.startswith("PORT is set, but port in ") for note in loaded.notes)
    assert not any("LLM_QUEUE_SIZE" in note for note in loaded.notes)


def test_an_nfrx_metrics_port_that_is_the_port_stays_on_it(tmp_path: Path) -> None:
    assert read(tmp_path, environment={"PORT": "8080", "METRICS_PORT": "8080"}).settings.metrics.listen is None


def test_open_webuis_list_of_servers_can_be_pasted(tmp_path: Path) -> None:
    settings = read(tmp_path, environment={"OLLAMA_BASE_URLS": "http://10.0.0.5:11434;http://10.0.0.6:11500"}).settings
    assert [server.name for server in settings.servers] == ["10.0.0.5", "10.0.0.6:11500"]


# --- strangers ---


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.9.1"])
def test_on_loopback_nobody_needs_a_key(host: str) -> None:
    settings = complete(Settings(host=host))
    assert settings.auth.proxy == "open"
    assert strangers(settings) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_beyond_loopback_a_key_is_needed_and_there_must_be_one_unless_opened(host: str, tmp_path: Path) -> None:
    settings = complete(Settings(host=host))
    assert settings.auth.proxy == "required"
    problem = strangers(settings)
    assert problem is not None
    assert "--open" in problem.text
    assert complete(Settings(host=host, open=True)).auth.proxy == "open"
    with_key = read(tmp_path, f'host = "{host}"\nkeys = ["anna=abcdefgh"]\n').settings
    assert with_key.auth.proxy == "required"
    assert strangers(with_key) is None


# --- laws ---


def plain_values(field: Field) -> st.SearchStrategy[Any]:
    """Values the type of a key allows, as TOML would give them."""
    if field.wants.startswith("a whole number"):
        return st.integers(1, 64)
    if field.wants.startswith("a number"):
        return st.floats(0.25, 1)
    return st.booleans()


KEYS = {path: field for path, field in every_key() if field.kind == "value"}
SIMPLE = {
    path: field
    for path, field in KEYS.items()
    if field.wants.startswith(("a whole number", "a number")) or field.wants == "true or false"
}


def valued() -> st.SearchStrategy[tuple[tuple[str, ...], Any]]:
    return st.sampled_from(sorted(SIMPLE)).flatmap(lambda path: st.tuples(st.just(path), plain_values(SIMPLE[path])))


@given(valued())
def test_a_value_reads_the_same_from_file_environment_and_flags(pair: tuple[tuple[str, ...], Any]) -> None:
    path, value = pair
    dotted = ".".join(path)
    nowhere = Path("/nonexistent")
    flagged = _outcome(flags={dotted: value}, environment={}, folder=nowhere)
    texted = _outcome(environment={environment_name(path): json.dumps(value)}, folder=nowhere)
    assert flagged == texted


def _outcome(**options: Any) -> object:
    """The settings, or the keys and sentences of the mistakes."""
    try:
        return load(**options).settings
    except ConfigError as error:
        return [(problem.key, problem.text.partition(", got ")[0]) for problem in error.problems]


@given(st.dictionaries(st.sampled_from(sorted(SIMPLE)), st.integers(1, 60), max_size=6))
def test_settings_survive_the_way_to_the_children(values: dict[tuple[str, ...], int]) -> None:
    flags = {".".join(path): bool(n % 2) if SIMPLE[path].wants == "true or false" else n for path, n in values.items()}
    flags = {key: 0.5 if key == "routing.retry_budget" else value for key, value in flags.items()}
    outcome = _outcome(flags=flags, environment={}, folder=Path("/nonexistent"))
    if isinstance(outcome, Settings):
        assert msgspec.json.decode(msgspec.json.encode(outcome), type=Settings) == outcome


@given(
    st.dictionaries(
        st.text(max_size=12), st.one_of(st.integers(), st.text(max_size=5), st.lists(st.integers())), max_size=4
    )
)
def test_nonsense_gives_sentences_never_another_error(tree: dict[str, Any]) -> None:
    _outcome(
        flags={key: value for key, value in tree.items() if "." not in key}, environment={}, folder=Path("/nonexistent")
    )


def test_no_secret_is_in_a_repr() -> None:
    def fill(section: type[Section]) -> Section:
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(section):
            found = next((f for path, f in _fields(section) if path == field.name), None)
            if found is not None and found.secret:
                values[field.name] = f"hush-{field.name}"
            elif found is not None and found.section is not None:
                inner = fill(found.section)
                values[field.name] = (inner,) if found.kind == "list" else inner
            elif field.required:
                values[field.name] = "x"
        return section(**values)

    filled = fill(Settings)
    assert len(secrets_of(filled)) >= 7
    assert "hush-" not in repr(filled)
    assert MASK in repr(filled)


def _fields(section: type[Section]) -> list[tuple[str, Field]]:
    from fleetproxy.settings.fields import fields_of

    return list(fields_of(section).items())


@given(st.integers(1, 8), st.integers(1, 60000), st.booleans())
def test_a_reload_never_changes_what_is_fixed(processes: int, port: int, on: bool) -> None:
    old = complete(Settings(port=4711, data_dir="/d", runtime_dir="/r"))
    fresh = complete(Settings(port=port, processes=processes, open=on))
    merged, kept = keep_fixed(old, fresh)
    assert all(_at(merged, name) == _at(old, name) for name in FIXED)
    assert set(kept) == {name for name, new, was in (("port", port, 4711), ("processes", processes, 1)) if new != was}
    assert merged.open is on


def test_a_reload_says_what_waits_for_a_restart() -> None:
    old = complete(Settings())
    for name, key in (
        ("analytics", "retention_days"),
        ("metrics", "max_series"),
        ("limits.poll_body_bytes", "poll_body_bytes"),
        ("asr.spool_bytes", "spool_bytes"),
    ):
        section = name.partition(".")[0]
        changed = msgspec.structs.replace(getattr(old, section), **{key: 4711})
        merged, kept = keep_fixed(old, msgspec.structs.replace(old, **{section: changed}))
        assert (merged, kept) == (old, (name,))


def _at(settings: Settings, name: str) -> object:
    found: object = settings
    for part in name.split("."):
        found = getattr(found, part)
    return found


# --- files ---


def test_tls_files_must_be_a_pair(tmp_path: Path) -> None:
    authority = trustme.CA()
    one, other = authority.issue_cert("a.example"), authority.issue_cert("b.example")
    cert, key, wrong = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "wrong.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in one.cert_chain_pems))
    key.write_bytes(one.private_key_pem.bytes())
    wrong.write_bytes(other.private_key_pem.bytes())
    assert read(tmp_path, f'[tls]\ncert = "{cert}"\nkey = "{key}"\n').settings.tls.cert == str(cert)
    with pytest.raises(
        ConfigError, match=r"fleetproxy.toml:2:1: tls.cert: .*no certificate and key that belong together"
    ):
        read(tmp_path, f'[tls]\ncert = "{cert}"\nkey = "{wrong}"\n')
    with pytest.raises(ConfigError, match=r"fleetproxy.toml:3:1: tls.key: .*gone.pem cannot be read: No such file"):
        read(tmp_path, f'[tls]\ncert = "{cert}"\nkey = "{tmp_path}/gone.pem"\n')


def test_a_servers_authorities_must_be_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing of the kind")
    text = f'[[servers]]\nname = "a"\nurl = "https://h"\ntls_ca_file = "{tmp_path}/ca.pem"\n'
    with pytest.raises(ConfigError, match=r"toml:4:1: servers\[0\].tls_ca_file: .*ca.pem holds no certificates"):
        read(tmp_path, text)
    (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    assert read(tmp_path, text).settings.servers[0].tls_ca_file


def test_variables_of_builds_and_tests_are_no_settings(tmp_path: Path) -> None:
    load(environment={"FLEETPROXY_BUILD_DASHBOARD": "0", "FLEETPROXY_TEST_ALL": "1"}, folder=tmp_path)


def test_a_table_of_numbers_comes_from_a_variable_too(tmp_path: Path) -> None:
    name = "FLEETPROXY_ANALYTICS__TABLE_DAYS"
    for text in ("system_metrics=30,job_runs=400", '{"system_metrics": 30, "job_runs": 400}'):
        found = read(tmp_path, environment={name: text}).settings.analytics.table_days
        assert found == {"system_metrics": 30, "job_runs": 400}
    for text in ("system_metrics=soon", '{"system_metrics": "soon"}', "system_metrics=0"):
        with pytest.raises(ConfigError, match=f"{name}: .*wants a table of whole numbers"):
            read(tmp_path, environment={name: text})
