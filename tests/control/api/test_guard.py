"""The one guard: policies, carriers, origins, media types."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from control_plane import PASSWORD, Control, make_control
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from litestar import Litestar, get

from fleetproxy.control.api.guard import USER, undeclared
from fleetproxy.control.api.peer import direct, linked
from fleetproxy.settings import Auth, Settings

ADMIN_KEY = "the-admin-key-of-this-fleet"


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[Control]:
    control = await make_control(tmp_path, Settings(auth=Auth(admin_key=ADMIN_KEY)))
    yield control
    await control.services.close()
    await control.caller.aclose()


def test_every_route_declares_a_policy(control: Control) -> None:
    assert undeclared(control.app) == []


async def test_a_route_that_forgot_is_listed_and_closed(control: Control) -> None:
    @get("/api/forgotten")
    async def forgotten() -> str:
        return "secret"

    @get("/api/declared", opt=USER)
    async def declared() -> str:
        return "fine"

    app = Litestar([forgotten, declared], guards=[control.services.guard], openapi_config=None)
    assert undeclared(app) == ["GET /api/forgotten"]
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://t")  # type: ignore[arg-type]
    answer = await client.get("/api/forgotten", headers={"authorization": f"Bearer {ADMIN_KEY}"})
    assert answer.status_code in (403, 500)
    assert "secret" not in answer.text


async def test_nobody_gets_401_and_a_user_403(control: Control) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    assert (await control.browser().get("/api/users")).status_code == 401
    answer = await bob.get("/api/users")
    assert (answer.status_code, answer.json()) == (403, {"error": "Forbidden"})
    for token in ("x", "0" * 64, "' OR 1=1 --"):
        stranger = control.browser()
        stranger.cookies.set("fleet_session", token)
        answer = await stranger.get("/api/users")
        assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})


async def test_a_stale_cookie_does_not_hide_the_good_one(control: Control) -> None:
    admin = await control.admin()
    good = admin.cookies["fleet_session"]
    answer = await control.browser().get("/api/users", headers={"cookie": f"fleet_session=stale; fleet_session={good}"})
    assert answer.status_code == 200


# --- keys ----------------------------------------------------------------------------------------------------------

CARRIERS = {
    "Authorization": lambda key: {"Authorization": f"Bearer {key}"},
    "bearer": lambda key: {"authorization": f"bearer {key}"},
    "X-Ollama-Api-Key": lambda key: {"X-Ollama-Api-Key": key},
    "x-api-key": lambda key: {"x-api-key": key},
    "all the same": lambda key: {"Authorization": f"Bearer {key}", "x-api-key": key},
}


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_every_carrier_opens_and_closes_the_same_doors(control: Control, carrier: str) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    made = await bob.post("/api/auth/logout")
    assert made.status_code == 200
    keys = {}
    for scope in ("inference", "read", "manage"):
        body = {"label": scope, "scopes": [scope]}
        keys[scope] = (await admin.post("/api/users/1/api-key", json=body)).json()["apiKey"]
        keys[f"bob {scope}"] = (await admin.post("/api/users/2/api-key", json=body)).json()["apiKey"]
    doors = [("GET", "/api/users"), ("GET", "/api/users/2/api-keys"), ("POST", "/api/users/2/api-key")]
    opened = {}
    for name, key in {**keys, "admin key": ADMIN_KEY, "local": "l" * 64, "wrong": "0" * 64}.items():
        headers = CARRIERS[carrier](key)
        opened[name] = [(await control.browser().request(*door, headers=headers)).status_code for door in doors]
    assert opened == {
        "inference": [403, 403, 403],
        "read": [200, 200, 403],
        "manage": [200, 200, 200],
        "bob inference": [403, 403, 403],
        "bob read": [403, 200, 403],
        "bob manage": [403, 200, 200],
        "admin key": [200, 200, 200],
        "local": [200, 200, 200],
        "wrong": [401, 401, 401],
    }


NO_KEYS = {
    "prefix": lambda key: {"x-api-key": key[:-1]},
    "upper case": lambda key: {"x-api-key": key.upper()},
    "padded": lambda key: {"x-api-key": f"{key} x"},
    "basic": lambda key: {"authorization": f"Basic {key}"},
    "no scheme": lambda key: {"authorization": key},
    "empty": lambda key: {"authorization": "Bearer "},
    "empty x": lambda key: {"x-api-key": ""},
    "long": lambda key: {"x-api-key": key * 20},
    "injection": lambda key: {"x-api-key": "' OR 1=1 --"},
    "cookie": lambda key: {"cookie": f"fleet_session={key}"},
    "other cookie": lambda key: {"cookie": f"api_key={key}"},
}


@pytest.mark.parametrize("form", NO_KEYS)
async def test_what_is_not_the_key_opens_nothing(control: Control, form: str) -> None:
    admin = await control.admin()
    key = (await admin.post("/api/users/1/api-key", json={"scopes": ["manage"]})).json()["apiKey"]
    answer = await control.browser().get("/api/users", headers=NO_KEYS[form](key))
    assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})


async def test_keys_in_the_query_open_nothing(control: Control) -> None:
    assert (await control.browser().get(f"/api/users?api_key={ADMIN_KEY}&key={ADMIN_KEY}")).status_code == 401


async def test_two_different_keys_are_a_riddle(control: Control) -> None:
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "x-api-key": "something else"}
    assert (await control.browser().get("/api/users", headers=headers)).status_code == 400


async def test_a_wrong_key_beside_a_good_cookie_is_refused(control: Control) -> None:
    admin = await control.admin()
    assert (await admin.get("/api/users", headers={"x-api-key": "0" * 64})).status_code == 401


async def test_on_public_paths_other_keys_are_not_looked_at(control: Control) -> None:
    await control.admin()
    login = {"username": "root", "password": PASSWORD}
    answer = await control.browser().post("/api/auth/login", json=login, headers={"authorization": "Bearer whatever"})
    assert answer.status_code == 200


async def test_keys_of_nobody_own_nothing(control: Control) -> None:
    answer = await control.browser().get("/api/auth/me", headers={"x-api-key": ADMIN_KEY})
    assert answer.json() == {"needsSetup": True, "user": None, "needsToken": False}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.binary(max_size=200).filter(lambda raw: not set(raw) & {0, 10, 13}))
async def test_any_bytes_for_a_key_are_refused_politely(control: Control, raw: bytes) -> None:
    request = httpx.Request("GET", "http://127.0.0.1/api/users", headers=[(b"authorization", b"Bearer " + raw)])
    assert (await control.browser().send(request)).status_code == 401


# --- pages of other sites ------------------------------------------------------------------------------------------

REFUSED_ORIGINS = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1"},  # another port is another site
    {"origin": "http://127.0.0.1:3334.evil.example"},
    {"origin": "http://127.0.0.1:33340"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:3334"},
    {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:3334"},
]


@pytest.mark.parametrize("headers", REFUSED_ORIGINS, ids=str)
async def test_pages_of_other_sites_change_nothing(control: Control, headers: dict[str, str]) -> None:
    admin = await control.admin()
    calls = [
        ("POST", "/api/users", {"username": "eve", "password": PASSWORD}),
        ("POST", "/api/auth/login", {"username": "root", "password": PASSWORD}),
        ("POST", "/api/auth/logout", None),
        ("DELETE", "/api/users/1", None),
    ]
    for method, path, payload in calls:
        assert (await admin.request(method, path, json=payload, headers=headers)).status_code == 403
    assert [user["username"] for user in (await admin.get("/api/users")).json()] == ["root"]


@pytest.mark.parametrize(
    "headers", [{"origin": "http://127.0.0.1:3334"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}]
)
async def test_our_own_pages_and_programs_may(control: Control, headers: dict[str, str]) -> None:
    admin = await control.admin()
    answer = await admin.post("/api/users", json={"username": "eve", "password": PASSWORD}, headers=headers)
    assert answer.status_code == 201


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", ""],
)
async def test_bodies_that_forms_can_send_are_refused(control: Control, media_type: str) -> None:
    admin = await control.admin()
    body = b'{"username":"eve","password":"correct horse 7"}'
    answer = await admin.post("/api/users", content=body, headers={"content-type": media_type})
    assert answer.status_code == 415
    answer = await admin.post("/api/users", content=body, headers={"content-type": "application/json; charset=utf-8"})
    assert answer.status_code == 201


async def test_method_overrides_mean_nothing(control: Control) -> None:
    admin = await control.admin()
    for headers in ({"x-http-method-override": "DELETE"}, {"x-method-override": "DELETE"}, {"_method": "DELETE"}):
        await admin.get("/api/users/1/api-keys?_method=DELETE", headers=headers)
    assert len((await admin.get("/api/users")).json()) == 1


# --- spellings and methods -----------------------------------------------------------------------------------------

SPELLINGS = [
    "/api/users/",
    "//api/users",
    "/api//users",
    "/api/users//",
    "/api/%75sers",
    "/API/users",
    "/api/users;x",
    "/api/users/./",
    "/api/x/../users",
    "/api/users/2/api-keys/",
    "/api/users/%32/api-keys",
    "/api/users/\u0662/api-keys",
    "/api/users/+2/api-keys",
    "/api/users/2abc/api-keys",
    "/api/users/ 2/api-keys",
    "/api/users/2.9/api-keys",
]


@pytest.mark.parametrize("path", SPELLINGS)
async def test_no_spelling_of_a_path_opens_more_than_another(control: Control, path: str) -> None:
    admin = await control.admin()
    await control.user(admin, "bob")
    cid = await control.user(admin, "cid")
    assert (await control.browser().get(path)).status_code in (401, 404)
    assert (await cid.get(path)).status_code in (400, 403, 404)


async def test_head_is_get_without_the_body(control: Control) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    for client in (admin, bob, control.browser()):
        head, full = await client.head("/api/users"), await client.get("/api/users")
        assert (head.status_code, head.content) == (full.status_code, b"")


async def test_wrong_methods_are_named_and_options_tell(control: Control) -> None:
    admin = await control.admin()
    answer = await admin.patch("/api/users", json={})
    assert answer.status_code == 405
    assert list(answer.json()) == ["error"]
    options = await control.browser().options("/api/users")
    assert options.status_code == 204
    assert "GET" in options.headers["allow"]
    assert options.content == b""


# --- who is calling ------------------------------------------------------------------------------------------------


async def test_only_the_link_may_say_whom_it_calls_for(control: Control) -> None:
    seen = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        seen.append(scope["fleet.peer"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    claims = {"x-fleet-client": "10.9.9.9", "x-fleet-scheme": "https"}

    async def call(wrapped: object, address: str, **headers: str) -> tuple[str, bool]:
        transport = httpx.ASGITransport(app=wrapped, client=(address, 1))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            await client.get("/", headers={**claims, **headers})
        return seen[-1].address, seen[-1].https

    assert await call(linked(app), "") == ("10.9.9.9", True)
    behind = direct(app, lambda: ("10.0.0.0/8", "fd00::/8"))
    forwarded = {"x-forwarded-for": "1.2.3.4, 203.0.113.7, 10.0.0.2", "x-forwarded-proto": "https"}
    assert await call(behind, "192.0.2.1", **forwarded) == ("192.0.2.1", False)
    assert await call(behind, "10.0.0.1", **forwarded) == ("203.0.113.7", True)
    assert await call(behind, "10.0.0.1") == ("10.0.0.1", False)
    assert await call(direct(app, lambda: ()), "127.0.0.1", **forwarded) == ("127.0.0.1", False)
