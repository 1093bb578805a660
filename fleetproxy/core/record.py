"""One audit row per exchange, and the attempts it made. Also the wire form of the spool: one JSON object per line."""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal[
    "ok",  # the backend's answer (any status) went through whole
    "refused",  # we answered: bad request, no key, no server, limit
    "backend_error",  # no answer could be had
    "truncated",  # the answer broke after it had begun; the caller saw it break
    "client_gone",  # the caller left first
    "aborted",  # we were stopped while it ran
]
#: Errors of attempts that ended because nobody was left to answer, which is no failure of the backend.
NOT_THE_BACKENDS = frozenset({"client_gone", "aborted"})


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One try at one backend."""

    backend: str
    status: int | None = None
    error: str | None = None
    #: Milliseconds from the start of the exchange to the start of this attempt.
    started_ms: float = 0.0
    connect_ms: float | None = None
    first_byte_ms: float | None = None
    total_ms: float = 0.0


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One finished exchange. Times are milliseconds from its first byte in, unless the name says otherwise."""

    request_id: str
    #: Microseconds since the epoch, UTC.
    started_at_us: int
    #: Which process wrote it and its place there: (process, sequence) orders rows of the same microsecond.
    process: str
    sequence: int
    source: str
    user: str | None = None
    user_id: int | None = None
    key_prefix: str | None = None
    #: A key was sent that we do not know.
    key_unknown: bool = False
    remote_ip: str | None = None
    user_agent: str | None = None
    family: str = "llm"
    dialect: str = "ollama"
    #: The endpoint's path template.
    endpoint: str
    method: str
    #: The path as asked, without the query, cut at 256 characters.
    path: str
    #: The model as asked; `model_served` is what the backend calls it.
    model: str | None = None
    model_served: str | None = None
    backend: str | None = None
    server_id: int | None = None
    route_reason: str | None = None
    status: int | None = None
    outcome: Outcome = "ok"
    error: str | None = None
    retries: int = 0
    streamed: bool = False
    queue_ms: float = 0.0
    #: First response byte handed to the caller; None when there was none.
    ttft_ms: float | None = None
    #: Our own share: until the request was written to the backend, less waiting in line.
    overhead_ms: float | None = None
    total_ms: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    chunks_out: int = 0
    tokens_in: int | None = None
    tokens_out: int | None = None
    #: As the backend says (Ollama): nanosecond durations turned into milliseconds.
    load_ms: float | None = None
    prompt_eval_ms: float | None = None
    eval_ms: float | None = None
    attempts: tuple[Attempt, ...] = ()
