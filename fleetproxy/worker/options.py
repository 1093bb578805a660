"""What a worker is told: by flags, else the environment (nfrx's names), else a TOML file, else defaults.

Later wins: default < file < environment < flag. Times are seconds, or Go durations ("1m30s").
"""

from __future__ import annotations

import re
import shlex
import socket
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from fleetproxy.core.worker import MAX_CONCURRENCY
from fleetproxy.folders import FolderError, data_folder
from fleetproxy.settings import Settings
from fleetproxy.settings.servers import Address, BadAddress, parse_listen, parse_url

Family = Literal["llm", "asr", "mcp"]
Style = Literal["auto", "openai", "ollama"]


class BadOption(ValueError):
    """An option cannot be used; the text says which, why, and what is wanted."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker runs."""

    family: Family = "llm"
    #: ws(s)://host[:port]/api/<family>/connect.
    server_url: str
    client_key: str | None = None
    #: None: made from the machine and the backend, the same at each start.
    worker_id: str | None = None
    worker_name: str = ""
    max_concurrency: int = 2
    embedding_batch_size: int = 0
    #: The backend, without "/v1". Of an MCP server that is a command it says nothing.
    backend: Address
    #: Path and query of an MCP server's endpoint.
    endpoint: str = "/"
    #: An MCP server that speaks over its standard streams: its command line. Empty: it is at `backend`.
    command: tuple[str, ...] = ()
    #: What callers of an MCP server must show as their bearer token; None: their token goes on to the server.
    auth_token: str | None = None
    #: Subprocesses of `command` at once, and how long a silent session keeps its own.
    sessions: int = 16
    session_idle_s: float = 1800.0
    api_key: str | None = None
    style: Style = "auto"
    poll_s: float = 10.0
    reconnect: bool = True
    probe_timeout_s: float = 10.0
    drain_s: float = 60.0
    #: (host, port) of the local status page; None: none.
    status: tuple[str, int] | None = None
    metrics: tuple[str, int] | None = None
    log_level: str = "info"

    def __repr__(self) -> str:
        return f"Options({self.family} worker of {self.server_url})"


class Variable(msgspec.Struct, frozen=True):
    """One option: its flag, its names in the environment (first wins), and what it means."""

    field: str
    flag: str
    environment: tuple[str, ...]
    doc: str
    metavar: str = ""
    #: Also read from the file named by <NAME>_FILE.
    secret: bool = False


_BASE = {"llm": ("COMPLETION_BASE_URL",), "asr": ("ASR_BASE_URL",)}
_KEYS = {"llm": ("COMPLETION_API_KEY", "OLLAMA_API_KEY"), "asr": ("ASR_API_KEY",)}
_DEFAULT_BASE = {"llm": "http://127.0.0.1:11434/v1", "asr": "http://127.0.0.1:5002/v1"}
_DEFAULT_SERVER = "ws://localhost:8080/api/{family}/connect"
DEFAULT_PROVIDER = "http://127.0.0.1:7777/"
#: A listener of each session counts as a request that runs.
MCP_CONCURRENCY = 256


def variables(family: Family) -> tuple[Variable, ...]:
    """The options of a family's worker."""
    if family == "mcp":
        return _mcp_variables()
    return (
        Variable("server_url", "--server-url", ("SERVER_URL",), "where to dial in: ws(s):// or http(s)://", "URL"),
        Variable("client_key", "--client-key", ("CLIENT_KEY",), "the server's auth.client_key", "KEY", True),
        Variable("base_url", "--base-url", _BASE[family], f"the backend ({_DEFAULT_BASE[family]})", "URL"),
        Variable("api_key", "--api-key", _KEYS[family], "the backend's key", "KEY", True),
        Variable("worker_id", "--client-id", ("CLIENT_ID",), "id at the server (made from machine and backend)", "ID"),
        Variable("worker_name", "--client-name", ("CLIENT_NAME",), "name shown there (this machine's)", "NAME"),
        Variable("max_concurrency", "--max-concurrency", ("MAX_CONCURRENCY",), "requests taken at once (2)", "N"),
        Variable(
            "embedding_batch_size", "--embedding-batch-size", ("EMBEDDING_BATCH_SIZE",), "inputs liked at once", "N"
        ),
        Variable("style", "--api-style", ("API_STYLE",), "auto, openai or ollama (auto)", "STYLE"),
        Variable("poll_s", "--poll-interval", ("MODEL_POLL_INTERVAL",), "how often models are read (10s)", "TIME"),
        Variable("reconnect", "--reconnect", ("RECONNECT",), "dial again for ever (true)", "BOOL"),
        Variable(
            "probe_timeout_s", "--request-timeout", ("REQUEST_TIMEOUT",), "for reading models, at most 10s", "TIME"
        ),
        Variable("drain_s", "--drain-timeout", ("DRAIN_TIMEOUT",), "how long SIGTERM waits for answers (1m)", "TIME"),
        Variable("status", "--status-addr", ("STATUS_ADDR",), "host:port of a local status page", "ADDRESS"),
        Variable("metrics", "--metrics-port", ("METRICS_PORT",), "host:port of Prometheus metrics", "ADDRESS"),
        Variable("log_level", "--log-level", ("LOG_LEVEL",), "debug, info, warn or error (info)", "LEVEL"),
    )


