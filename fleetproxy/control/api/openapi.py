"""The OpenAPI document of everything that answers here: the families' endpoint tables, and control's own routes.

Nothing is written twice. Paths, methods and words come from the tables and the handlers; which query parameters and
which body a handler takes is read off its source, where it reads them (`reading.hours(request, 24)`,
`reading.body(request, Shape, ...)`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from litestar import Litestar, Response
from litestar.handlers import ASGIRouteHandler, BaseRouteHandler, HTTPRouteHandler
from litestar.types import ControllerRouterHandler

from fleetproxy import __version__
from fleetproxy.control.api import handler_reading
from fleetproxy.control.api.answers import ANSWERS, FURTHER, MEDIA
from fleetproxy.control.api.guard import Policy, policy_of
from fleetproxy.core.operation import Endpoint
from fleetproxy.families import registry
from fleetproxy.families.llm import shapes

Schema = dict[str, Any]

_ABOUT = """\
One address in front of a fleet of inference servers. The main surface is that of Ollama, OpenAI and Anthropic: clients
change their base URL and nothing else. Beside it there are the families' own surfaces (`/api/llm`, `/api/asr`,
`/api/mcp`, `/api/transfer`) and the dashboard API.

Any other path under `/api/` and `/v1/`, with any method, goes to a server unchanged.
"""
_KEYS: list[dict[str, list[str]]] = [{"bearer": []}, {"ollamaKey": []}, {"apiKey": []}]
_COOKIE: dict[str, list[str]] = {"session": []}
#: What a policy asks for. An empty object is "nothing": some surfaces are open until a key is configured.
_SECURITY: dict[Policy, list[dict[str, list[str]]]] = {
    "public": [],
    "family": [{}, *_KEYS, _COOKIE],
    "user": [*_KEYS, _COOKIE],
    "admin": [*_KEYS, _COOKIE],
    "self-or-admin": [*_KEYS, _COOKIE],
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "ollamaKey": {"type": "apiKey", "in": "header", "name": "X-Ollama-Api-Key"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "session": {"type": "apiKey", "in": "cookie", "name": "fleet_session"},
}
_ERRORS: dict[str, Schema] = {
    "Refusal": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "properties": {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")},
            },
            "request_id": {"type": "string"},
        },
    },
    "RpcError": {
        "type": "object",
        "required": ["jsonrpc", "error"],
        "properties": {
            "jsonrpc": {"const": "2.0"},
            "id": {"type": ["string", "integer", "number", "null"]},
            "error": {
                "type": "object",
                "required": ["code", "message"],
                "properties": {"code": {"type": "integer"}, "message": {"type": "string"}, "data": {}},
            },
        },
    },
    "AnthropicError": {
        "type": "object",
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
            },
            "request_id": {"type": "string"},
        },
    },
}
_REFUSAL: Schema = {"schema": {"$ref": "#/components/schemas/Refusal"}}
_ERROR_OF = {"openai": "OpenAIError", "nfrx": "OpenAIError", "anthropic": "AnthropicError"}
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
_NO_WORD = re.compile(r"\W+")
_HEADERS = (
    ("X-Ollama-Pin-Server", "Name of the one server that is to answer."),
    ("X-Ollama-Source", "Who asks, for the record; a key's owner comes before it."),
    ("X-Request-Id", "An id for the request; one is made where there is none."),
)
_CONNECT = {
    "llm": "Workers dial in here (WebSocket): agents of nfrx, or of fleetproxy with the subprotocol `fleetproxy.v1`.",
    "asr": "Transcription workers dial in here (WebSocket).",
    "mcp": "MCP relays dial in here (WebSocket).",
}


def document(handlers: Sequence[ControllerRouterHandler], plugins: Iterable[str]) -> Schema:
    """The document, for these routes of control and with these families on."""
    on = frozenset(plugins)
    paths: dict[str, Schema] = {}
    schemas = dict(_ERRORS)
    for endpoint in _endpoints(on):
        template = _PARAMETER.sub(r"{\1}", endpoint.path)
        for method in endpoint.methods:
            paths.setdefault(template, {})[method.lower()] = _inference(endpoint, method)
    for family, words in _CONNECT.items():
        if family in on:
            paths[f"/api/{family}/connect"] = {"get": _connect(family, words)}
            paths[f"/api/{family}"] = {**paths.get(f"/api/{family}", {}), "get": _descriptor(family)}
    for path, handler in sorted(_routes(handlers), key=lambda one: one[0]):
        template = _PARAMETER.sub(r"{\1}", path)
        methods = handler.http_methods if isinstance(handler, HTTPRouteHandler) else {"GET"}
        for method in sorted(methods):
            paths.setdefault(template, {})[method.lower()] = _own(template, method, handler, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "fleetproxy", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in sorted(_tags(paths))],
        "paths": {path: dict(sorted(methods.items())) for path, methods in sorted(paths.items())},
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": _SCHEMES},
    }


def _endpoints(on: frozenset[str]) -> Iterator[Endpoint]:
    for family in registry.BUILT_IN:
        for endpoint in family.endpoints:
            doubled = len(endpoint.path) > 1 and endpoint.path.endswith("/")
            if not doubled and (endpoint.surface == "main" or endpoint.family in on):
                yield endpoint


def _tags(paths: Mapping[str, Mapping[str, Schema]]) -> set[str]:
    return {tag for methods in paths.values() for operation in methods.values() for tag in operation["tags"]}


# --- the families' endpoints -----------------------------------------------------------------------------------------


def _inference(endpoint: Endpoint, method: str) -> Schema:
    kind = "RpcError" if endpoint.family == "mcp" else _ERROR_OF.get(endpoint.voice, "Refusal")
    error: Schema = {"$ref": f"#/components/schemas/{kind}"}
    if kind == "RpcError":  # what the gate refuses has not been read as an RPC
        error = {"anyOf": [error, _REFUSAL["schema"]]}
    # A server's own refusal goes through as it is, whatever that is.
    also: Schema = {"*/*": {"schema": {}}} if endpoint.shape in ("relay", "scatter") else {}
    operation: Schema = {
        "operationId": f"{endpoint.name}_{method.lower()}",
        "tags": [f"{endpoint.family}: {endpoint.dialect}" if endpoint.surface == "main" else f"/api/{endpoint.family}"],
        "summary": endpoint.doc.partition(". ")[0].rstrip("."),
        "description": endpoint.doc,
        "parameters": [*_path_parameters(endpoint.path), *_own_headers(endpoint)],
        "responses": {
            "200": {"description": "As the server answers.", "content": _answer(endpoint)},
            "default": {"description": "Refused.", "content": {"application/json": {"schema": error}, **also}},
        },
        "security": [{}, *_KEYS],
    }
    body = _body(endpoint, method)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _body(endpoint: Endpoint, method: str) -> Schema | None:
    schema = shapes.BODIES.get(endpoint.name)
    if schema is not None:
        return {"required": True, "content": {"application/json": {"schema": schema}}}
    if endpoint.name in shapes.FORMS:
        form = {
            "type": "object",
            "properties": {"file": {"type": "string", "format": "binary"}, "model": {"type": "string"}},
        }
        return {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    if endpoint.upload:
        return {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    if method in ("POST", "PUT", "PATCH") and endpoint.family == "mcp":
        return {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
    return None


def _answer(endpoint: Endpoint) -> Schema:
    if endpoint.shape == "local" and endpoint.path == "/":
        return {"text/plain": {"schema": {"type": "string"}}}
    kinds: Schema = {"application/json": {"schema": {"type": "object"}}}
    marker = endpoint.marker_stream
    if marker is not None:
        kinds["application/x-ndjson" if marker.startswith("ndjson") else "text/event-stream"] = {
            "schema": {"type": "string"}
        }
    return kinds


def _own_headers(endpoint: Endpoint) -> Iterator[Schema]:
    if endpoint.shape in ("relay", "scatter"):
        for name, words in _HEADERS:
            if name != "X-Ollama-Pin-Server" or not endpoint.pinned:
                yield {"name": name, "in": "header", "description": words, "schema": {"type": "string"}}


def _connect(family: str, words: str) -> Schema:
    return {
        "operationId": f"{family}_connect",
        "tags": [f"/api/{family}"],
        "summary": "Dial in",
        "description": words,
        "responses": {"101": {"description": "The socket is open."}},
        "security": [{}, {"bearer": []}],
    }


def _descriptor(family: str) -> Schema:
    return {
        "operationId": f"{family}_descriptor",
        "tags": [f"/api/{family}"],
        "summary": "What this family is",
        "description": "What this family is, and the settings that steer it.",
        "responses": {
            "200": {"description": "The descriptor.", "content": {"application/json": {"schema": {"type": "object"}}}}
        },
        "security": [],
    }


def _path_parameters(path: str) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(path)
    ]


# --- control's routes ------------------------------------------------------------------------------------------------


def _routes(handlers: Sequence[ControllerRouterHandler]) -> Iterator[tuple[str, BaseRouteHandler]]:
    app = Litestar(list(handlers), openapi_config=None)
    for route in app.routes:
        for handler in getattr(route, "route_handlers", None) or [getattr(route, "route_handler", None)]:
            of_ours = isinstance(handler, HTTPRouteHandler) and handler.http_methods != {"OPTIONS"}
            if of_ours or isinstance(handler, ASGIRouteHandler):
                yield route.path, handler


def _own(path: str, method: str, handler: BaseRouteHandler, schemas: dict[str, Schema]) -> Schema:
    function = _function(handler)
    words = " ".join((inspect.getdoc(function) or "").split())
    policy = policy_of(handler) or "admin"
    read = handler_reading.read(function)
    # Routes may say more of their parameters than their source does.
    read.query |= handler.opt.get("parameters", {})
    tags = sorted(getattr(handler, "resolve_tags", frozenset[str])()) or ["state"]
    operation: Schema = {
        "operationId": f"{method.lower()}_{_NO_WORD.sub('_', path).strip('_')}",
        "tags": [f"dashboard: {tag}" for tag in tags],
        "summary": words.partition(". ")[0].rstrip("."),
        "description": f"{words}\n\nFor: {policy}.",
        "parameters": [
            *_path_parameters(path),
            *({"name": name, "in": "query", "schema": schema} for name, schema in read.query.items()),
        ],
        "responses": {
            str(getattr(handler, "status_code", 200)): {
                "description": "Done.",
                "content": _content(function, f"{method} {path}", schemas),
            },
            **{status: {"description": text} for status, text in FURTHER.get(f"{method} {path}", {}).items()},
            "default": {"description": "Refused.", "content": {"application/json": _REFUSAL}},
        },
        "security": _SECURITY[policy],
    }
    if read.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(read.body, schemas)}},
        }
    return operation


def _function(handler: BaseRouteHandler) -> Callable[..., Any]:
    function = handler.fn
    return getattr(function, "value", function)


def _content(function: Callable[..., Any], call: str, schemas: dict[str, Schema]) -> Schema:
    """What a call (`GET /api/servers`) answers: as the table of answers says, else as the handler is annotated."""
    answer = ANSWERS.get(call, _hints(function).get("return"))
    if get_origin(answer) is Response:
        answer = get_args(answer)[0]
    kinds = MEDIA.get(call)
    if kinds is not None:
        json = {} if answer in (None, bytes) else _schema(answer, schemas)
        return {kind: {"schema": json if kind == "application/json" else {"type": "string"}} for kind in kinds}
    if answer in (None, type(None), bytes, Any, inspect.Signature.empty):
        return {"application/json": {"schema": {}}}
    return {"application/json": {"schema": _schema(answer, schemas)}}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError):
        return {}


def _schema(shape: Any, schemas: dict[str, Schema]) -> Schema:
    """The schema of a type; the structs in it go into `schemas`."""
    try:
        (found,), components = msgspec.json.schema_components((shape,), ref_template="#/components/schemas/{name}")
    except (TypeError, ValueError):
        return {"type": "object"}
    for component in components.values():
        # Our answers may grow: who reads them must not mind.
        if component.get("additionalProperties") is False:
            del component["additionalProperties"]
    for name, component in components.items():
        if schemas.setdefault(name, component) != component:
            raise ValueError(f"two shapes of the API are called {name}")
    return found
