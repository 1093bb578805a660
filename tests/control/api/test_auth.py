from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from control_plane import PASSWORD, Control, make_control

from fleetproxy.control.services import CLAIMED_FILE
from fleetproxy.settings import Auth, Settings

JSON = {"content-type": "application/json"}
ROOT = {"username": "root", "password": PASSWORD}


async def test_the_dashboard_learns_that_nobody_has_been_made_yet(control: Control) -> None:
    answer = await control.browser().get("/api/auth/me")
    assert (answer.status_code, answer.json()) == (200, {"needsSetup": True, "user": None, "needsToken": False})


async def test_setup_makes_an_administrator_and_logs_in(control: Control) -> None:
    client = control.browser()
    answer = await client.post("/api/auth/setup", json={"username": "  Root ", "password": PASSWORD})
    assert answer.json() == {"user": {"id": 1, "username": "root", "isAdmin": True}}
    me = (await client.get("/api/auth/me")).json()
    assert "needsSetup" not in me
    assert me["user"] == {
        "id": 1,
        "username": "root",
        "isAdmin": True,
        "apiKey": None,
        "apiKeyPrefix": None,
        "createdAt": "2026-11-01T12:00:00.000Z",
    }


async def test_of_a_hundred_setups_at_once_one_succeeds(control: Control) -> None:
    clients = [control.browser() for _ in range(100)]
    answers = await asyncio.gather(
        *(
            c.post("/api/auth/setup", json={"username": f"admin{n}", "password": PASSWORD})
            for n, c in enumerate(clients)
        )
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [403] * 99
    assert {answer.text for answer in answers if answer.status_code == 403} == {'{"error":"Setup already completed"}'}


async def test_a_body_that_never_ends_keeps_nobody_from_setting_up(control: Control) -> None:
    waiting, forever = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"username":'
        waiting.set()
        await forever.wait()

    stuck = asyncio.create_task(control.browser().post("/api/auth/setup", content=slowly(), headers=JSON))
    await waiting.wait()
    async with asyncio.timeout(5):
        await control.admin()
    forever.set()
    assert (await stuck).status_code == 403


async def test_setup_is_closed_before_the_body_is_looked_at(control: Control) -> None:
    await control.admin()
    answer = await control.browser().post("/api/auth/setup", content=b"{", headers=JSON)
    assert (answer.status_code, answer.json()) == (403, {"error": "Setup already completed"})


@pytest.mark.parametrize(
    "payload", [{}, {"username": "", "password": PASSWORD}, {"username": "a", "password": "short"}, {"username": 1}, []]
)
async def test_setup_names_what_it_needs(control: Control, payload: object) -> None:
    answer = await control.browser().post("/api/auth/setup", json=payload)
    assert answer.status_code == 400
    assert answer.json() == {"error": "Username required, password must be at least 10 characters"}


@pytest.mark.parametrize(
    ("address", "host"), [("10.0.0.9", "127.0.0.1:3334"), ("127.0.0.1", "fleet.example:80"), ("::2", "localhost")]
)
async def test_setup_from_elsewhere_needs_the_token_of_the_log(control: Control, address: str, host: str) -> None:
    client = control.browser(address, host)
    assert (await client.get("/api/auth/me")).json()["needsToken"] is True
    for wrong in (None, "", "guess"):
        answer = await client.post("/api/auth/setup", json={**ROOT, "token": wrong})
        assert answer.status_code == 403
        assert "token" in answer.json()["error"]
    token = control.services.setup_token
    assert token
    assert (await client.post("/api/auth/setup", json={**ROOT, "token": token})).status_code == 200
    assert control.services.setup_token is None


async def test_guessing_the_setup_token_is_slowed_down(control: Control) -> None:
    client = control.browser("10.0.0.9")
    statuses = [(await client.post("/api/auth/setup", json={**ROOT, "token": f"{n}"})).status_code for n in range(15)]
    assert statuses == [403] * 10 + [429] * 5


async def test_a_lost_state_is_not_open_for_setup_again(tmp_path: Path) -> None:
    control = await make_control(tmp_path, Settings())
    await control.admin()
    assert (tmp_path / CLAIMED_FILE).exists()
    await control.services.close()
    for file in tmp_path.glob("state.db*"):
        file.unlink()
    anew = await make_control(tmp_path, Settings())
    answer = await anew.browser().post("/api/auth/setup", json=ROOT)
    assert answer.status_code == 403
    assert (await anew.browser().get("/api/auth/me")).json()["needsToken"] is True
    await anew.services.close()
    await anew.caller.aclose()


async def test_the_configured_administrator_is_made_once(tmp_path: Path) -> None:
    settings = Settings(auth=Auth(admin_username="Boss", admin_password=PASSWORD))
    control = await make_control(tmp_path, settings)
    await control.services.first_administrator()
    answer = await control.browser().post("/api/auth/login", json={"username": "boss", "password": PASSWORD})
    assert answer.json() == {"user": {"id": 1, "username": "boss", "isAdmin": True}}
    await control.services.close()
    await control.caller.aclose()


async def test_an_unfit_configured_administrator_is_not_made(tmp_path: Path) -> None:
    control = await make_control(tmp_path, Settings(auth=Auth(admin_username="boss", admin_password="short")))
    assert (await control.browser().get("/api/auth/me")).json()["needsSetup"] is True
    await control.services.close()
    await control.caller.aclose()


# --- logging in ----------------------------------------------------------------------------------------------------


async def test_login_sets_a_cookie_scripts_cannot_read(control: Control) -> None:
    await control.admin()
    answer = await control.browser().post("/api/auth/login", json={"username": " ROOT", "password": PASSWORD})
    assert answer.json() == {"user": {"id": 1, "username": "root", "isAdmin": True}}
    cookie = answer.headers["set-cookie"]
    assert re.match(r"fleet_session=[0-9a-f]{64};", cookie)
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/", "max-age=604800"} <= parts
    assert "secure" not in parts


async def test_over_https_the_cookie_is_secure(control: Control) -> None:
    from fleetproxy.control.api.peer import linked

    transport = httpx.ASGITransport(app=linked(control.app))  # type: ignore[arg-type]
    link = {"x-fleet-client": "127.0.0.1", "x-fleet-scheme": "https"}
    client = httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=link)
    answer = await client.post("/api/auth/setup", json=ROOT)
    assert "; Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("payload", [{}, {"username": "root"}, {"username": "", "password": "x"}, {"password": 1}, []])
