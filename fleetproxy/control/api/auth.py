"""`/api/auth/*`: setting up the first administrator, logging in and out, who am I."""

from __future__ import annotations

import hmac
import secrets
from typing import Any

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.datastructures import Cookie

from fleetproxy import log
from fleetproxy.control.api.guard import COOKIE, PUBLIC, Identity, is_local_page, session_tokens
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES, body, stamp, too_many
from fleetproxy.control.services import Services, services_of
from fleetproxy.control.state import keys, sessions, users
from fleetproxy.control.state.users import User
from fleetproxy.core.backoff import address_key
from fleetproxy.core.password_policy import MAX_BYTES, MIN_CHARACTERS, password_fault, username_fault
from fleetproxy.errors import BadRequest, Conflict, Forbidden, RateLimited, Unauthorized

_log = log.get("control.auth")

FleetRequest = Request[Identity, Any, Any]

SETUP_FAULT = f"Username required, password must be at least {MIN_CHARACTERS} characters"


class Credentials(msgspec.Struct):
    username: str
    password: str


class Setup(Credentials):
    #: The one-time token of the log; needed from other machines.
    token: str | None = None


@post("/api/auth/login", opt=PUBLIC, status_code=200)
async def login(request: FleetRequest) -> Response[dict[str, Any]]:
    """Log in: a new session, whatever cookie came along."""
    services = services_of(request)
    asked = await body(request, Credentials, "Missing credentials")
    if not asked.username or not asked.password:
        raise BadRequest("Missing credentials")
    if len(asked.password.encode("utf-8", "replace")) > MAX_BYTES:
        raise BadRequest(f"password may have at most {MAX_BYTES} bytes")
    peer = request.user.peer
    user = await _check(services, asked, peer.address)
    _log.info("%s logged in from %s", user.username, peer.address)
    cookie = await begin_session(services, request, user)
    return Response({"user": _shown(user)}, cookies=[cookie], headers=_NO_STORE)


@post("/api/auth/logout", opt=PUBLIC, status_code=200)
async def logout(request: FleetRequest) -> Response[dict[str, bool]]:
    """Log out; also without a session."""
    services = services_of(request)
    for token in session_tokens(request.scope["headers"]):
        await services.store.write(sessions.end, token)
    return Response({"ok": True}, cookies=[_cookie("", request.user.peer.https, max_age=0)], headers=_NO_STORE)


@get("/api/auth/me", opt=PUBLIC)
async def me(request: FleetRequest) -> Response[dict[str, Any]]:
    """The calling user; or that nobody has been made yet."""
    services = services_of(request)
    user = request.user.user
    if user is None:
        if await services.store.read(users.any_exist):
            return Response({"user": None}, status_code=401, headers=_NO_STORE)
        needs_token = services.claimed or not is_local_page(request)
        return Response({"needsSetup": True, "user": None, "needsToken": needs_token}, headers=_NO_STORE)
    own = await services.store.read(keys.of_user, user.id)
    default = next((key for key in own if key.label == keys.DEFAULT_LABEL), None)
    shown = {
        **_shown(user),
        # Keys are kept as hashes: nobody can show one again, only how it begins.
        "apiKey": None,
        "apiKeyPrefix": default.prefix if default else None,
        "createdAt": stamp(user.created_at),
    }
    return Response({"user": shown}, headers=_NO_STORE)


@post("/api/auth/setup", opt=PUBLIC, status_code=200)
async def setup(request: FleetRequest) -> Response[dict[str, Any]]:
    """Make the first administrator, once."""
    services = services_of(request)
    await request.body()  # before the turn: somebody who never ends his body must not keep everybody waiting
    # One at a time: of a hundred at once one is hashed and made, the others see that it is.
    async with services.setup_lock:
        if await services.store.read(users.any_exist):
            raise Forbidden("Setup already completed")
        asked = await body(request, Setup, SETUP_FAULT)
        await _allow_setup(services, request, asked.token)
        refuse_unfit(asked.username, asked.password)
        password_hash = await services.hasher.hash(asked.password)
        try:
            user = await services.store.write(users.create_first, asked.username, password_hash, services.now())
        except Conflict as error:
            raise Forbidden("Setup already completed") from error
        services.claim()
    _log.warning("first administrator %s made from %s", user.username, request.user.peer.address)
    cookie = await begin_session(services, request, user)
    return Response({"user": _shown(user)}, cookies=[cookie], headers=_NO_STORE)


