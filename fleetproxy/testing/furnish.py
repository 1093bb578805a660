"""What people would have set up by now in the demo: users with keys, and jobs, two of which are in each other's way."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
import orjson

from fleetproxy.testing.raw import Answer, exchange, request

#: Name, whether an administrator, labels of the keys.
USERS: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    ("ada", False, ("notebook",)),
    ("grace", True, ("code-helper", "laptop")),
    ("batch", False, ("nightly",)),
)
#: As `POST /api/scheduled-jobs` takes them. The first and the third want one model on one server at one time.
JOBS: tuple[dict[str, Any], ...] = (
    {
        "name": "Summaries of the day",
        "description": "Tickets of the day, one paragraph each",
        "sourceIdentifier": "nightly-batch",
        "cronExpression": "0 2 * * *",
        "targetModel": "llama3.1:8b",
        "preferredServerId": 1,
        "expectedDurationMs": 45 * 60_000,
    },
    {
        "name": "Documents for search",
        "description": "New documents become vectors",
        "sourceIdentifier": "nightly-batch",
        "cronExpression": "30 3 * * *",
        "targetModel": "nomic-embed-text",
        "expectedDurationMs": 25 * 60_000,
    },
    {
        "name": "Weekly report",
        "description": "Runs while the summaries still do: see its conflict",
        "sourceIdentifier": "notebook",
        "cronExpression": "30 2 * * *",
        "targetModel": "llama3.1:8b",
        "preferredServerId": 1,
        "expectedDurationMs": 30 * 60_000,
    },
    {
        "name": "Keep the chat model warm",
        "sourceIdentifier": "support-bot",
        "cronExpression": "*/5 * * * *",
        "targetModel": "llama3.2:3b",
        "preferredServerId": 1,
        "expectedDurationMs": 20_000,
        "action": "preload",
    },
    {
        "name": "Old evaluation",
        "sourceIdentifier": "notebook",
        "cronExpression": "0 12 * * 1",
        "targetModel": "qwen3:8b",
        "expectedDurationMs": 10 * 60_000,
        "isEnabled": False,
    },
)


class Refused(Exception):
    """The service would not have it."""


class Administrator(msgspec.Struct, frozen=True):
    """A logged-in administrator of the service at 127.0.0.1:`port`."""

    port: int
    #: As sent in `Cookie`.
    cookie: str

    async def post(self, path: str, body: object) -> Any:
        """What the API answers. Raises Refused, OSError."""
        return orjson.loads((await post(self.port, path, body, [("Cookie", self.cookie)])).body)


async def set_up(port: int, username: str, password: str) -> Administrator:
    """Make the first administrator. Raises Refused, OSError."""
    answer = await post(port, "/api/auth/setup", {"username": username, "password": password})
    cookie = next(value for name, value in answer.headers if name.lower() == "set-cookie")
    return Administrator(port, cookie.partition(";")[0])


async def furnish(administrator: Administrator) -> None:
    """Make the jobs, then the users with their keys (their passwords are kept nowhere). Raises Refused, OSError."""
    for job in JOBS:
        await administrator.post("/api/scheduled-jobs", job)
    for name, is_admin, labels in USERS:
        fields = {"username": name, "password": secrets.token_urlsafe(12), "isAdmin": is_admin}
        user = await administrator.post("/api/users", fields)
        for label in labels:
            await administrator.post(f"/api/users/{user['id']}/api-key", {"label": label})


async def post(port: int, path: str, body: object, headers: list[tuple[str, str]] | None = None) -> Answer:
    host = f"127.0.0.1:{port}"
    fields = [("Origin", f"http://{host}"), *(headers or [])]
    answer = await exchange("127.0.0.1", port, request("POST", path, orjson.dumps(body), fields, host=host))
    if answer.status not in (200, 201):
        raise Refused(f"POST {path}: {answer.status} {answer.body.decode(errors='replace')}")
    return answer
