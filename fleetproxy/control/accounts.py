"""Users and API keys from the command line: a running fleetproxy is asked, else its state is opened and changed.

Both ways follow the same rules, because both end in `control.state`. While the state is open here its folder is locked,
so that no fleetproxy starts on it meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from fleetproxy.control.local_call import call
from fleetproxy.control.services import CLAIMED_FILE
from fleetproxy.control.state import Store, keys, users
from fleetproxy.core.names import canonical
from fleetproxy.core.password_policy import password_fault, username_fault
from fleetproxy.errors import FleetError, PathUnknown
from fleetproxy.folders import Lock, Running, data_folder, prepare_data, running
from fleetproxy.settings import Settings


class AccountError(Exception):
    """It was not done. `status` is that of the HTTP API."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Accounts(Protocol):
    """Rows are those of the HTTP API. Everything raises AccountError."""

    def users(self) -> list[dict[str, Any]]: ...
    def add_user(self, username: str, password: str, is_admin: bool) -> dict[str, Any]: ...
    def change_user(self, username: str, changes: dict[str, Any]) -> None: ...
    def remove_user(self, username: str) -> None: ...
    def keys(self, username: str) -> list[dict[str, Any]]: ...
    def add_key(self, username: str, wishes: dict[str, Any]) -> str: ...
    def remove_key(self, username: str, prefix: str) -> None: ...


@contextmanager
def accounts(settings: Settings) -> Iterator[Accounts]:
    """The accounts of this data folder. Raises FolderError, StoreBroken, Unreachable."""
    folder = data_folder(settings)
    live = running(folder)
    if live is not None:
        yield LiveAccounts(live)
        return
    prepare_data(folder)
    lock = Lock(folder, Running(pid=os.getpid(), runtime=""))
    try:
        store = Store.open_now(folder / "state.db")
        try:
            yield StoredAccounts(store, folder)
        finally:
            store.close_now()
    finally:
        lock.release()


class LiveAccounts:
    """Through the running fleetproxy."""

    def __init__(self, live: Running) -> None:
        self._live = live

    def users(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", "/api/users")
        return found

    def add_user(self, username: str, password: str, is_admin: bool) -> dict[str, Any]:
        body = {"username": username, "password": password, "isAdmin": is_admin}
        made: dict[str, Any] = self._ask("POST", "/api/users", body)
        return made

    def change_user(self, username: str, changes: dict[str, Any]) -> None:
        self._ask("PUT", f"/api/users/{self._id(username)}", changes)

    def remove_user(self, username: str) -> None:
        self._ask("DELETE", f"/api/users/{self._id(username)}")

    def keys(self, username: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", f"/api/users/{self._id(username)}/api-keys")
        return found

    def add_key(self, username: str, wishes: dict[str, Any]) -> str:
        return str(self._ask("POST", f"/api/users/{self._id(username)}/api-key", wishes)["apiKey"])

    def remove_key(self, username: str, prefix: str) -> None:
        user_id = self._id(username)
        key = _one_key(self._ask("GET", f"/api/users/{user_id}/api-keys"), prefix)
        self._ask("DELETE", f"/api/users/{user_id}/api-keys/{key['id']}")

    def _id(self, username: str) -> int:
        return _named(self.users(), username)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        status, answer = call(self._live, method, path, body)
        if not 200 <= status < 300:
            said = answer.get("error") if isinstance(answer, dict) else None
            raise AccountError(status, str(said or f"control answered with HTTP {status}"))
        return answer


class StoredAccounts:
    """In the state itself, while nothing runs on it."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder

    def users(self) -> list[dict[str, Any]]:
        return [
            {"id": one.id, "username": one.username, "isAdmin": one.is_admin, "createdAt": _stamp(one.created_at)}
            for one in self._store.read_now(users.all_users)
        ]

    def add_user(self, username: str, password: str, is_admin: bool) -> dict[str, Any]:
        fault = username_fault(username) or password_fault(password, username)
        if fault is not None:
            raise AccountError(400, fault)
        password_hash = _hash(password)
        user = self._write(users.create, username, password_hash, is_admin, _now())
        (self._folder / CLAIMED_FILE).touch(mode=0o600)
        return {"id": user.id, "username": user.username, "isAdmin": user.is_admin}

    def change_user(self, username: str, changes: dict[str, Any]) -> None:
        user_id = _named(self.users(), username)
        password_hash = None
        if "password" in changes:
            fault = password_fault(changes["password"], username)
            if fault is not None:
                raise AccountError(400, fault)
            password_hash = _hash(changes["password"])
        self._write(users.update, user_id, _now(), password_hash=password_hash, is_admin=changes.get("isAdmin"))

    def remove_user(self, username: str) -> None:
        self._write(users.remove, _named(self.users(), username))

    def keys(self, username: str) -> list[dict[str, Any]]:
        found = self._store.read_now(keys.of_user, _named(self.users(), username))
        return [
            {
                **msgspec.to_builtins(key),
                "createdAt": _stamp(key.created_at),
                "expiresAt": key.expires_at and _stamp(key.expires_at),
            }
            for key in found
        ]

    def add_key(self, username: str, wishes: dict[str, Any]) -> str:
        user_id = _named(self.users(), username)
        secret = secrets.token_hex(32)
        models = wishes.get("models")
        expires = wishes.get("expiresAt")
        self._write(
            keys.create,
            user_id,
            secret,
            _now(),
            label=wishes.get("label", keys.DEFAULT_LABEL),
            scopes=wishes.get("scopes", ("inference",)),
            models=None if models is None else [canonical(model) for model in models],
            expires_at=None if expires is None else datetime.fromisoformat(expires),
        )
        return secret

    def remove_key(self, username: str, prefix: str) -> None:
        user_id = _named(self.users(), username)
        self._write(keys.revoke, user_id, _one_key(self.keys(username), prefix)["id"])

    def _write(self, work: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return self._store.write_now(work, *arguments, **named)
        except FleetError as error:
            raise AccountError(error.status, str(error)) from None


def _named(found: list[dict[str, Any]], username: str) -> int:
    wanted = users.canonical_username(username)
    for user in found:
        if user["username"] == wanted:
            return int(user["id"])
    raise AccountError(PathUnknown.status, f"there is no user {wanted!r}; `fleetproxy users list` shows who there is")


def _one_key(found: list[dict[str, Any]], prefix: str) -> dict[str, Any]:
    fitting = [
        key for key in found if key["label"] == prefix or (len(prefix) >= 4 and key["prefix"].startswith(prefix))
    ]
    if len(fitting) != 1:
        how_many = "no key" if not fitting else "several keys"
        raise AccountError(PathUnknown.status, f"{how_many} of this user has the label or beginning {prefix!r}")
    return fitting[0]


def _hash(password: str) -> str:
    from fleetproxy.control.passwords import Hasher  # noqa: PLC0415  (argon2 is not needed to list)

    hasher = Hasher()
    try:
        return asyncio.run(hasher.hash(password))
    finally:
        hasher.close()


def _now() -> datetime:
    return datetime.now(UTC)


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
