"""Every setting, once: its default, its meaning, its environment name.

Sources, later wins: default < file < `config.d/*.toml` < environment < command line. The classes below are the truth;
the reference page, `config show` and the JSON schema are made from them. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
#: Never shown: masked in every repr, in `config show` and in the log. Readable from a file through `<NAME>_FILE`.
Secret = Annotated[str, Meta(min_length=1, extra={"secret": True})]

MASK = "***"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all sections: unknown keys are errors, secrets are masked wherever the value is shown."""

    def __repr__(self) -> str:
        hidden = secret_fields(type(self))
        shown = (
            f"{name}={MASK if name in hidden and getattr(self, name) else repr(getattr(self, name))}"
            for name in self.__struct_fields__
        )
        return f"{type(self).__name__}({', '.join(shown)})"


@cache
def secret_fields(section: type[Section]) -> frozenset[str]:
    """Names of the fields of this section that hold secrets."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(section) if _is_secret(field.type))


def secrets_of(section: Section) -> tuple[str, ...]:
    """Every secret value below a section, for the log to blot out."""
    return tuple(_secrets_below(section))


def _secrets_below(section: Section) -> Iterator[str]:
    hidden = secret_fields(type(section))
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if name in hidden and value:
            yield value
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Section):
                yield from _secrets_below(item)


def _is_secret(annotation: Any) -> bool:
    if annotation is Secret:
        return True
    return any(part is Secret for part in getattr(annotation, "__args__", ()))


class Server(Section, frozen=True, kw_only=True):
    """One inference server of the fleet."""

    #: Shown everywhere, and what X-Ollama-Pin-Server names; unique, case does not count.
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    #: http(s)://host[:port][/prefix]; IPv6 in brackets; default port 11434 for http ollama, else the scheme's.
    url: str
    #: "ollama" or "openai" (vLLM, llama.cpp, SGLang, LM Studio).
    kind: Literal["ollama", "openai"] = "ollama"
    #: Bearer token sent to this server.
    api_key: Secret | None = None
    #: Video memory in GiB; absent: not known, such a server is tried last for a model nobody lists.
    vram_gb: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    #: Generating requests it gets at once; absent: no limit.
    max_concurrent: Positive | None = None
    #: Inputs of one embeddings request it gets at once; larger ones are split over the fleet. Absent: not split.
    embedding_batch_size: Positive | None = None
    #: Talk HTTP/2 to it; only where it needs that, because it costs more.
    http2: bool = False
    #: File with the certificates to trust for it, besides the system's.
    tls_ca_file: str | None = None
    #: Check its certificate.
    tls_verify: bool = True
    #: Name its certificate has, where that is not the host of the URL.
    tls_server_name: str | None = None
    #: Host header it gets; absent: host and port of the URL.
    host_header: str | None = None
    #: Maintenance: false keeps it polled and visible but gives it nothing.
    enabled: bool = True
    #: Port of the metrics agent on that machine; 0 switches it off.
    metrics_port: Port | None = None


class Key(Section, frozen=True, kw_only=True):
    """An API key from the configuration file."""

    #: Shown as the user in records.
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    #: The key itself, or `sha256:<hex>`.
    key: Secret
    #: Requests this key may have open at once; absent: no limit.
    max_in_flight: Positive | None = None
    #: Requests this key may make in a minute; absent: no limit.
    requests_per_minute: Positive | None = None
    #: Models this key may use; absent means all.
    models: tuple[str, ...] | None = None


class ClientKey(Section, frozen=True, kw_only=True):
    """A client key of one worker, or of a few: while one is connected, nobody with another key gets its id."""

    #: Who has it, as the log tells.
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    #: The key itself, or `sha256:<hex>`.
    key: Secret


class Tls(Section, frozen=True, kw_only=True):
    """TLS on the public port."""

    #: File with the certificate chain, PEM.
    cert: str | None = None
    #: File with its private key, PEM.
    key: str | None = None


class Auth(Section, frozen=True, kw_only=True):
    #: "open": keys identify; "required": strangers get 401. A non-loopback bind turns it to "required" unless open.
    proxy: Literal["open", "required"] | None = None
    #: One static principal valid on every surface; guards /api/{llm,asr}, state and transfer.
    api_key: Secret | None = None
    #: Bearer key with an administrator's rights on the dashboard API, for scripts; it belongs to no user.
    admin_key: Secret | None = None
    #: The first administrator, made at start while there are no users. The password needs 10 characters.
    admin_username: str | None = None
    #: Password of the first administrator, at least 10 characters.
    admin_password: Secret | None = None
    #: Dial-in workers must show it, or one of `[[client_keys]]`.
    client_key: Secret | None = None
    #: pull, push, create, copy, delete and blobs need a key even where reading is open.
    protect_writes: bool = False
    #: CIDR networks whose X-Forwarded-For and X-User-Roles are believed.
    trusted_proxies: tuple[str, ...] = ()
    #: Roles in X-User-Roles of a trusted proxy that stand for the API key.
    api_http_roles: tuple[str, ...] = ()
    #: Roles in X-User-Roles of a trusted proxy that stand for the client key.
    client_http_roles: tuple[str, ...] = ()
    #: Workers with a key are refused while no client key is set, instead of let in.
    strict_client_key: bool = True


class Cors(Section, frozen=True, kw_only=True):
    #: Besides Ollama's built-in origins (localhost, app://, ...); "*" allows all.
    origins: tuple[str, ...] = ()


class Routing(Section, frozen=True, kw_only=True):
    #: Name callers ask for -> model that serves it.
    aliases: dict[str, str] = {}
    #: Route unknown or offline pins as if not pinned, and say so in `x-fleet-pin`.
    pin_fallback: bool = False
    #: Leave x-fleet-backend out of answers.
    hide_backends: bool = False
    #: Ollama bodies without `num_ctx` get this; absent: bytes stay as received.
    min_num_ctx: Positive | None = None
    #: Ollama bodies without `keep_alive` get this; absent: bytes stay as received.
    default_keep_alive: str | None = None
    #: Retries may be at most this share of requests, plus three.
    retry_budget: Annotated[float, Meta(ge=0, le=1)] = 0.2
    #: Failures in a row after which a server gets nothing for a while.
    eject_failures: Positive = 5
    #: How long that is the first time; it doubles each time after.
    eject_s: Seconds = 30.0
    #: The longest it gets.
    eject_max_s: Seconds = 600.0
    #: Name shown for an address in records.
    source_names: dict[str, str] = {}


class Limits(Section, frozen=True, kw_only=True):
    #: Largest request body; uploads (blobs, audio) are streamed and not limited by it.
    body_bytes: Positive = 128 * 1024 * 1024
    #: Request bodies held in memory by one proxy process, all together.
    buffered_bytes: Positive = 512 * 1024 * 1024
    #: Connections one proxy process accepts.
    connections: Positive = 8192
    #: Answers of one server read by the poller.
    poll_body_bytes: Positive = 8 * 1024 * 1024


class Timeouts(Section, frozen=True, kw_only=True):
    #: To connect to a server.
    connect_s: Seconds = 3.0
    #: Until the first byte of a generating request: a model may load first.
    first_byte_s: Seconds = 600.0
    #: Until the first byte of any other request.
    first_byte_other_s: Seconds = 10.0
    #: Between two pieces of a stream from a server.
    stream_idle_s: Seconds = 120.0
    #: Between two pieces of a body from a caller.
    body_idle_s: Seconds = 30.0
    #: For a caller that has stopped reading.
    write_stall_s: Seconds = 120.0
    #: How long open requests may go on after SIGTERM; 0 ends them at once.
    drain_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 30.0


class Poll(Section, frozen=True, kw_only=True):
    #: Between two polls of a server.
    interval_s: Seconds = 10.0
    #: For one poll.
    timeout_s: Seconds = 5.0
    #: Failed polls in a row after which a server is offline.
    offline_threshold: Positive = 3
    #: Good polls in a row after which it is online again.
    online_threshold: Positive = 2
    #: Sent (as a Bearer token) to the metrics agents on the servers' machines: `fleetproxy worker metrics` wants one.
    agent_key: Secret | None = None


class Queue(Section, frozen=True, kw_only=True):
    #: Requests that may wait in line, all servers together; 0 switches waiting off.
    size: Annotated[int, Meta(ge=0)] = 512
    #: The longest wait in line.
    wait_s: Seconds = 300.0


class Metrics(Section, frozen=True, kw_only=True):
    #: host:port of a separate metrics address; the public port's /metrics is 404 then.
    listen: str | None = None
    #: Series on /metrics; what does not fit is counted under `other`.
    max_series: Annotated[int, Meta(ge=500)] = 2000


class Dashboard(Section, frozen=True, kw_only=True):
    #: host:port of a separate dashboard address.
    listen: str | None = None
    #: Serve the dashboard and its API on the public port too.
    on_public_port: bool = True


class Hub(Section, frozen=True, kw_only=True):
    #: host:port where workers may dial in directly.
    listen: str | None = None
    #: Past this much resident memory the hub is started anew; workers reconnect.
    memory_bytes: Positive = 1024 * 1024 * 1024


class Transfer(Section, frozen=True, kw_only=True):
    """Channels of `/api/transfer`."""

    #: Both ends must have come within this time after a channel was made; as long it is remembered when it is over.
    ttl_s: Seconds = 60.0
    #: Without a byte moving a transfer is broken off after this.
    idle_s: Seconds = 120.0
    #: Open channels, all callers together.
    channels: Positive = 10_000
    #: Open channels of one key (of one address where no key is asked for).
    channels_per_key: Positive = 100
    #: Only the key that made a channel may use it. Off: whoever is let in and knows the id.
    same_key: bool = False


class Asr(Section, frozen=True, kw_only=True):
    """Speech recognition (`/api/asr`, `/v1/audio`). Forms of any size go through as they come."""

    #: What one proxy process keeps on disk of forms whose `model` part has not come yet, all uploads together.
    spool_bytes: Positive = 4 * 1024 * 1024 * 1024
    #: Largest form for a worker that speaks nfrx's protocol, where a request is one JSON message held whole.
    max_json_body: Annotated[int, Meta(ge=1024, le=128 * 1024 * 1024)] = 32 * 1024 * 1024


class Mcp(Section, frozen=True, kw_only=True):
    """MCP servers behind relays (`/api/mcp`)."""

    #: A key of ours is needed to call relays, as X-Ollama-Api-Key or x-api-key: the bearer token is the relay's own.
    require_key: bool = False
    #: Calls one caller may have running at one relay.
    calls_per_caller: Positive = 16
    #: Until a call is answered.
    timeout_s: Seconds = 120.0
    #: Largest request.
    max_request_bytes: Positive = 10 * 1024 * 1024
    #: Largest answer of a relay that speaks nfrx's protocol; it is held whole.
    max_response_bytes: Annotated[int, Meta(ge=1024, le=15 * 1024 * 1024)] = 10 * 1024 * 1024


class Analytics(Section, frozen=True, kw_only=True):
    #: Rows older than this are deleted.
    retention_days: Positive = 90
    #: The same for `metric_samples`.
    samples_days: Positive = 14
    #: The same for `requests_hourly`: what long times are told from when the rows themselves have gone.
    rollup_days: Positive = 400
    #: The same for other tables: name of the table -> days, where they differ from `retention_days`.
    table_days: dict[str, Positive] = {}
    #: DuckDB's memory limit.
    memory_bytes: Annotated[int, Meta(ge=64 * 1024 * 1024)] = 1024 * 1024 * 1024
    #: For one SQL query.
    query_timeout_s: Seconds = 10.0
    #: Rows one SQL query may return.
    query_rows: Positive = 10_000
    #: Rows waiting on disk while the store cannot be used; beyond it the oldest are dropped, and counted.
    spool_bytes: Positive = 1024 * 1024 * 1024


class Telegram(Section, frozen=True, kw_only=True):
    """Where the fleet's own alerts go; users add their own chats in the dashboard."""

    #: Token of the bot that sends.
    bot_token: Secret | None = None
    #: Chat it sends to.
    chat_id: str | None = None
    #: Base address of the bot API; a self-hosted bot API server may stand here.
    api_url: str = "https://api.telegram.org"
    #: Say nothing about models that were asked for and are nowhere.
    mute_model_not_found: bool = False


