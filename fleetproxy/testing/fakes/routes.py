"""Which paths each kind of fake serves: (methods, path template, handler, dialect)."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Literal
from urllib.parse import unquote

import msgspec

from fleetproxy.testing.fakes import anthropic, library, native, openai, pages, responses, speech
from fleetproxy.testing.fakes.call import Call, Dialect
from fleetproxy.testing.fakes.profile import Kind

Endpoint = Callable[[Call], Awaitable[None]]


class Route(msgspec.Struct, frozen=True):
    methods: tuple[str, ...]
    #: `{}` stands for one variable part; it may hold slashes at the end of a path.
    path: str
    endpoint: Endpoint
    dialect: Dialect = "ollama"
    #: "json": a JSON object is read first. "none": the endpoint reads what it likes.
    body: Literal["json", "none"] = "none"

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.path).replace(r"\{\}", "(.+)") + r"\Z")


async def running(call: Call) -> None:
    await call.reply.send(200, b"Ollama is running", content_type="text/plain; charset=utf-8")


def _post(path: str, endpoint: Endpoint, dialect: Dialect = "ollama") -> Route:
    return Route(("POST",), path, endpoint, dialect, "json")


def _get(path: str, endpoint: Endpoint, dialect: Dialect = "ollama", *, head: bool = False) -> Route:
    return Route(("GET", "HEAD") if head else ("GET",), path, endpoint, dialect)


_OPENAI = (
    _post("/v1/chat/completions", openai.chat, "openai"),
    _post("/v1/completions", openai.completions, "openai"),
    _post("/v1/embeddings", openai.embeddings, "openai"),
    _get("/v1/models", openai.models, "openai"),
    _get("/v1/models/{}", openai.model, "openai"),
    _post("/v1/responses", responses.responses, "openai"),
    _post("/v1/messages", anthropic.messages, "anthropic"),
)

_SPEECH = (
    Route(("POST",), "/v1/audio/transcriptions", speech.transcriptions, "openai"),
    Route(("POST",), "/v1/audio/translations", speech.transcriptions, "openai"),
)

ROUTES: dict[Kind, tuple[Route, ...]] = {
    "ollama": (
        _get("/", running, head=True),
        _get("/api/version", library.version, head=True),
        _get("/api/status", library.status),
        _get("/api/tags", library.tags, head=True),
        _get("/api/ps", library.ps),
        _post("/api/show", library.show),
        _post("/api/generate", native.generate),
        _post("/api/chat", native.chat),
        _post("/api/embed", native.embed),
        _post("/api/embeddings", native.embeddings),
        _post("/api/pull", library.pull),
        _post("/api/push", library.push),
        _post("/api/create", library.create),
        _post("/api/copy", library.copy),
        Route(("DELETE",), "/api/delete", library.delete, body="json"),
        Route(("HEAD",), "/api/blobs/{}", library.has_blob),
        Route(("POST",), "/api/blobs/{}", library.put_blob),
        Route(("POST",), "/api/me", library.me),
        Route(("POST",), "/api/signout", library.signout),
        Route(("DELETE",), "/api/user/keys/{}", library.signout),
        _get("/api/experimental/model-recommendations", library.recommendations),
        *_OPENAI,
    ),
    "openai": (
        _get("/health", pages.vllm_health),
        Route(("GET", "POST"), "/ping", pages.vllm_health),
        _get("/version", pages.vllm_version),
        _get("/load", pages.vllm_load),
        _get("/metrics", pages.metrics),
        _post("/v1/messages/count_tokens", anthropic.count_tokens, "anthropic"),
        *_OPENAI,
        *_SPEECH,
    ),
    "llamacpp": (
        _get("/health", pages.llamacpp_health),
        _get("/props", pages.llamacpp_props),
        _get("/slots", pages.llamacpp_slots),
        _get("/metrics", pages.metrics),
        _get("/models", openai.models, "openai"),
        _post("/tokenize", pages.llamacpp_tokenize),
        _post("/completion", pages.llamacpp_completion, "openai"),
        *_OPENAI,
    ),
    "asr": (
        _get("/health", pages.vllm_health),
        _get("/v1/models", openai.models, "openai"),
        _get("/v1/models/{}", openai.model, "openai"),
        *_SPEECH,
    ),
}


class Table:
    """The routes of one kind, ready to look up."""

    def __init__(self, kind: Kind) -> None:
        self._literal: dict[str, list[Route]] = {}
        self._templates: list[tuple[re.Pattern[str], Route]] = []
        for route in ROUTES[kind]:
            if "{}" in route.path:
                self._templates.append((route.pattern, route))
            else:
                self._literal.setdefault(route.path, []).append(route)

    def find(self, path: str) -> list[tuple[Route, tuple[str, ...]]]:
        """Every route of a path, whatever its method, with the decoded variable parts."""
        if path in self._literal:
            return [(route, ()) for route in self._literal[path]]
        matches = ((route, pattern.match(path)) for pattern, route in self._templates)
        return [(route, tuple(map(unquote, match.groups()))) for route, match in matches if match]
