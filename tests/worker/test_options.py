from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.worker.options import BadOption, Options, resolve, seconds, variables

NOTHING: dict[str, str] = {}


def test_defaults_are_nfrxs_but_for_dialling_again_for_ever() -> None:
    options = resolve("llm", {}, NOTHING)
    assert options.server_url == "ws://localhost:8080/api/llm/connect"
    assert (options.backend.host, options.backend.port, options.backend.prefix) == ("127.0.0.1", 11434, "")
    assert (options.max_concurrency, options.reconnect, options.drain_s) == (2, True, 60.0)
    assert options.worker_name
    asr = resolve("asr", {}, NOTHING)
    assert (asr.server_url, asr.backend.port) == ("ws://localhost:8080/api/asr/connect", 5002)


def test_nfrxs_environment_is_understood() -> None:
    options = resolve(
        "llm",
        {},
        {
            "SERVER_URL": "wss://fleet.example:8443/api/llm/connect",
            "CLIENT_KEY": "k",
            "CLIENT_ID": "id-1",
            "CLIENT_NAME": "gpu",
            "COMPLETION_BASE_URL": "http://10.0.0.5:8000/inner/v1",
            "OLLAMA_API_KEY": "o",
            "MAX_CONCURRENCY": "4",
            "EMBEDDING_BATCH_SIZE": "16",
            "REQUEST_TIMEOUT": "2.5",
            "MODEL_POLL_INTERVAL": "1m",
            "DRAIN_TIMEOUT": "1m30s",
            "RECONNECT": "false",
            "STATUS_ADDR": "127.0.0.1:4000",
            "METRICS_PORT": "9091",
            "API_STYLE": "ollama",
            "LOG_LEVEL": "DEBUG",
        },
    )
    assert options.server_url == "wss://fleet.example:8443/api/llm/connect"
    assert (options.client_key, options.worker_id, options.worker_name) == ("k", "id-1", "gpu")
    assert (options.backend.port, options.backend.prefix, options.api_key) == (8000, "/inner", "o")
    assert (options.max_concurrency, options.embedding_batch_size) == (4, 16)
    assert (options.probe_timeout_s, options.poll_s, options.drain_s) == (2.5, 60.0, 90.0)
    assert (options.reconnect, options.style, options.log_level) == (False, "ollama", "debug")
    assert (options.status, options.metrics) == (("127.0.0.1", 4000), ("127.0.0.1", 9091))


def test_later_sources_win_and_the_first_name_of_a_variable_does() -> None:
    files = {"w.toml": 'max_concurrency = 3\nclient_key = "file"\nserver_url = "ws://file"\n', "key": "secret\n"}

    def read(path: Path) -> str:
        return files[path.name]

    environment = {
        "CONFIG_FILE": "w.toml",
        "CLIENT_KEY_FILE": "key",
        "SERVER_URL": "ws://environment",
        "COMPLETION_API_KEY": "first",
        "OLLAMA_API_KEY": "second",
    }
    options = resolve("llm", {"server_url": "ws://flag"}, environment, read)
    assert options.server_url == "ws://flag/api/llm/connect"
    assert (options.max_concurrency, options.client_key, options.api_key) == (3, "secret", "first")


@pytest.mark.parametrize(
    ("given_url", "dialled"),
    [
        ("http://h:1", "ws://h:1/api/llm/connect"),
        ("https://h", "wss://h/api/llm/connect"),
        ("ws://h/", "ws://h/api/llm/connect"),
        ("wss://h/behind/api/llm/connect", "wss://h/behind/api/llm/connect"),
    ],
)
def test_the_servers_address_may_be_written_as_people_do(given_url: str, dialled: str) -> None:
    assert resolve("llm", {"server_url": given_url}, NOTHING).server_url == dialled


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"server_url": "h:80"}, "--server-url"),
        ({"server_url": "ftp://h"}, "--server-url"),
        ({"max_concurrency": "0"}, "--max-concurrency"),
        ({"max_concurrency": "many"}, "whole number|wants"),
        ({"drain_s": "soon"}, "duration"),
        ({"poll_s": "0"}, "above zero"),
        ({"reconnect": "perhaps"}, "true or false"),
        ({"style": "soap"}, "ollama"),
        ({"base_url": "nope://x"}, "--base-url"),
        ({"status": "here"}, "host:port"),
    ],
)
def test_a_bad_option_is_named_with_what_is_wanted(flags: dict[str, str], says: str) -> None:
    with pytest.raises(BadOption, match=says):
        resolve("llm", flags, NOTHING)


def test_files_are_checked() -> None:
    for text, says in (("a = ", "not TOML"), ("colour = 1", "no option 'colour'"), ("status = [1]", "one value")):
        with pytest.raises(BadOption, match=says):
            resolve("llm", {"config": "w.toml"}, NOTHING, lambda _, text=text: text)
    with pytest.raises(BadOption, match="cannot read"):
        resolve("llm", {"config": "/does/not/exist"}, NOTHING)


def test_no_secret_is_shown() -> None:
    options = resolve("llm", {"client_key": "hush", "api_key": "hush"}, NOTHING)
    assert "hush" not in repr(options)


@given(st.integers(0, 100), st.integers(0, 59), st.integers(0, 59))
def test_go_durations_are_read(hours: int, minutes: int, rest: int) -> None:
    assert seconds(f"{hours}h{minutes}m{rest}s") == hours * 3600 + minutes * 60 + rest


@given(st.floats(0, 10**8))
def test_plain_numbers_are_seconds(value: float) -> None:
    assert seconds(str(value)) == value


@given(st.text(max_size=12))
def test_durations_never_raise_anything_but_a_value_error(text: str) -> None:
    try:
        assert 0 <= seconds(text) < 10**9
    except ValueError:
        pass


def test_every_option_has_a_field() -> None:
    fields = set(Options.__struct_fields__) | {"base_url"}
    for family in ("llm", "asr"):
        assert {variable.field for variable in variables(family)} <= fields  # type: ignore[arg-type]
