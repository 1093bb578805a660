"""Who may call what. One guard for every route of control, and it says no unless the route says whom it is for.

A route declares its policy: `@get("/api/events", opt=USER)`. `Guard` is given to the app (`guards=[guard]`);
`undeclared(app)` lists routes that forgot, and the tests refuse them.

One resolver for every way in:

    Authorization: Bearer, X-Ollama-Api-Key, x-api-key      the admin key, the local key, or an API key with scopes
    Cookie: fleet_session                                    a session; state-changing calls must be same-origin

A key that is sent decides alone: a wrong key beside a good cookie is refused.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Literal

import msgspec
from litestar import Litestar
from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler

from fleetproxy.control.api.peer import LOCAL_HOSTS, Peer, peer_of
from fleetproxy.control.api.reading import path_id
from fleetproxy.control.policy import access, principals
from fleetproxy.control.state import Store, keys, sessions, users
from fleetproxy.control.state.users import User
from fleetproxy.core.access import find
from fleetproxy.core.roles import any_of
from fleetproxy.errors import BadRequest, FleetError, Forbidden, MediaTypeRefused, OriginRefused, Unauthorized
from fleetproxy.settings import Settings

Policy = Literal["public", "user", "admin", "self-or-admin", "family"]

PUBLIC: dict[str, Policy] = {"policy": "public"}
USER: dict[str, Policy] = {"policy": "user"}
ADMIN: dict[str, Policy] = {"policy": "admin"}
#: For routes with `{user_id:str}`: that user, or an administrator.
SELF_OR_ADMIN: dict[str, Policy] = {"policy": "self-or-admin"}
#: The families' surface (nfrx's): open until `auth.api_key` or roles are configured; any key in force opens it.
FAMILY: dict[str, Policy] = {"policy": "family"}
POLICIES: frozenset[Policy] = frozenset({"public", "user", "admin", "self-or-admin", "family"})

COOKIE = "fleet_session"
#: Shown to this machine's own callers until there is a user or a key.
_FIRST_LOOK = frozenset({
    "/api/requests", "/api/analytics", "/api/analytics/series", "/api/analytics/residency", "/api/poll",
})  # fmt: skip
_KEY_HEADERS = (b"x-ollama-api-key", b"x-api-key")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_MAX_KEY_CHARACTERS = 512

Connection = ASGIConnection[Any, Any, Any, Any]


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls. `request.user` of every handler."""

    #: "unclaimed": this machine's own caller, while there is neither a user nor a key.
    via: Literal["nobody", "session", "api_key", "admin_key", "local", "unclaimed", "static_key", "role"] = "nobody"
    user: User | None = None
    scopes: frozenset[str] = frozenset()
    peer: Peer = Peer()
    #: The cookie's value, for logging out.
    session: str | None = None

    @property
    def known(self) -> bool:
        return self.via != "nobody"

    @property
    def is_operator(self) -> bool:
        """The key of the settings, or our own command line."""
        return self.via in ("admin_key", "local")

    @property
    def is_admin(self) -> bool:
        return self.is_operator or (self.user is not None and self.user.is_admin)

    @property
    def name(self) -> str:
        """Who, for the record of actions."""
        return self.user.username if self.user else self.via.replace("_", " ")

    @property
    def own(self) -> User:
        """The calling user. Raises Forbidden for keys that belong to nobody."""
        if self.user is None:
            raise Forbidden("This belongs to a user; log in as one, or use a user's API key")
        return self.user


