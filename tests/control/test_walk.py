"""Every route of control, called as everybody: who may, who may not. A route that is not in the table fails."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from fleetproxy.control.api.guard import policy_of, undeclared
from fleetproxy.control.main import Control
from fleetproxy.process import Process
from fleetproxy.settings import Auth, Settings
from tests.control.running import Running, control, prepare, short_folder

PASSWORD = "correct horse 7"
SETTINGS = Settings(auth=Auth(admin_key="admin-key-of-the-tests"))

#: Who each route is for. `{…}` stand for numbers: 1 is the administrator, 2 the user, 999 nobody and nothing.
ROUTES: dict[str, str] = {
    "GET /": "public",
    "POST /api/auth/login": "public",
    "POST /api/auth/logout": "public",
    "GET /api/auth/me": "public",
    "POST /api/auth/setup": "public",
    "GET /api/servers": "user",
    "POST /api/servers": "admin",
    "POST /api/servers/test": "admin",
    "POST /api/servers/{server_id:str}/test": "admin",
    "PATCH /api/servers/{server_id:str}": "admin",
    "DELETE /api/servers/{server_id:str}": "admin",
    "GET /api/events": "user",
    "GET /api/requests": "user",
    "GET /api/requests/{request_id:str}": "user",
    "GET /api/usage": "user",
    "GET /api/server-events": "user",
    "GET /api/analytics": "user",
    "GET /api/analytics/series": "user",
    "GET /api/analytics/residency": "user",
    "GET /api/recommendations": "user",
    "GET /api/discoveries": "user",
    "GET /api/plugins": "user",
    "GET /api/system-metrics": "user",
    "POST /api/poll": "user",
    "GET /api/scheduled-jobs": "user",
    "POST /api/scheduled-jobs": "admin",
    "GET /api/scheduled-jobs/{job_id:str}": "user",
    "PUT /api/scheduled-jobs/{job_id:str}": "admin",
    "DELETE /api/scheduled-jobs/{job_id:str}": "admin",
    "POST /api/scheduled-jobs/{job_id:str}/run": "admin",
    "GET /api/scheduled-jobs/{job_id:str}/runs": "user",
    "GET /api/scheduled-jobs/timeline": "user",
    "GET /api/scheduled-jobs/suggestions": "user",
    "GET /api/scheduled-jobs/validate": "user",
    "GET /api/scheduled-jobs/discover": "admin",
    "POST /api/scheduled-jobs/discover": "admin",
    "GET /api/users": "admin",
    "POST /api/users": "admin",
    "PUT /api/users/{user_id:str}": "self-or-admin",
    "PATCH /api/users/{user_id:str}": "self-or-admin",
    "DELETE /api/users/{user_id:str}": "admin",
    "POST /api/users/{user_id:str}/api-key": "self-or-admin",
    "GET /api/users/{user_id:str}/api-keys": "self-or-admin",
    "DELETE /api/users/{user_id:str}/api-keys/{key_id:str}": "self-or-admin",
    "GET /api/settings/telegram": "user",
    "PUT /api/settings/telegram": "user",
    "DELETE /api/settings/telegram": "user",
    "POST /api/settings/telegram/test": "user",
    "GET /api/settings/subscriptions": "user",
    "PUT /api/settings/subscriptions": "user",
    "GET /api/settings/fleet": "user",
    "PUT /api/settings/fleet": "admin",
    "GET /api/settings/webhook": "admin",
    "PUT /api/settings/webhook": "admin",
    "DELETE /api/settings/webhook": "admin",
    "POST /api/settings/webhook/test": "admin",
    "GET /api/workers": "user",
    "PATCH /api/workers/{worker_id:str}": "admin",
    "POST /api/workers/{worker_id:str}/drain": "admin",
    "POST /api/workers/{worker_id:str}/undrain": "admin",
    "GET /api/models/explain": "user",
    "GET /api/models/registry-check": "user",
    "POST /api/models/pull": "admin",
    "POST /api/models/delete": "admin",
    "POST /api/models/load": "admin",
    "POST /api/models/unload": "admin",
    "GET /api/models/actions": "admin",
    "POST /api/models/actions/{action_id:str}/cancel": "admin",
}
#: Routes of other parts: their own tests say what they answer; here only who may ask.
OTHERS = (
    "/api/query",
    "/metrics",
    "/healthz",
    "/livez",
    "/health",
    "/readyz",
    "/api/state",
    "/state",
    "/api/client",
    "/dashboard",
)

USER_ID, ADMIN_ID = "2", "1"


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class People:
    """Everybody who might call, by name."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.clients: dict[str, httpx.AsyncClient] = {}

    async def __aenter__(self) -> People:
        try:
            await self._come()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _come(self) -> None:
        anonymous = self.clients["anonymous"] = self.running.browser()
        admin = self.clients["admin"] = self.running.browser()
        made = await admin.post("/api/auth/setup", json={"username": "root", "password": PASSWORD})
        assert made.status_code == 200, made.text
        await admin.post("/api/users", json={"username": "bob", "password": PASSWORD})
        user = self.clients["user"] = self.running.browser()
        await user.post("/api/auth/login", json={"username": "bob", "password": PASSWORD})
        self.clients["forged cookie"] = self.running.browser(cookie="fleet_session=" + "0" * 64)
        self.clients["admin key"] = self.running.browser(authorization="Bearer admin-key-of-the-tests")
        self.clients["wrong key"] = self.running.browser(authorization="Bearer admin-key-of-the-test")
        for scope in ("inference", "read", "manage"):
            body = {"label": scope, "scopes": [scope]}
            key = (await admin.post("/api/users/1/api-key", json=body)).json()["apiKey"]
            self.clients[f"{scope} key"] = self.running.browser(**{"x-api-key": key})
        ended = self.clients["ended session"] = self.running.browser()
        await ended.post("/api/auth/login", json={"username": "bob", "password": PASSWORD})
        cookie = ended.cookies["fleet_session"]
        await ended.post("/api/auth/logout")
        ended.cookies.set("fleet_session", cookie)
        assert anonymous

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients.values():
            await client.aclose()

    async def ask(self, who: str, method: str, path: str) -> int:
        """Ask for something that does not exist or makes no sense: nothing is changed by whoever may."""
        body = None if method in ("GET", "DELETE") else b'"nonsense"'
        headers = {"content-type": "application/json"} if body else {}
        answer = await self.clients[who].request(method, path, content=body, headers=headers)
        assert answer.status_code < 500, (who, method, path, answer.text)
        if answer.status_code >= 400:
            assert answer.headers["content-type"].startswith("application/json"), (who, method, path)
            assert answer.json(), (who, method, path)
        if path.startswith("/api/") and answer.status_code != 204:
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
        return answer.status_code