class Wan(Section, frozen=True, kw_only=True):
    """Is the internet reachable? While it is not, "server offline" alerts wait: our own line may be the cause."""

    #: Between two checks.
    interval_s: Seconds = 60.0
    #: Failed checks in a row after which the internet counts as away.
    offline_threshold: Positive = 3
    #: host:port pairs; one that accepts a connection is enough. Empty switches the check off.
    targets: tuple[str, ...] = ("1.1.1.1:443", "8.8.8.8:53")


class Discovery(Section, frozen=True, kw_only=True):
    """Where scheduled jobs and models are looked up."""

    #: Path of the Docker Engine's socket; absent: containers are not looked at.
    docker_socket: str | None = None
    #: Registries asked whether a model can be had again, before it is deleted.
    ollama_registry_url: str = "https://registry.ollama.ai"
    #: Where Hugging Face models are looked up.
    huggingface_url: str = "https://huggingface.co"
    #: Folder of `<name>/plugin.json` manifests shown besides the built-in ones.
    plugins_dir: str | None = None


class Log(Section, frozen=True, kw_only=True):
    #: The least that is logged; all is debug, none is silence.
    level: Literal["all", "debug", "info", "warn", "warning", "error", "fatal", "none"] = "info"
    #: text is for people, json for programs; auto is text on a terminal.
    format: Literal["auto", "text", "json"] = "auto"


