from __future__ import annotations

import asyncio

import pytest
from control_plane import PASSWORD, Control

from fleetproxy.control.state import keys

OTHER = "another horse 8"


async def test_users_are_listed_without_secrets(control: Control) -> None:
    admin = await control.admin()
    await control.user(admin, "Bob ")
    assert (await admin.get("/api/users")).json() == [
        {"id": 1, "username": "root", "isAdmin": True, "createdAt": "2026-11-01T12:00:00.000Z"},
        {"id": 2, "username": "bob", "isAdmin": False, "createdAt": "2026-11-01T12:00:00.000Z"},
    ]


async def test_names_are_unique_and_passwords_long(control: Control) -> None:
    admin = await control.admin()
    taken = await admin.post("/api/users", json={"username": " ROOT", "password": PASSWORD})
    assert (taken.status_code, taken.json()) == (409, {"error": "Username already taken"})
    for payload in (
        {"username": "a", "password": "short"},
        {"username": "a", "password": PASSWORD, "isAdmin": "yes"},
        {},
    ):
        answer = await admin.post("/api/users", json=payload)
        assert answer.status_code == 400
        assert answer.json() == {"error": "Username required, password must be at least 10 characters"}
    weak = await admin.post("/api/users", json={"username": "bob", "password": "password123"})
    assert weak.json() == {"error": "Password is one of those that are guessed first"}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_both_methods_update(control: Control, method: str) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    answer = await bob.request(method, "/api/users/2", json={"password": OTHER})
    assert answer.json() == {"ok": True}
    login = {"username": "bob", "password": OTHER}
    assert (await control.browser().post("/api/auth/login", json=login)).status_code == 200


@pytest.mark.parametrize("payload", [{"password": "short"}, {"password": 5}, {"isAdmin": "true"}, [], {"isAdmin": 1}])
async def test_unfit_updates_are_refused(control: Control, payload: object) -> None:
    admin = await control.admin()
    answer = await admin.put("/api/users/1", json=payload)
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid user update payload"})


async def test_a_new_password_logs_out_everywhere_but_here(control: Control) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    elsewhere = control.browser()
    await elsewhere.post("/api/auth/login", json={"username": "bob", "password": PASSWORD})
    before = bob.cookies["fleet_session"]
    await bob.put("/api/users/2", json={"password": OTHER})
    assert bob.cookies["fleet_session"] != before
    assert (await bob.get("/api/auth/me")).status_code == 200
    assert (await elsewhere.get("/api/auth/me")).status_code == 401


async def test_the_current_password_is_checked_when_sent(control: Control) -> None:
    admin = await control.admin()
    wrong = await admin.put("/api/users/1", json={"password": OTHER, "currentPassword": "wrong"})
    assert wrong.status_code == 403
    right = await admin.put("/api/users/1", json={"password": OTHER, "currentPassword": PASSWORD})
    assert right.status_code == 200


@pytest.mark.parametrize(
    "extra", [{"isAdmin": True}, {"is_admin": True}, {"role": "admin"}, {"id": 1}, {"createdAt": "2020-01-01"}]
)
async def test_nobody_promotes_himself(control: Control, extra: dict[str, object]) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    answer = await bob.put("/api/users/2", json={"password": OTHER, **extra})
    assert answer.status_code == 200
    shown = (await admin.get("/api/users")).json()[1]
    assert shown == {"id": 2, "username": "bob", "isAdmin": False, "createdAt": "2026-11-01T12:00:00.000Z"}


async def test_the_last_administrator_stays(control: Control) -> None:
    admin = await control.admin()
    assert (await admin.put("/api/users/1", json={"isAdmin": False})).status_code == 409
    yourself = await admin.delete("/api/users/1")
    assert (yourself.status_code, yourself.json()) == (400, {"error": "Cannot delete yourself"})
    local = control.browser(**{"x-api-key": "l" * 64})
    assert (await local.delete("/api/users/1")).status_code == 409


