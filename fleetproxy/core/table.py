"""What the data plane routes by: the routing table, and the snapshot that carries it. Immutable; swapped whole.

Control compiles it from the fleet (`compile_table`, in `core/fleet.py`); every process holds one reference, and an
exchange keeps the snapshot it began with. Nothing here is ever changed, so no lock is ever taken.
"""

from __future__ import annotations

import msgspec

from fleetproxy.core.backend import Backend

RESIDENT, ON_DISK = 0, 1


class Route(msgspec.Struct, frozen=True, array_like=True):
    """A backend that can serve a model now, and how well."""

    #: Index into `RoutingTable.backends`.
    backend: int
    #: RESIDENT or ON_DISK.
    tier: int
    #: The name this backend serves the model under; differs from the asked name only through an alias.
    model: str


class RoutedBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A backend of the table with what routing needs to know of its state."""

    backend: Backend
    #: Online, enabled and not draining: may get new work.
    usable: bool
    online: bool
    #: None when the total is unknown; unknown ranks after known.
    free_vram_bytes: int | None = None
    free_disk_bytes: int | None = None


class RoutingTable(msgspec.Struct, frozen=True, kw_only=True):
    """Model name to routes, in static order (tier, then server order)."""

    backends: tuple[RoutedBackend, ...] = ()
    #: Canonical model name (`core.names.canonical`) -> routes on usable backends, each backend once.
    models: dict[str, tuple[Route, ...]] = {}
    #: Canonical alias -> routes whose `model` is the name served; consulted when `models` has nothing.
    aliases: dict[str, tuple[Route, ...]] = {}
    #: `core.names.alias_key` -> routes to models that share it; the last resort.
    alias_keys: dict[str, tuple[Route, ...]] = {}
    #: Lower-cased server name -> index into `backends`, unusable ones included.
    pins: dict[str, int] = {}
    #: Model names that some known but unusable backend has: they exist, only nobody can serve them now.
    unavailable: frozenset[str] = frozenset()


class Principal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whom a key stands for, and what it may do. Limits: None means none."""

    name: str
    #: First characters of the key, for showing.
    key_prefix: str = ""
    user_id: int | None = None
    #: The admin key: may read every surface.
    admin: bool = False
    max_in_flight: int | None = None
    requests_per_minute: int | None = None
    #: Canonical model names this key may use; None means all.
    models: frozenset[str] | None = None
    #: Seconds since the epoch; None means never.
    expires_at_s: float | None = None


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Who may do what on the public port."""

    #: A key is needed on the main surface.
    proxy_required: bool = False
    #: pull, push, create, copy, delete and blobs need a known key even when the main surface is open.
    protect_writes: bool = False
    #: A key is needed on /api/{llm,asr}, state and transfer.
    families_required: bool = False
    #: Unknown pinned servers are routed as if not pinned, with a header that says so.
    pin_fallback: bool = False
    #: x-fleet-backend is left out of answers.
    hide_backends: bool = False
    #: Exact Host names (without port) answered besides addresses and local names; empty means any.
    hosts: frozenset[str] = frozenset()
    #: Origins allowed besides Ollama's built-in ones; "*" allows all.
    origins: tuple[str, ...] = ()
    #: CIDR networks whose X-Forwarded-For and role headers are believed.
    trusted_proxies: tuple[str, ...] = ()
    #: Address -> name shown as the source (`SOURCE_NAMES`).
    source_names: dict[str, str] = {}
    #: Roles in X-User-Roles of a trusted proxy that stand for the key of the families' surface.
    api_http_roles: tuple[str, ...] = ()
    #: Roles that stand for the client key, and its SHA-256 (empty: none): they may use transfer channels.
    client_http_roles: tuple[str, ...] = ()
    client_key_digest: bytes = b""
    #: Client keys with a name: (name, SHA-256).
    client_keys: tuple[tuple[str, bytes], ...] = ()
    #: Transfer channels need one of the keys or roles.
    transfer_required: bool = False
    #: Families that are on; `/api/<family>` of the others is 404.
    plugins: tuple[str, ...] = ("llm", "asr", "mcp", "transfer")
    #: Extra paths that go to a backend.
    passthrough: tuple[str, ...] = ()
    #: Control's paths are served on the public port.
    dashboard_on_public_port: bool = True
    #: /metrics is served on the public port (False when it has a port of its own).
    metrics_on_public_port: bool = True


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the data plane. Sizes in bytes, times in seconds."""

    body_bytes: int = 128 * 1024 * 1024
    buffered_bytes: int = 512 * 1024 * 1024
    connect_s: float = 3.0
    #: Chat, generate, embeddings, create, pull...: a model may load for minutes first.
    first_byte_s: float = 600.0
    #: Everything else.
    first_byte_other_s: float = 10.0
    stream_idle_s: float = 120.0
    body_idle_s: float = 30.0
    write_stall_s: float = 120.0
    drain_s: float = 30.0
    queue_size: int = 512
    queue_wait_s: float = 300.0
    #: Retries may be at most this share of requests, plus three.
    retry_budget: float = 0.2
    #: Passive ejection: after this many failures in a row, for this long, doubling.
    eject_failures: int = 5
    eject_s: float = 30.0
    eject_max_s: float = 600.0
    #: Injected into Ollama bodies when the caller did not set them; None means the bytes stay as received.
    min_num_ctx: int | None = None
    default_keep_alive: str | None = None
    #: Raise this and the last chunk of an idle connection pool is dropped later.
    keepalive_idle_s: float = 60.0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a data-plane process needs, at one version. Published whole by control."""

    version: int = 0
    #: The start of the service it was made in; a process does not begin with a snapshot of another start.
    boot: str = ""
    table: RoutingTable = RoutingTable()
    #: SHA-256 of the key -> principal.
    principals: dict[bytes, Principal] = {}
    access: Access = Access()
    limits: Limits = Limits()
    #: Path -> complete JSON body: "/api/tags", "/api/ps", "/v1/models", "/api/version".
    bodies: dict[str, bytes] = {}
    #: Model id -> JSON object of /v1/models/{id}.
    model_bodies: dict[str, bytes] = {}
    #: Model as its servers list it -> seconds since the epoch when control first saw it: `created` under /api/llm.
    first_seen_s: dict[str, int] = {}
    #: Dial-in workers an operator has drained, by family and id: the hub gives them nothing new.
    resting: frozenset[tuple[str, str]] = frozenset()