class Settings(Section, frozen=True, kw_only=True):
    #: Address to listen on; 0.0.0.0 is every one of this machine, and then callers need a key.
    host: str = "127.0.0.1"
    #: The public port: Ollama's own, so that clients need no change. 0 takes a free one.
    port: Port = 11434
    #: Proxy processes.
    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    #: Where history, accounts and audit records are kept; absent: $XDG_STATE_HOME/fleetproxy, as root
    #: /var/lib/fleetproxy.
    data_dir: str | None = None
    #: Sockets and the load board; absent: $XDG_RUNTIME_DIR/fleetproxy-<hash>, else /tmp/fleetproxy-<uid>-<hash>.
    runtime_dir: str | None = None
    #: Listen beyond loopback without keys.
    open: bool = False
    #: Host names answered; empty: addresses, localhost, *.local, *.internal and this machine's name.
    hosts: tuple[str, ...] = ()
    #: Extra paths that go to a backend, e.g. "/rerank".
    passthrough: tuple[str, ...] = ()
    #: Families that are on.
    plugins: tuple[str, ...] = ("llm", "asr", "mcp", "transfer")
    servers: tuple[Server, ...] = ()
    keys: tuple[Key, ...] = ()
    client_keys: tuple[ClientKey, ...] = ()
    tls: Tls = Tls()
    auth: Auth = Auth()
    cors: Cors = Cors()
    routing: Routing = Routing()
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    poll: Poll = Poll()
    queue: Queue = Queue()
    metrics: Metrics = Metrics()
    dashboard: Dashboard = Dashboard()
    hub: Hub = Hub()
    transfer: Transfer = Transfer()
    asr: Asr = Asr()
    mcp: Mcp = Mcp()
    analytics: Analytics = Analytics()
    telegram: Telegram = Telegram()
    wan: Wan = Wan()
    discovery: Discovery = Discovery()
    log: Log = Log()
