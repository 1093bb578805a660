"""A backend and what we last saw of it: the nouns every other module speaks of. Values only."""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["ollama", "openai", "worker"]
Dialect = Literal["ollama", "openai", "anthropic"]

#: What each kind of backend can be asked. An Ollama server speaks all three (it has /v1/messages since 0.14);
#: an OpenAI-compatible one speaks /v1/*, and answers 404 itself where it lacks the Anthropic path.
DIALECTS: dict[Kind, frozenset[Dialect]] = {
    "ollama": frozenset({"ollama", "openai", "anthropic"}),
    "openai": frozenset({"openai", "anthropic"}),
    "worker": frozenset({"openai"}),
}


class Backend(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One inference server we can route to. Equal configuration gives an equal value."""

    name: str
    #: Stable number of the server in the dashboard API; also the key of its history.
    id: int
    #: Column on the load board; given out by control, not reused while anything may still count in it.
    column: int
    kind: Kind = "ollama"
    #: "http" | "https" | "unix" (a socket path in `host`) | "hub" (a dial-in worker: `host` is its worker id).
    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = 11434
    #: Path put before every forwarded path, without a trailing slash: "" or "/ollama".
    path_prefix: str = ""
    #: Host header for this backend; None means its own authority.
    host_header: str | None = None
    #: Bearer token of ours for this backend. Never logged, never shown; attached last.
    api_key: str | None = None
    http2: bool = False
    tls_ca_file: str | None = None
    tls_verify: bool = True
    tls_server_name: str | None = None
    #: None means no limit; then load compares by requests in flight.
    max_concurrent: int | None = None
    embedding_batch_size: int | None = None
    vram_bytes: int | None = None
    #: Maintenance: False keeps it polled and visible but gives it nothing.
    enabled: bool = True
    draining: bool = False

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class ResidentModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model held in memory, one entry of `/api/ps` (or of `/v1/models` for servers that hold what they list)."""

    name: str
    size_bytes: int = 0
    size_vram_bytes: int = 0
    digest: str = ""
    context_length: int | None = None
    #: RFC 3339 text as the server gave it; None when it does not say.
    expires_at: str | None = None
    parameter_size: str | None = None
    quantization: str | None = None


class DiskModel(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model a backend could load, one entry of `/api/tags` or `/v1/models`."""

    name: str
    size_bytes: int = 0
    digest: str = ""
    parameter_size: str | None = None
    quantization: str | None = None


class BackendState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the last polls of one backend said."""

    #: After thresholds (`poll.offline_threshold` failures, `poll.online_threshold` successes).
    online: bool = False
    version: str | None = None
    resident: tuple[ResidentModel, ...] = ()
    #: `resident` has been told; before that it is no news that a model is in memory.
    resident_known: bool = False
    on_disk: tuple[DiskModel, ...] = ()
    free_disk_bytes: int | None = None
    #: The entries of /api/ps, /api/tags and /v1/models as the backend gave them: JSON arrays, bytes untouched.
    raw_ps: msgspec.Raw = msgspec.Raw(b"[]")
    raw_tags: msgspec.Raw = msgspec.Raw(b"[]")
    raw_v1_models: msgspec.Raw = msgspec.Raw(b"[]")
    #: Seconds since the epoch of the last finished poll; None before the first.
    polled_at_s: float | None = None
    consecutive_failures: int = 0
    consecutive_successes: int = 0
    last_error: str | None = None

    @property
    def vram_used_bytes(self) -> int:
        return sum(model.size_vram_bytes for model in self.resident)
