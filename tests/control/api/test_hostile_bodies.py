"""Whatever a caller sends, the answer is theirs to fix or it is done: never a fault of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from control_plane import PASSWORD, Control

from fleetproxy.core.backend import Backend, BackendState

HOSTILE: list[Any] = [
    None, True, 0, -1, 1.5, 2**53, 2**63, 2**64, 10**30, 1e308, "", " ", "x", "0", "-1", "\x00", "a\nb", "\u202e", "💥",
    "' OR 1=1 --", "<img src=x onerror=1>", "{{7*7}}", "../../x", "%2f", "x" * 5000, [], [1], [[]], {}, {"a": 1},
    "\ud83d", "2026-01-01T00:00:00Z", "http://10.0.0.1", "__proto__",
]  # fmt: skip

#: A body each route takes; every field is replaced by everything above in turn.
BODIES: dict[str, dict[str, Any]] = {
    "POST /api/auth/login": {"username": "nobody", "password": "wrong password"},
    "POST /api/auth/setup": {"username": "late", "password": PASSWORD, "token": "x"},
    "POST /api/users": {"username": "u", "password": PASSWORD, "isAdmin": False},
    "PUT /api/users/2": {"password": PASSWORD, "isAdmin": False, "currentPassword": PASSWORD},
    "POST /api/users/2/api-key": {
        "label": "l", "scopes": ["read"], "models": ["phi"], "maxInFlight": 1, "requestsPerMinute": 1,
        "expiresAt": "2027-01-01T00:00:00Z",
    },
    "POST /api/servers": {
        "name": "s", "url": "http://10.0.0.1", "kind": "ollama", "apiKey": "k", "vramGb": 1, "maxConcurrent": 1,
        "host": "10.0.0.2", "ramGb": 1, "backendType": "vllm", "metricsPort": 1, "isDisabled": False,
        "isDraining": False, "embeddingBatchSize": 1, "tlsVerify": True, "tlsServerName": "x",
        "hostHeader": "x", "http2": False,
    },
    "PATCH /api/servers/1": {"isDisabled": False, "isDraining": False, "vramGb": 1, "url": "http://10.0.0.1"},
    "POST /api/scheduled-jobs": {
        "name": "j", "sourceIdentifier": "s", "cronExpression": "@daily", "targetModel": "phi", "timezone": "UTC",
        "description": "d", "preferredServerId": 1, "expectedDurationMs": 1000, "isEnabled": True, "action": "prompt",
        "actionOptions": {"prompt": "x"}, "overlap": "skip", "misfireGraceSeconds": 60,
    },
    "PUT /api/scheduled-jobs/1": {
        "name": "j", "cronExpression": "@daily", "timezone": "UTC", "preferredServerId": 1, "expectedDurationMs": 1000,
        "isEnabled": True, "action": "none", "actionOptions": {}, "overlap": "skip", "misfireGraceSeconds": 60,
    },
    "PUT /api/settings/telegram": {"botToken": "/", "chatId": "1", "isEnabled": True},
    "PUT /api/settings/subscriptions": {},
    "PUT /api/settings/fleet": {"key": "intelligent_management_enabled", "value": True},
    "PUT /api/settings/webhook": {"url": "http://10.0.0.1", "secret": "s", "events": [], "isEnabled": True},
    "POST /api/models/pull": {"modelName": "m", "serverId": 99},
    "POST /api/models/delete": {"modelName": "m", "serverId": 99, "acknowledgeCustom": True},
    "POST /api/models/load": {"modelName": "m", "serverId": 99},
    "POST /api/models/unload": {"modelName": "m", "serverId": 99},
}  # fmt: skip

QUERIES = {
    "/api/events": ["hours"],
    "/api/server-events": ["hours"],
    "/api/usage": ["hours"],
    "/api/system-metrics": ["serverId", "hours"],
    "/api/discoveries": ["hours", "limit"],
    "/api/scheduled-jobs": ["enabled", "model"],
    "/api/scheduled-jobs/timeline": ["hours"],
    "/api/scheduled-jobs/suggestions": ["model", "durationMs", "hours"],
    "/api/scheduled-jobs/validate": ["cronExpression", "timezone"],
    "/api/scheduled-jobs/1/runs": ["limit"],
    "/api/models/actions": ["limit"],
}


def encoded(body: object) -> bytes:
    return json.dumps(body).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("route", BODIES)
async def test_any_body_is_taken_or_refused(control: Control, route: str) -> None:
    admin = await control.admin()
    await control.user(admin, "bob")
    await admin.post("/api/servers", json={"name": "gpu1", "url": "http://10.0.0.9"})
    await admin.post("/api/scheduled-jobs", json=BODIES["POST /api/scheduled-jobs"] | {"name": "first"})
    control.fleet.seen = [(Backend(name="gpu1", id=1, column=0), BackendState())]
    local = control.browser(**{"x-api-key": "l" * 64})
    caller = admin if route.split(" ")[1].startswith(("/api/auth", "/api/settings")) else local
    method, path = route.split(" ")
    valid = BODIES[route]
    bodies = [*HOSTILE, *({**valid, field: value} for field in valid for value in HOSTILE)]
    statuses = set()
    for body in bodies:
        answer = await caller.request(method, path, content=encoded(body), headers={"content-type": "application/json"})
        assert answer.status_code < 500, (route, body, answer.text)
        if answer.status_code >= 400:
            assert next(iter(answer.json())) == "error", (route, body, answer.text)
            assert answer.json()["error"]
        statuses.add(answer.status_code)
    assert statuses & {400, 401, 403, 404, 409, 429}


@pytest.mark.parametrize("path", QUERIES)
async def test_any_query_is_taken_or_refused(control: Control, path: str) -> None:
    admin = await control.admin()
    await admin.post("/api/scheduled-jobs", json=BODIES["POST /api/scheduled-jobs"])
    control.records.rows = {"request_counts": {"by_model": [], "by_server": [], "by_source": []}}  # type: ignore[dict-item]
    for name in QUERIES[path]:
        for value in HOSTILE:
            text = value if isinstance(value, str) else encoded(value).decode()
            if "\ud83d" in text:
                continue
            answer = await admin.get(path, params={name: text})
            assert answer.status_code < 500, (path, name, value, answer.text)