def _mcp_variables() -> tuple[Variable, ...]:
    shared = {variable.field: variable for variable in variables("llm")}
    own = (
        Variable("provider", "--provider-url", ("PROVIDER_URL",), f"the MCP server ({DEFAULT_PROVIDER})", "URL"),
        Variable("command", "--command", ("PROVIDER_COMMAND",), "or its command line; also what follows a --", "WORDS"),
        Variable("api_key", "--api-key", ("PROVIDER_API_KEY",), "bearer token for the MCP server", "KEY", True),
        Variable("auth_token", "--auth-token", ("AUTH_TOKEN",), "what callers must show as theirs", "TOKEN", True),
        Variable("sessions", "--sessions", ("PROVIDER_SESSIONS",), "subprocesses of a command at once (16)", "N"),
        Variable(
            "session_idle_s", "--session-idle", ("PROVIDER_SESSION_IDLE",), "silence that ends a session (30m)", "TIME"
        ),
        Variable("poll_s", "--poll-interval", ("POLL_INTERVAL",), "how often the server is looked for (10s)", "TIME"),
        Variable("max_concurrency", "--max-concurrency", ("MAX_CONCURRENCY",), "requests taken at once (256)", "N"),
    )
    taken = ("server_url", "client_key", "worker_id", "worker_name", "reconnect")
    last = ("drain_s", "status", "metrics", "log_level")
    return (*(shared[field] for field in taken), *own, *(shared[field] for field in last))


def resolve(
    family: Family,
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    read: Callable[[Path], str] = Path.read_text,
) -> Options:
    """Options from all sources. `flags` is field -> text, only those given. Raises BadOption."""
    given: dict[str, tuple[str, str]] = {}
    path = flags.get("config") or environment.get("CONFIG_FILE", "")
    known = variables(family)
    if path:
        given |= _from_file(Path(path), known, read)
    for variable in known:
        for name in reversed(variable.environment):
            if environment.get(name):
                given[variable.field] = (name, environment[name])
            elif variable.secret and environment.get(f"{name}_FILE"):
                file = Path(environment[f"{name}_FILE"])
                given[variable.field] = (f"{name}_FILE", _read(file, read).strip())
    for variable in known:
        if variable.field in flags:
            given[variable.field] = (variable.flag, flags[variable.field])
    values: dict[str, Any] = {}
    for field, (source, text) in given.items():
        try:
            values[field] = _PARSERS.get(field, str)(text)
        except ValueError as error:
            raise BadOption(f"{source} = {_shown(field, text)}: {error}") from None
    values["server_url"] = _server_url(values.get("server_url") or _DEFAULT_SERVER.format(family=family), family)
    if family == "mcp":
        address, endpoint = values.pop("provider", None) or _provider(DEFAULT_PROVIDER)
        values.setdefault("max_concurrency", MCP_CONCURRENCY)
        values |= {"base_url": address, "endpoint": endpoint}
    base = values.pop("base_url", None) or _base_url(_DEFAULT_BASE[family])
    return Options(
        family=family, backend=base, worker_name=values.pop("worker_name", "") or socket.gethostname(), **values
    )


def token_path(family: Family, environment: Mapping[str, str]) -> Path:
    """Where the token for the status page's control paths is: workers of one user and family share it."""
    try:
        folder = data_folder(Settings(data_dir=environment.get("FLEETPROXY_DATA_DIR")))
    except FolderError:
        folder = Path.cwd()
    return folder / f"worker-{family}.token"