def refuse_unfit(username: str, password: str) -> None:
    """Raise BadRequest for a name or a password that will not do."""
    if not username.strip() or len(password) < MIN_CHARACTERS:
        raise BadRequest(SETUP_FAULT)
    fault = username_fault(username) or password_fault(password, username)
    if fault is not None:
        raise BadRequest(fault[0].upper() + fault[1:])


async def begin_session(services: Services, request: FleetRequest, user: User) -> Cookie:
    """A new session for a user; sessions the browser came with end."""
    token = secrets.token_hex(32)
    peer = request.user.peer
    for old in session_tokens(request.scope["headers"]):
        await services.store.write(sessions.end, old)
    await services.store.write(sessions.begin, token, user.id, _place(peer.address), services.now())
    return _cookie(token, peer.https, max_age=int(sessions.LIFETIME.total_seconds()))


async def _check(services: Services, asked: Credentials, address: str) -> User:
    """The user these credentials belong to. Raises Unauthorized or RateLimited."""
    found = await services.store.read(users.credentials, asked.username)
    account = f"user {users.canonical_username(asked.username)[:128]}"
    place = _place(address)
    limits: tuple[str, ...] = (account, place)
    if found:
        at_home = await services.store.read(sessions.used_from, found[0].id, place, services.now())
        limits = (place,) if at_home else limits  # guesses made elsewhere do not hold back somebody at home here
    wait_s = services.throttle.wait_s(limits, services.monotonic())
    if wait_s > 0:
        _log.warning("login of %s from %s held back for %.0f s", asked.username, address, wait_s)
        raise too_many(wait_s)
    services.throttle.begin((account, place), services.monotonic())
    try:
        good = await services.hasher.verify(found[1] if found else None, asked.password)
    except RateLimited:
        services.throttle.forgive("", (account, place))  # never looked at
        raise
    if found is None or not good:
        _log.warning("login of %s from %s failed", asked.username, address)
        raise Unauthorized("Invalid credentials")
    services.throttle.forgive(account, (place,))
    user, password_hash = found
    if services.hasher.outdated(password_hash):
        new_hash = await services.hasher.hash(asked.password)
        await services.store.write(users.rehash, user.id, password_hash, new_hash)
    return user


async def _allow_setup(services: Services, request: FleetRequest, token: str | None) -> None:
    """Somebody at this machine, or somebody who reads its log."""
    if is_local_page(request) and not services.claimed:
        return
    place = (f"setup {address_key(request.user.peer.address)}", "setup")
    wait_s = services.throttle.wait_s(place, services.monotonic())
    if wait_s > 0:
        raise too_many(wait_s)
    if services.setup_token is None or not hmac.compare_digest((token or "").encode(), services.setup_token.encode()):
        services.throttle.begin(place, services.monotonic())
        raise Forbidden("Setting up from here needs the one-time token that fleetproxy wrote to its log at start")


def _place(address: str) -> str:
    return f"address {address_key(address)}"


def _shown(user: User) -> dict[str, Any]:
    return {"id": user.id, "username": user.username, "isAdmin": user.is_admin}


def _cookie(token: str, https: bool, max_age: int) -> Cookie:
    return Cookie(key=COOKIE, value=token, max_age=max_age, httponly=True, samesite="lax", path="/", secure=https)


_NO_STORE = {"cache-control": "no-store"}

handlers = [
    Router(
        path="/",
        route_handlers=[login, logout, me, setup],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["auth"],
    )
]
