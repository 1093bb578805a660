"""What the API document says is what is answered: schemathesis calls every operation of a whole service.

A few made-up requests each, always the same ones. No answer is a fault of ours (500), none has a status, a media type
or a shape that the document does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fleetproxy.testing.service import ADMIN_KEY, Service
from fleetproxy.testing.spawned import FakeProcess

CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
EXAMPLES = 3
#: Streams without end, sockets, channels that wait for their other end, and what waits for a slow fake.
LEFT_OUT = ("/stream", "/connect", "/state/live", "/api/transfer", "/v1/images/")
#: Nobody else is asked anything.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def service(fake: Callable[..., FakeProcess], start: Callable[..., Service]) -> Service:
    return start(
        {"a": fake("a", kind="ollama", models="phi").url},
        settings={
            "telegram": {"api_url": NOWHERE},
            "discovery": {"ollama_registry_url": NOWHERE, "huggingface_url": NOWHERE},
        },
    )


def operations(document: dict[str, Any]) -> Iterator[Any]:
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        if not any(word in operation.path for word in LEFT_OUT):
            yield operation


def test_every_operation_answers_as_the_document_says(service: Service) -> None:
    document = httpx.get(f"{service.url}/api/client/openapi.json").json()
    faults: list[str] = []
    calls = 0
    for operation in operations(document):

        @seed(1)
        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            nonlocal calls
            calls += 1
            answer = case.call(base_url=service.url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=20)
            if answer.status_code == 500:
                faults.append(f"{case.method} {case.path}: {answer.status_code} {answer.text[:300]}")
            try:
                case.validate_response(answer, checks=CHECKS)
            except BaseExceptionGroup as group:
                faults.append(f"{case.method} {case.path}: {group.exceptions[0]}"[:900])

        ask()
    assert not faults, "\n\n".join(dict.fromkeys(faults))
    assert calls > 300