async def test_two_administrators_cannot_demote_each_other(control: Control) -> None:
    root = await control.admin()
    ann = await control.user(root, "ann", is_admin=True)
    answers = await asyncio.gather(
        root.put("/api/users/2", json={"isAdmin": False}), ann.put("/api/users/1", json={"isAdmin": False})
    )
    assert sorted(answer.status_code for answer in answers)[0] == 200
    local = control.browser(**{"x-api-key": "l" * 64})
    assert sum(user["isAdmin"] for user in (await local.get("/api/users")).json()) >= 1


async def test_a_demoted_administrator_is_one_no_more(control: Control) -> None:
    root = await control.admin()
    ann = await control.user(root, "ann", is_admin=True)
    key = (await ann.post("/api/users/2/api-key", json={"scopes": ["manage"]})).json()["apiKey"]
    await root.put("/api/users/2", json={"isAdmin": False})
    assert (await ann.get("/api/users")).status_code == 401
    assert (await control.browser(**{"x-api-key": key}).get("/api/users")).status_code == 403


async def test_deleting_a_user_ends_what_is_theirs(control: Control) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    key = (await bob.post("/api/users/2/api-key", json={"scopes": ["read"]})).json()["apiKey"]
    assert (await admin.delete("/api/users/2")).json() == {"ok": True}
    assert (await bob.get("/api/auth/me")).status_code == 401
    assert (await control.browser(**{"x-api-key": key}).get("/api/users")).status_code == 401
    gone = await admin.delete("/api/users/2")
    assert (gone.status_code, gone.json()) == (404, {"error": "User not found"})
    again = await admin.post("/api/users", json={"username": "bob", "password": PASSWORD})
    assert again.json()["id"] == 3


async def test_foreign_accounts_are_closed(control: Control) -> None:
    admin = await control.admin()
    await control.user(admin, "bob")
    eve = await control.user(admin, "eve")
    for method, path, payload in [
        ("PUT", "/api/users/2", {"password": OTHER}),
        ("PATCH", "/api/users/2", {}),
        ("DELETE", "/api/users/2", None),
        ("POST", "/api/users/2/api-key", None),
        ("GET", "/api/users/2/api-keys", None),
        ("DELETE", "/api/users/2/api-keys/1", None),
        ("PUT", "/api/users/999", {"password": OTHER}),
        ("POST", "/api/users/999/api-key", None),
    ]:
        answer = await eve.request(method, path, json=payload)
        assert (answer.status_code, answer.json()) == (403, {"error": "Forbidden"}), (method, path)


@pytest.mark.parametrize("path_id", ["abc", "-", "%20", "\u0662"])
async def test_ids_that_are_no_numbers_are_named(control: Control, path_id: str) -> None:
    admin = await control.admin()
    answer = await admin.put(f"/api/users/{path_id}", json={})
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid user ID"})


@pytest.mark.parametrize("path_id", ["0", "-1", "99999999999999999999999999", "12abc"])
async def test_numbers_of_nobody_are_unknown(control: Control, path_id: str) -> None:
    admin = await control.admin()
    answer = await admin.put(f"/api/users/{path_id}", json={})
    assert (answer.status_code, answer.json()) == (404, {"error": "User not found"})


# --- keys ----------------------------------------------------------------------------------------------------------


async def test_a_key_is_64_hex_characters_shown_once(control: Control) -> None:
    admin = await control.admin()
    answer = (await admin.post("/api/users/1/api-key")).json()
    key = answer["apiKey"]
    assert len(key) == 64
    assert set(key) <= set("0123456789abcdef")
    listed = await admin.get("/api/users/1/api-keys")
    assert key not in listed.text
    assert listed.json() == [
        {
            "id": 1,
            "userId": 1,
            "prefix": key[:8],
            "label": "default",
            "scopes": ["inference"],
            "models": None,
            "maxInFlight": None,
            "requestsPerMinute": None,
            "createdAt": "2026-11-01T12:00:00.000Z",
            "expiresAt": None,
        }
    ]
    assert answer["key"] == listed.json()[0]
    me = (await admin.get("/api/auth/me")).json()["user"]
    assert (me["apiKey"], me["apiKeyPrefix"]) == (None, key[:8])


