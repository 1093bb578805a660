"""`/api/users`: accounts and their API keys."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, post, route
from litestar.enums import HttpMethod
from litestar.params import FromPath
from msgspec import Meta

from fleetproxy import log
from fleetproxy.control.api.auth import SETUP_FAULT, begin_session, refuse_unfit
from fleetproxy.control.api.guard import ADMIN, SELF_OR_ADMIN, Identity
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES, body, instant, path_id, stamp
from fleetproxy.control.services import services_of
from fleetproxy.control.state import keys, users
from fleetproxy.control.state.keys import ApiKey, Scope
from fleetproxy.control.state.users import User
from fleetproxy.core.names import canonical
from fleetproxy.core.password_policy import MIN_CHARACTERS, password_fault
from fleetproxy.errors import BadRequest, Forbidden, PathUnknown

_log = log.get("control.users")

FleetRequest = Request[Identity, Any, Any]

UPDATE_FAULT = "Invalid user update payload"
KEY_FAULT = (
    "Invalid API key payload: label (1 to 64 characters), scopes (of inference, read, manage), models (names), "
    "maxInFlight and requestsPerMinute (positive), expiresAt (ISO 8601) are what it takes"
)


class NewUser(msgspec.Struct, rename="camel"):
    username: str
    password: str
    is_admin: bool = False


class UserUpdate(msgspec.Struct, rename="camel"):
    password: str | None = None
    is_admin: bool | None = None
    #: Checked when sent.
    current_password: str | None = None


class NewKey(msgspec.Struct, rename="camel"):
    label: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+\Z")] = keys.DEFAULT_LABEL
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=3)] = ("inference",)
    models: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...], Meta(max_length=256)] | None = (
        None
    )
    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    requests_per_minute: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


@get("/api/users", opt=ADMIN)
async def list_users(request: FleetRequest) -> list[dict[str, Any]]:
    """All users, without anything secret."""
    return [_shown(user) for user in await services_of(request).store.read(users.all_users)]


@post("/api/users", opt=ADMIN, status_code=201)
async def create_user(request: FleetRequest) -> dict[str, Any]:
    """A new user; 409 when the name is taken."""
    services = services_of(request)
    asked = await body(request, NewUser, SETUP_FAULT)
    refuse_unfit(asked.username, asked.password)
    password_hash = await services.hasher.hash(asked.password)
    user = await services.store.write(users.create, asked.username, password_hash, asked.is_admin, services.now())
    services.claim()
    _log.info("%s made user %s (administrator: %s)", request.user.name, user.username, user.is_admin)
    return _shown(user)


@route("/api/users/{user_id:str}", http_method=[HttpMethod.PUT, HttpMethod.PATCH], opt=SELF_OR_ADMIN)
async def update_user(request: FleetRequest, user_id: FromPath[str]) -> Response[dict[str, bool]]:
    """Change a password, or (administrators) a role. Either logs the user out everywhere but here."""
    services = services_of(request)
    caller = request.user
    wanted = path_id(user_id, "user ID")
    asked = await body(request, UserUpdate, UPDATE_FAULT)
    user = await services.store.read(users.get, wanted)
    if user is None:
        raise PathUnknown("User not found")
    password_hash = None
    if asked.password is not None:
        if len(asked.password) < MIN_CHARACTERS:
            raise BadRequest(UPDATE_FAULT)
        fault = password_fault(asked.password, user.username)
        if fault is not None:
            raise BadRequest(fault[0].upper() + fault[1:])
        if asked.current_password is not None:
            known = await services.store.read(users.credentials, user.username)
            if known is None or not await services.hasher.verify(known[1], asked.current_password):
                raise Forbidden("The current password is not right")
        password_hash = await services.hasher.hash(asked.password)
    is_admin = asked.is_admin if caller.is_admin else None  # nobody promotes himself
    changed = await services.store.write(
        users.update, wanted, services.now(), password_hash=password_hash, is_admin=is_admin
    )
    _log.info(
        "%s changed user %s (password: %s, administrator: %s)",
        caller.name,
        changed.username,
        password_hash is not None,
        changed.is_admin,
    )
    mine = caller.via == "session" and caller.own.id == wanted
    cookies = [await begin_session(services, request, changed)] if mine and password_hash else None
    return Response({"ok": True}, cookies=cookies)


@delete("/api/users/{user_id:str}", opt=ADMIN, status_code=200)
async def delete_user(request: FleetRequest, user_id: FromPath[str]) -> dict[str, bool]:
    """Delete a user with everything that is theirs; the record of past requests stays."""
    services = services_of(request)
    wanted = path_id(user_id, "user ID")
    if request.user.user is not None and request.user.user.id == wanted:
        raise BadRequest("Cannot delete yourself")
    user = await services.store.write(users.remove, wanted)
    _log.info("%s deleted user %s", request.user.name, user.username)
    return {"ok": True}


@post("/api/users/{user_id:str}/api-key", opt=SELF_OR_ADMIN, status_code=200)
async def create_key(request: FleetRequest, user_id: FromPath[str]) -> Response[dict[str, Any]]:
    """A new API key, shown this once. Without a label it takes the place of the user's default key."""
    services = services_of(request)
    wanted = path_id(user_id, "user ID")
    asked = await body(request, NewKey, KEY_FAULT) if await request.body() else NewKey()
    if asked.expires_at is not None and asked.expires_at <= services.now():
        raise BadRequest("expiresAt lies in the past")
    secret = secrets.token_hex(32)
    key = await services.store.write(
        keys.create,
        wanted,
        secret,
        services.now(),
        label=asked.label,
        scopes=asked.scopes,
        models=None if asked.models is None else tuple(canonical(model) for model in asked.models),
        max_in_flight=asked.max_in_flight,
        requests_per_minute=asked.requests_per_minute,
        expires_at=asked.expires_at,
    )
    await services.take_in()
    _log.info("%s made API key %s (%s) of user %s", request.user.name, key.prefix, key.label, wanted)
    return Response({"apiKey": secret, "key": _shown_key(key)}, headers={"cache-control": "no-store"})


@get("/api/users/{user_id:str}/api-keys", opt=SELF_OR_ADMIN)
async def list_keys(request: FleetRequest, user_id: FromPath[str]) -> list[dict[str, Any]]:
    """A user's API keys: their first characters, never the whole."""
    wanted = path_id(user_id, "user ID")
    return [_shown_key(key) for key in await services_of(request).store.read(keys.of_user, wanted)]


@delete("/api/users/{user_id:str}/api-keys/{key_id:str}", opt=SELF_OR_ADMIN, status_code=200)
async def revoke_key(request: FleetRequest, user_id: FromPath[str], key_id: FromPath[str]) -> dict[str, bool]:
    """Revoke a key: it opens nothing from the next snapshot on."""
    services = services_of(request)
    await services.store.write(keys.revoke, path_id(user_id, "user ID"), path_id(key_id, "API key ID"))
    await services.take_in()
    _log.info("%s revoked API key %s of user %s", request.user.name, key_id, user_id)
    return {"ok": True}


def _shown(user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "username": user.username,
        "isAdmin": user.is_admin,
        "createdAt": stamp(user.created_at),
    }


def _shown_key(key: ApiKey) -> dict[str, Any]:
    return {**msgspec.to_builtins(key), "createdAt": stamp(key.created_at), "expiresAt": instant(key.expires_at)}


handlers = [
    Router(
        path="/",
        route_handlers=[list_users, create_user, update_user, delete_user, create_key, list_keys, revoke_key],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["users"],
    )
]