class Guard:
    """Given to the Litestar app as a guard; also answers `still(connection)` for streams that outlive a call."""

    def __init__(
        self, store: Store, settings: Callable[[], Settings], now: Callable[[], datetime], local_key: str | None = None
    ) -> None:
        self._store = store
        self._settings = settings
        self._now = now
        self._local_hash = _digest(local_key) if local_key else None

    async def __call__(self, connection: Connection, handler: BaseRouteHandler) -> None:
        policy = policy_of(handler)
        method = str(connection.scope.get("method", "GET"))
        if method == "OPTIONS":
            connection.scope["user"] = Identity(peer=peer_of(connection.scope))
            return
        if policy is None:
            raise Forbidden("This path has no access policy")
        if policy == "family":
            connection.scope["user"] = await self.of_family(connection)
            return
        try:
            identity = await self.identify(connection)
        except Unauthorized:
            # On a public path a key that opens other doors (inference, say) is simply not looked at.
            if policy != "public":
                raise
            identity = Identity(peer=peer_of(connection.scope))
        connection.scope["user"] = identity
        if method not in _SAFE:
            if identity.via in ("nobody", "session", "unclaimed"):
                check_origin(connection)
            check_media_type(connection)
        if policy == "public":
            return
        if not identity.known:
            raise Unauthorized("Unauthorized")
        if identity.via == "api_key" and not identity.scopes & _scopes_for(method):
            raise Forbidden(f"This key lacks the scope for {method} ({' or '.join(sorted(_scopes_for(method)))})")
        if policy == "user" or identity.is_admin:
            return
        if policy == "self-or-admin":
            wanted = path_id(str(connection.path_params["user_id"]), "user ID")
            if identity.user is not None and identity.user.id == wanted:
                return
        raise Forbidden("Forbidden")

    async def identify(self, connection: Connection) -> Identity:
        """Whose call this is. Raises Unauthorized for a key we do not know; an unknown session is merely nobody."""
        peer = peer_of(connection.scope)
        headers = connection.scope["headers"]
        key = _key_of(headers)
        if key is not None:
            return await self._key_holder(key, peer)
        for token in session_tokens(headers):
            found = await self._store.read(sessions.user_of, token, self._now())
            if found is not None:
                user, seen = found
                if self._now() - seen > sessions.SEEN_EVERY:
                    await self._store.write(sessions.seen, token, self._now())
                return Identity(via="session", user=user, scopes=frozenset(keys.SCOPES), peer=peer, session=token)
        if await self._unclaimed(connection):
            return Identity(via="unclaimed", peer=peer)
        return Identity(peer=peer)

    async def of_family(self, connection: Connection) -> Identity:
        """Who calls the families' surface. Raises Unauthorized where a key is needed and no known one was sent."""
        try:
            identity = await self.identify(connection)
        except (Unauthorized, BadRequest):
            identity = Identity(peer=peer_of(connection.scope))
        if identity.known:
            return identity
        settings = self._settings()
        if not access(settings, "").families_required:
            return identity
        known = principals(settings, {})
        if any(find(key.encode(), known, 0.0) for key in _keys_of(connection.scope["headers"])):
            return Identity(via="static_key", peer=identity.peer)
        if any_of(identity.peer.roles, settings.auth.api_http_roles):
            return Identity(via="role", peer=identity.peer)
        raise Unauthorized

    async def _unclaimed(self, connection: Connection) -> bool:
        """The first look at a fresh installation, from this machine: there is no user and no key to ask for."""
        auth = self._settings().auth
        if auth.api_key or auth.admin_key or self._settings().keys or connection.scope["path"] not in _FIRST_LOOK:
            return False
        return is_local_page(connection) and not await self._store.read(users.any_exist)

    async def still(self, connection: Connection) -> bool:
        """Whether who opened this stream would be let in now, as the same and with the same rights; ask every 5 s."""
        before = connection.scope.get("user")
        try:
            await self(connection, connection.route_handler)
        except (Unauthorized, Forbidden):
            return False
        except FleetError:
            return True  # the store is busy: ask again
        now = connection.scope["user"]
        return isinstance(before, Identity) and (now.user, now.is_admin) == (before.user, before.is_admin)

    async def _key_holder(self, key: str, peer: Peer) -> Identity:
        digest = _digest(key)
        if self._local_hash is not None and hmac.compare_digest(digest, self._local_hash):
            return Identity(via="local", peer=peer)
        admin_key = self._settings().auth.admin_key
        if admin_key and hmac.compare_digest(digest, _digest(admin_key)):
            return Identity(via="admin_key", peer=peer)
        found = await self._store.read(keys.holder, key, self._now())
        if found is None:
            raise Unauthorized("Unauthorized")
        return Identity(via="api_key", user=found[0], scopes=found[1], peer=peer)


def policy_of(handler: BaseRouteHandler) -> Policy | None:
    policy = handler.opt.get("policy")
    return policy if policy in POLICIES else None


def undeclared(app: Litestar) -> list[str]:
    """Routes of the app without a policy: `GET /path`. Must be empty."""
    missing = []
    for route in app.routes:
        handlers = getattr(route, "route_handlers", None) or [getattr(route, "route_handler", None)]
        for handler in handlers:
            if handler is None or (isinstance(handler, HTTPRouteHandler) and handler.http_methods == {"OPTIONS"}):
                continue
            if policy_of(handler) is None:
                methods = ",".join(sorted(getattr(handler, "http_methods", ["*"])))
                missing.append(f"{methods} {route.path}")
    return sorted(missing)


def session_tokens(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The session cookies of a request, a few at most: a stale one must not hide the good one."""
    tokens = []
    for name, value in headers:
        if name != b"cookie":
            continue
        for part in value.decode("latin-1").split(";"):
            label, _, token = part.strip().partition("=")
            if label == COOKIE and 0 < len(token) <= _MAX_KEY_CHARACTERS:
                tokens.append(token)
    return tokens[:4]


def check_origin(connection: Connection) -> None:
    """Refuse calls that a page of another site makes a browser send. Raises OriginRefused.

    Browsers say where a call comes from (`Sec-Fetch-Site`, or `Origin` on every state-changing call); programs that
    are no browsers say nothing and pass.
    """
    headers = connection.headers
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site not in ("same-origin", "none"):
            raise OriginRefused("Pages of other sites may not call this")
        return
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        raise OriginRefused("Pages of other sites may not call this")


def check_media_type(connection: Connection) -> None:
    """A body must be JSON by name: forms of other sites cannot say so without asking first."""
    headers = connection.headers
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if (has_body or media_type) and media_type != "application/json":
        raise MediaTypeRefused


def is_local_page(connection: Connection) -> bool:
    """The caller sits at this machine and addressed it as such."""
    host = connection.headers.get("host", "").lower()
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return peer_of(connection.scope).is_loopback and name in LOCAL_HOSTS


def _scopes_for(method: str) -> frozenset[str]:
    return frozenset({"read", "manage"}) if method in _SAFE else frozenset({"manage"})


def _key_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The one key a request carries; None when it carries none. Raises BadRequest or Unauthorized for riddles."""
    found = []
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() != b"bearer ":
            raise Unauthorized("Unauthorized")
        found += _keys_of([(name, value)])
    if not found:
        return None
    if len(set(found)) > 1:
        raise BadRequest("Several different keys were sent; send one")
    if not 0 < len(found[0]) <= _MAX_KEY_CHARACTERS:
        raise Unauthorized("Unauthorized")
    return found[0]


def _keys_of(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """Every key that some header carries."""
    found = []
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].decode("latin-1"))
        elif name in _KEY_HEADERS:
            found.append(value.decode("latin-1"))
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