def token_paths(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """The same of every family."""
    return tuple(token_path(family, environment) for family in get_args(Family))


def seconds(text: str) -> float:
    """A number of seconds, or a Go duration: "300", "1.5", "1m30s", "250ms"."""
    try:
        value = float(text)
    except ValueError:
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError("wants seconds, or a duration such as 1m30s") from None
        value = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if not 0 <= value < 10**9:
        raise ValueError("wants a time that is not negative")
    return value


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


def _positive_seconds(text: str) -> float:
    value = seconds(text)
    if value <= 0:
        raise ValueError("wants a time above zero")
    return value


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word in {"1", "t", "true", "yes", "on"}:
        return True
    if word in {"0", "f", "false", "no", "off"}:
        return False
    raise ValueError("wants true or false")


def _concurrency(text: str) -> int:
    value = _whole(text)
    if not 1 <= value <= MAX_CONCURRENCY:
        raise ValueError(f"wants 1 to {MAX_CONCURRENCY}")
    return value


def _whole(text: str) -> int:
    if not text.strip().isascii() or not text.strip().isdigit():
        raise ValueError("wants a whole number")
    return int(text)


def _style(text: str) -> str:
    word = text.strip().lower()
    if word not in {"auto", "openai", "ollama"}:
        raise ValueError("wants auto, openai or ollama")
    return word


def _level(text: str) -> str:
    word = text.strip().lower()
    levels = {"all", "debug", "info", "warn", "warning", "error", "fatal", "none"}
    return word if word in levels else "info"


def _listen(text: str) -> tuple[str, int] | None:
    try:
        return parse_listen(text, "127.0.0.1")
    except BadAddress as error:
        raise ValueError(str(error)) from None


def _base_url(text: str) -> Address:
    try:
        return parse_url(text, "openai" if "/v1" in text else "ollama")
    except BadAddress as error:
        raise ValueError(str(error)) from None


def _provider(text: str) -> tuple[Address, str]:
    """Where an MCP server is, and its endpoint there: the path as it is written, and the query."""
    place, mark, query = text.partition("?")
    try:
        address = parse_url(place, "openai")
    except BadAddress as error:
        raise ValueError(str(error)) from None
    path = place.partition("://")[2].partition("/")[2] if "://" in place else place.partition("/")[2]
    return Address(address.scheme, address.host, address.port), f"/{path}{mark}{query}"


def _command(text: str) -> tuple[str, ...]:
    words = tuple(shlex.split(text))
    if not words:
        raise ValueError("wants a command line")
    return words


def _some(text: str) -> int:
    value = _whole(text)
    if not 1 <= value <= 1000:
        raise ValueError("wants 1 to 1000")
    return value


def _server_url(text: str, family: str) -> str:
    """The WebSocket address; http(s) means ws(s), and no path the usual one."""
    scheme, separator, rest = text.partition("://")
    scheme = {"http": "ws", "https": "wss"}.get(scheme.lower(), scheme.lower())
    if not separator or scheme not in {"ws", "wss"} or not rest or rest.startswith("/"):
        raise BadOption("--server-url wants ws://host[:port] or wss://host[:port]")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority}/{path}" if slash and path else f"{scheme}://{authority}/api/{family}/connect"


def _from_file(path: Path, known: tuple[Variable, ...], read: Callable[[Path], str]) -> dict[str, tuple[str, str]]:
    try:
        table = tomllib.loads(_read(path, read))
    except tomllib.TOMLDecodeError as error:
        raise BadOption(f"{path}: not TOML: {error}") from None
    names = {variable.field: variable.field for variable in known}
    names |= {name.lower(): variable.field for variable in known for name in variable.environment}
    given = {}
    for key, value in table.items():
        field = names.get(key.lower())
        if field is None:
            raise BadOption(f"{path}: there is no option {key!r}")
        if isinstance(value, (dict, list)):
            raise BadOption(f"{path}: {key} wants one value")
        given[field] = (f"{path}: {key}", str(value).lower() if isinstance(value, bool) else str(value))
    return given


def _read(path: Path, read: Callable[[Path], str]) -> str:
    try:
        return read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise BadOption(f"cannot read {path}: {error}") from None


def _shown(field: str, text: str) -> str:
    return "***" if field in {"client_key", "api_key", "auth_token"} else repr(text)


_PARSERS: dict[str, Callable[[str], Any]] = {
    "base_url": _base_url,
    "provider": _provider,
    "command": _command,
    "sessions": _some,
    "session_idle_s": _positive_seconds,
    "max_concurrency": _concurrency,
    "embedding_batch_size": _whole,
    "style": _style,
    "poll_s": _positive_seconds,
    "reconnect": _flag,
    "probe_timeout_s": _positive_seconds,
    "drain_s": seconds,
    "status": _listen,
    "metrics": _listen,
    "log_level": _level,
}
