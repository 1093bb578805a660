"""What a request asks, read once from its head and a typed peek at its body."""

from __future__ import annotations

from typing import Literal

import msgspec

from fleetproxy.core.backend import Dialect
from fleetproxy.core.names import canonical

Shape = Literal["relay", "scatter", "gather", "local", "tunnel"]
#: In whose words errors are told: a dialect's; nfrx's under `/api/{llm,asr}` (OpenAI's shape, its own codes); or one
#: word alone, as nfrx does it elsewhere.
Voice = Literal["ollama", "openai", "anthropic", "nfrx", "word"]
#: What a clean end of a stream looks like on this endpoint; None: any end by HTTP's own framing is clean.
Marker = Literal["ndjson_done", "ndjson_status", "sse_done", "sse_message_stop", "sse_response_completed"]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a family's endpoint table. Routes, OpenAPI and the reference page are made from it."""

    #: Short name used in records and metrics: "chat", "generate", "v1_chat_completions".
    name: str
    methods: tuple[str, ...]
    #: Path template: "/api/chat", "/api/blobs/{digest}", "/v1/models/{id}"; records and metrics carry it, not the path.
    path: str
    family: str = "llm"
    dialect: Dialect = "ollama"
    shape: Shape = "relay"
    #: May be given to another server before the first byte.
    read: bool = True
    #: Changes a server: never resent, guarded by `auth.protect_writes`.
    write: bool = False
    #: The body carries a model name.
    has_model: bool = False
    #: Body fields that may carry it, the first filled one counts; the backend reads the very same.
    model_keys: tuple[str, ...] = ("model",)
    #: A body that is no JSON object is not our business: it goes through as it came, without a model.
    lenient: bool = False
    #: How a server is chosen: by the model's tiers; where the caller's blobs are; where there is room.
    placement: Literal["model", "affinity", "space"] = "model"
    #: Takes a slot of `max_concurrent`.
    generates: bool = False
    #: `stream` when the body does not say.
    streams_by_default: bool = False
    #: The body goes through as it comes and is never held whole.
    upload: bool = False
    #: The body is a form whose `model` field is looked for as it passes.
    form: bool = False
    #: Which routing table: the main one; the one with the speech workers too; the speech workers alone.
    table: Literal["", "audio", "asr"] = ""
    marker_stream: Marker | None = None
    #: May take minutes before the first byte (model loads, long prompts).
    patient: bool = False
    #: keep_alive and num_ctx may be injected (when their settings are set).
    injectable: bool = False
    #: "family": under `/api/<family>/`. Guarded by `auth.api_key`, answered in nfrx's words, off with its plugin.
    surface: Literal["main", "family"] = "main"
    #: Path a backend is asked at; empty: the very path that came.
    forward: bytes = b""
    #: The path names the worker or server that is to serve it.
    pinned: bool = False
    doc: str = ""

    @property
    def voice(self) -> Voice:
        return "nfrx" if self.surface == "family" else self.dialect


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One request, understood."""

    endpoint: Endpoint
    #: The model as the caller wrote it; None when the path has none.
    model: str | None = None
    #: `core.names.canonical(model)`.
    canonical: str | None = None
    stream: bool = False
    #: Inputs of an embeddings request; 0 elsewhere.
    items: int = 0
    #: X-Ollama-Pin-Server, trimmed; None when absent.
    pin: str | None = None
    #: Where `blobs` and the `create` that follows meet: a stable key of the caller; None elsewhere.
    affinity: str | None = None
    #: Canonical names of the models the caller may use, judged by the name finally served; None means all.
    allowed: frozenset[str] | None = None

    def of(self, model: str, *, stream: bool) -> Operation:
        """The same for this model."""
        return msgspec.structs.replace(self, model=model, canonical=canonical(model), stream=stream)
