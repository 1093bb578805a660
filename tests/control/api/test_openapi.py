"""The API document: everything that answers is in it, and it says what the handlers read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from fleetproxy.control import pages
from fleetproxy.control.api import client, openapi, reference
from fleetproxy.control.api.guard import policy_of
from fleetproxy.families import registry
from fleetproxy.families.llm import shapes

ALL = ("llm", "asr", "mcp", "transfer")
HANDLERS = [*reference.every_handler(), *client.handlers]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi.document(HANDLERS, ALL)))
    return made


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_endpoint_of_every_family_is_in_it(document: dict[str, Any]) -> None:
    for family in registry.BUILT_IN:
        for endpoint in family.endpoints:
            for method in endpoint.methods:
                if not endpoint.path.endswith("/") or endpoint.path == "/":
                    assert method.lower() in document["paths"][endpoint.path], endpoint.path


def test_every_route_of_control_is_in_it(document: dict[str, Any]) -> None:
    for path, handler in openapi._routes(HANDLERS):
        template = re.sub(r":\w+}", "}", path)
        operation = document["paths"][template][
            "get" if not hasattr(handler, "http_methods") else min(handler.http_methods).lower()
        ]
        assert operation["description"].endswith(f"For: {policy_of(handler)}."), path
        assert operation["summary"], path


def test_it_is_whole(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert sorted(names) == sorted(set(names))
    for reference_ in references(document):
        kind, name = reference_.removeprefix("#/components/").split("/")
        assert name in document["components"][kind]
    tags = {tag["name"] for tag in document["tags"]}
    for path, _, operation in operations(document):
        declared = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert declared == set(re.findall(r"{(\w+)}", path)), path
        assert set(operation["tags"]) <= tags
        assert operation["responses"]
        for needed in operation["security"]:
            assert set(needed) <= set(document["components"]["securitySchemes"])


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("get", "/api/analytics", {"hours", "fill"}),
        (
            "get",
            "/api/analytics/series",
            {
                "hours",
                "from",
                "to",
                "bucket",
                "group_by",
                "metrics",
                "top",
                "format",
                "model",
                "server",
                "source",
                "user",
                "status",
                "dialect",
                "outcome",
            },
        ),
        ("get", "/api/analytics/residency", {"hours", "from", "to", "format", "server", "model"}),
        ("get", "/api/events", {"hours"}),
        ("get", "/api/system-metrics", {"hours", "serverId"}),
        ("get", "/api/discoveries", {"hours", "limit"}),
        (
            "get",
            "/api/requests",
            {
                "hours",
                "from",
                "to",
                "model",
                "server",
                "source",
                "user",
                "outcome",
                "status",
                "request_id",
                "sort",
                "before",
                "limit",
                "format",
            },
        ),
        ("get", "/api/scheduled-jobs/validate", {"cronExpression", "timezone"}),
        ("get", "/api/servers", set()),
    ],
)
def test_query_parameters_are_those_the_handler_reads(
    document: dict[str, Any], method: str, path: str, query: set[str]
) -> None:
    parameters = document["paths"][path][method]["parameters"]
    assert {one["name"] for one in parameters if one["in"] == "query"} == query


def test_bodies_are_those_the_handler_reads(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    body = document["paths"]["/api/servers"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"name", "url", "maxConcurrent", "embeddingBatchSize"} <= set(
        schemas[body["$ref"].rpartition("/")[2]]["properties"]
    )
    assert schemas["NewServer"]["required"] == ["name"]
    body = document["paths"]["/api/settings/subscriptions"]["put"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert body["type"] == "array"
    for path, method, operation in operations(document):
        if method in ("put", "patch"):
            assert "requestBody" in operation, path


def test_every_schema_belongs_to_an_endpoint(document: dict[str, Any]) -> None:
    names = {endpoint.name for family in registry.BUILT_IN for endpoint in family.endpoints}
    assert set(shapes.BODIES) <= names
    for endpoint in registry.BUILT_IN[0].endpoints:
        if endpoint.has_model and endpoint.methods != ("GET",):
            assert endpoint.name in shapes.BODIES, endpoint.name


def test_a_family_that_is_off_is_not_in_it() -> None:
    paths = openapi.document(HANDLERS, ("mcp",))["paths"]
    assert not [path for path in paths if path.startswith(("/api/llm", "/api/asr", "/api/transfer"))]
    assert "/api/mcp/connect" in paths
    assert "/api/chat" in paths, "the main surface is no plugin"


DIGESTS = {
    "swagger-ui-bundle.js": "3f6abf70480db7e07914df4c98a77385f22ea585eaf457a3e6415ba0eae2d167",
    "swagger-ui.css": "c3cfe8248c4b0b89673600fb829924eafbac6de4bc4b2b06f5f5243483074d0a",
}


def test_swagger_ui_is_as_it_was_published_and_loads_nothing_from_elsewhere() -> None:
    import gzip

    files = pages.folder("client")
    for name, digest in DIGESTS.items():
        assert files[name].gzipped
        assert hashlib.sha256(gzip.decompress(files[name].content)).hexdigest() == digest
    assert b"Apache License" in files["LICENSE.txt"].content
    for name in ("client.html", "client.js"):
        assert not re.search(rb"https?:|//[a-z]", files[name].content.replace(b"<!doctype html>", b""))
        assert b" on" not in files["client.html"].content.partition(b"<body>")[2].partition(b"<noscript>")[0]