async def test_keys_reach_the_publisher_with_their_limits(control: Control) -> None:
    admin = await control.admin()
    body = {
        "label": "ci",
        "models": ["phi"],
        "maxInFlight": 3,
        "requestsPerMinute": 60,
        "expiresAt": "2026-12-01T00:00:00Z",
    }
    key = (await admin.post("/api/users/1/api-key", json=body)).json()["apiKey"]
    principals = await control.services.principals()
    principal = principals[keys.key_hash(key)]
    assert (principal.name, principal.user_id, principal.key_prefix) == ("root", 1, key[:8])
    assert (principal.max_in_flight, principal.requests_per_minute) == (3, 60)
    assert principal.models == frozenset({"phi:latest"})
    assert control.fleet.applied == 1
    control.clock.pass_(days=40)
    assert await control.services.principals() == {}


async def test_a_new_default_key_ends_the_old_one_and_labels_add(control: Control) -> None:
    admin = await control.admin()
    first = (await admin.post("/api/users/1/api-key")).json()["apiKey"]
    laptop = (await admin.post("/api/users/1/api-key", json={"label": "laptop"})).json()["apiKey"]
    second = (await admin.post("/api/users/1/api-key", json={})).json()["apiKey"]
    live = set(await control.services.principals())
    assert live == {keys.key_hash(laptop), keys.key_hash(second)}
    assert keys.key_hash(first) not in live
    assert (await admin.post("/api/users/1/api-key", json={"label": "laptop"})).status_code == 409
    listed = (await admin.get("/api/users/1/api-keys")).json()
    assert (await admin.delete(f"/api/users/1/api-keys/{listed[0]['id']}")).json() == {"ok": True}
    assert len(await control.services.principals()) == 1
    assert (await admin.delete(f"/api/users/1/api-keys/{listed[0]['id']}")).status_code == 404


@pytest.mark.parametrize(
    "payload",
    [
        {"label": ""},
        {"label": "x" * 65},
        {"label": "a\x00b"},
        {"label": "a\n"},
        {"scopes": []},
        {"scopes": ["everything"]},
        {"models": [""]},
        {"maxInFlight": 0},
        {"requestsPerMinute": -1},
        {"expiresAt": "tomorrow"},
        {"expiresAt": "2026-12-01T00:00:00"},
        {"expiresAt": "2020-01-01T00:00:00Z"},
    ],
)
async def test_unfit_keys_are_refused(control: Control, payload: dict[str, object]) -> None:
    admin = await control.admin()
    answer = await admin.post("/api/users/1/api-key", json=payload)
    assert answer.status_code == 400
    assert (await admin.get("/api/users/1/api-keys")).json() == []


async def test_a_user_may_have_many_keys_but_not_any_number(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_PER_USER", 3)
    admin = await control.admin()
    statuses = [(await admin.post("/api/users/1/api-key", json={"label": f"k{n}"})).status_code for n in range(5)]
    assert statuses == [200, 200, 200, 409, 409]


async def test_a_key_is_not_made_for_a_user_deleted_meanwhile(control: Control) -> None:
    admin = await control.admin()
    await control.user(admin, "bob")
    answers = await asyncio.gather(admin.delete("/api/users/2"), admin.post("/api/users/2/api-key"))
    assert answers[0].status_code == 200
    assert await control.services.principals() == {}


async def test_fields_that_are_not_theirs_change_nothing(control: Control) -> None:
    """A-20: whatever a body claims beside its own fields, nothing of it is taken."""
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    number = bob.user_id  # type: ignore[attr-defined]
    before = (await admin.get("/api/users")).json()
    claims = {"id": 1, "username": "root", "role": "admin", "is_admin": True, "admin": True, "createdAt": "1970-01-01"}
    for method in (bob.put, bob.patch):
        assert (await method(f"/api/users/{number}", json=claims)).json() == {"ok": True}
    key = (await bob.post(f"/api/users/{number}/api-key", json={"label": "x", "userId": 1, **claims})).json()["key"]
    assert key["userId"] == number
    asked = {"username": "eve", "password": "correct horse 7", "id": 1, "role": "admin"}
    made = (await admin.post("/api/users", json=asked)).json()
    assert (made["id"], made["isAdmin"]) == (number + 1, False)
    await admin.delete(f"/api/users/{made['id']}")
    assert (await admin.get("/api/users")).json() == before
    assert (await bob.get("/api/users")).status_code == 403