async def test_missing_credentials_are_named(control: Control, payload: object) -> None:
    answer = await control.browser().post("/api/auth/login", json=payload)
    assert (answer.status_code, answer.json()) == (400, {"error": "Missing credentials"})


async def test_wrong_password_and_unknown_user_look_the_same(control: Control) -> None:
    await control.admin()
    answers = [
        await control.browser().post("/api/auth/login", json={"username": name, "password": "wrong password"})
        for name in ("root", "nobody", "' OR 1=1 --")
    ]
    assert {(a.status_code, a.text) for a in answers} == {(401, '{"error":"Invalid credentials"}')}


async def test_oversized_passwords_are_refused_before_hashing(control: Control) -> None:
    await control.admin()
    answer = await control.browser().post("/api/auth/login", json={"username": "root", "password": "x" * 2000})
    assert answer.status_code == 400
    answer = await control.browser().post("/api/auth/login", json={"username": "root", "password": "x" * 2_000_000})
    assert answer.status_code == 413


BAD_JSON = {
    "empty": b"",
    "truncated": b'{"username":',
    "not a number": b'{"username":"a","password":NaN}',
    "byte order mark": b'\xef\xbb\xbf{"username":"a","password":"b"}',
    "bad utf-8": b'{"username":"\xff","password":"b"}',
    "trailing": b'{"username":"a","password":"b"} x',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"username":"a","password":"b","x":' + b"[" * 90 + b"]" * 90 + b"}",
    "quotes": b'{"a":"' + b'\\"' * 60_000,
    "huge number": b'{"username":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("raw", BAD_JSON.values(), ids=BAD_JSON)
async def test_malformed_bodies_are_the_callers_fault(control: Control, raw: bytes) -> None:
    answer = await control.browser().post("/api/auth/login", content=raw, headers=JSON)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


async def test_guessing_one_account_is_slowed_down_then_forgotten(control: Control) -> None:
    await control.admin()

    async def guess(number: int) -> int:
        browser = control.browser(f"10.0.{number}.1")
        wrong = {"username": "root", "password": f"wrong password {number}"}
        return (await browser.post("/api/auth/login", json=wrong)).status_code

    assert [await guess(number) for number in range(14)] == [401] * 10 + [429] * 4
    stranger = control.browser("10.9.9.9")
    held = await stranger.post("/api/auth/login", json=ROOT)
    assert held.status_code == 429
    assert int(held.headers["retry-after"]) >= 1
    # The user, at home at 127.0.0.1, is not held back; nor is anybody for long.
    assert (await control.browser().post("/api/auth/login", json=ROOT)).status_code == 200
    control.clock.pass_(seconds=5)
    assert (await stranger.post("/api/auth/login", json=ROOT)).status_code == 200


async def test_guessing_many_accounts_from_one_address_is_slowed_down(control: Control) -> None:
    await control.admin()
    browser = control.browser("10.0.0.1")
    statuses = [
        (await browser.post("/api/auth/login", json={"username": f"u{n}", "password": "wrong password"})).status_code
        for n in range(12)
    ]
    assert statuses == [401] * 10 + [429] * 2
    assert (await control.browser("10.0.0.2").post("/api/auth/login", json=ROOT)).status_code == 200


async def test_ones_own_logins_between_guesses_buy_no_more_of_them(control: Control) -> None:
    admin = await control.admin()
    await control.user(admin, "eve")
    browser = control.browser("10.0.0.1")
    wrong = 0
    for number in range(40):
        if number % 5 == 4:
            await browser.post("/api/auth/login", json={"username": "eve", "password": PASSWORD})
        else:
            answer = await browser.post("/api/auth/login", json={"username": "root", "password": f"guess {number}...."})
            wrong += answer.status_code == 401
    assert wrong <= 12


async def test_a_forwarded_header_does_not_make_another_address(control: Control) -> None:
    await control.admin()
    statuses = []
    for number in range(12):
        browser = control.browser(
            "10.0.0.1", **{"X-Forwarded-For": f"10.1.1.{number}", "x-fleet-client": f"10.2.{number}.1"}
        )
        wrong = {"username": f"u{number}", "password": "wrong password"}
        statuses.append((await browser.post("/api/auth/login", json=wrong)).status_code)
    assert statuses == [401] * 10 + [429] * 2


async def test_password_hashes_of_old_parameters_are_renewed(control: Control) -> None:
    import argon2

    from fleetproxy.control.state import users

    await control.admin()
    store = control.services.store
    old = argon2.PasswordHasher(time_cost=2, memory_cost=16, parallelism=1).hash(PASSWORD)
    await store.write(users.update, 1, control.clock.now(), password_hash=old)
    assert (await control.browser().post("/api/auth/login", json=ROOT)).status_code == 200
    found = await store.read(users.credentials, "root")
    assert found
    assert "t=1,p=1" in found[1]


# --- sessions ------------------------------------------------------------------------------------------------------


async def test_login_never_keeps_a_cookie_it_was_given(control: Control) -> None:
    await control.admin()
    client = control.browser()
    client.cookies.set("fleet_session", "a" * 64)
    answer = await client.post("/api/auth/login", json=ROOT)
    assert "a" * 64 not in answer.headers["set-cookie"]
    fixed = control.browser()
    fixed.cookies.set("fleet_session", "a" * 64)
    assert (await fixed.get("/api/auth/me")).status_code == 401


async def test_logging_in_again_ends_the_session_before(control: Control) -> None:
    admin = await control.admin()
    before = dict(admin.cookies)["fleet_session"]
    await admin.post("/api/auth/login", json=ROOT)
    old = control.browser()
    old.cookies.set("fleet_session", before)
    assert (await old.get("/api/users")).status_code == 401
    assert (await admin.get("/api/users")).status_code == 200


async def test_the_store_never_holds_a_cookie_or_a_key(control: Control, tmp_path: Path) -> None:
    admin = await control.admin()
    key = (await admin.post("/api/users/1/api-key")).json()["apiKey"]
    secrets = [admin.cookies["fleet_session"], key, PASSWORD]
    for file in tmp_path.glob("state.db*"):
        raw = file.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in raw or bytes.fromhex(key) in raw]


async def test_logout_ends_the_session_and_the_cookie(control: Control) -> None:
    admin = await control.admin()
    token = admin.cookies["fleet_session"]
    answer = await admin.post("/api/auth/logout")
    assert answer.json() == {"ok": True}
    assert "max-age=0" in answer.headers["set-cookie"].lower()
    stale = control.browser()
    stale.cookies.set("fleet_session", token)
    assert (await stale.get("/api/auth/me")).status_code == 401
    assert (await control.browser().post("/api/auth/logout")).json() == {"ok": True}


async def test_sessions_end_with_time(control: Control) -> None:
    admin = await control.admin()
    control.clock.pass_(days=2)
    assert (await admin.get("/api/users")).status_code == 200  # and was seen
    control.clock.pass_(days=2)
    assert (await admin.get("/api/users")).status_code == 200
    control.clock.pass_(days=3)
    answer = await admin.get("/api/users")
    assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})
    assert (await admin.get("/api/auth/me")).json() == {"user": None}