def concrete(template: str, number: str) -> str:
    parts = [
        number if part.startswith("{user_id") else "999" if part.startswith("{") else part
        for part in template.split("/")
    ]
    return "/".join(parts)


STRANGERS = ("anonymous", "forged cookie", "wrong key", "ended session")


def expected(policy: str, who: str, method: str, own: bool) -> set[int] | None:
    """The statuses of a refusal; None when the guard lets the call through."""
    if policy == "public":
        return None
    if who in STRANGERS:
        return {401}
    if who == "inference key" or (who == "read key" and method != "GET"):
        return {403}
    if who == "user" and (policy == "admin" or (policy == "self-or-admin" and not own)):
        return {403}
    return None


#: Keys of nobody have no chat and no subscriptions.
_OWN = ("/api/settings/telegram", "/api/settings/telegram/test", "/api/settings/subscriptions")


async def test_everybody_is_let_in_where_they_may_and_nowhere_else(folder: Path) -> None:
    async with control(folder, SETTINGS) as running, People(running) as people:
        for route, policy in ROUTES.items():
            method, template = route.split(" ")
            if route == "POST /api/auth/logout":
                continue  # ends the sessions of those who call; told below
            for number in (USER_ID, ADMIN_ID) if policy == "self-or-admin" else ("999",):
                for who in people.clients:
                    status = await people.ask(who, method, concrete(template, number))
                    refusal = expected(policy, who, method, own=number == USER_ID)
                    if refusal is not None:
                        assert status in refusal, (who, route, number, status)
                    elif who == "admin key" and template in _OWN:
                        assert status in (400, 403)
                    elif route not in ("GET /api/auth/me", "POST /api/auth/setup", "POST /api/auth/login"):
                        assert status not in (401, 403), (who, route, number, status)
        admin = people.clients["admin"]
        assert [user["username"] for user in (await admin.get("/api/users")).json()] == ["root", "bob"]


async def test_the_table_has_every_route_and_every_route_its_policy(folder: Path) -> None:
    prepare(folder, SETTINGS)
    async with AsyncExitStack() as stack:
        app = (await Control.build(Process("control", 0, folder), stack)).web.application()
        assert undeclared(app) == []
        found = {}
        for route in app.routes:
            for handler in getattr(route, "route_handlers", ()):
                for method in getattr(handler, "http_methods", ()):
                    if method != "OPTIONS":
                        found[f"{method} {route.path}"] = policy_of(handler)
        ours = {route: policy for route, policy in found.items() if not route.split(" ")[1].startswith(OTHERS)}
        assert ours == ROUTES


async def test_other_methods_and_paths_are_refused_as_json(folder: Path) -> None:
    async with control(folder, SETTINGS) as running, People(running) as people:
        for who in ("anonymous", "user", "admin"):
            for path in ("/api/users", "/api/servers", "/api/scheduled-jobs/timeline", "/api/auth/login"):
                for method in ("PATCH", "TRACE", "PROPFIND", "DELETE"):
                    if f"{method} {path}" not in ROUTES:
                        assert await people.ask(who, method, path) == 405
            for path in ("/api/nothing", "/api/users/1/nothing", "/api/settings", "/api/auth"):
                assert await people.ask(who, "GET", path) == 404


async def test_options_tell_every_method_of_a_path(folder: Path) -> None:
    methods: dict[str, set[str]] = {}
    for route in ROUTES:
        method, template = route.split(" ")
        methods.setdefault(concrete(template, "1"), {"OPTIONS"}).add(method)
    async with control(folder, SETTINGS) as running, running.browser() as stranger:
        for path, wanted in methods.items():
            answer = await stranger.options(path)
            assert answer.status_code == 204
            assert wanted <= set(answer.headers["allow"].split(", ")), path


async def test_secrets_are_in_no_answer(folder: Path) -> None:
    """Whatever is asked by whoever, what was written as a secret never comes back."""
    async with control(folder, SETTINGS) as running, People(running) as people:
        admin = people.clients["admin"]
        await admin.post("/api/servers", json={"name": "s", "url": "http://127.0.0.1:1", "apiKey": "canary-server-key"})
        await admin.put("/api/settings/webhook", json={"url": "http://127.0.0.1:1/", "secret": "canary-hook-secret"})
        key = (await admin.post("/api/users/1/api-key")).json()["apiKey"]
        secrets = ["canary", key, PASSWORD, admin.cookies["fleet_session"], "admin-key-of-the-tests", "$argon2"]
        for route in ROUTES:
            method, template = route.split(" ")
            if method != "GET":
                continue
            for who in ("admin", "user", "anonymous"):
                answer = await people.clients[who].get(concrete(template, ADMIN_ID))
                leaked = [secret for secret in secrets if secret in answer.text]
                assert not leaked, (route, who, leaked)
