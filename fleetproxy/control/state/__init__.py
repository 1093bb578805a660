"""Operational state: users, sessions, keys, servers, settings, jobs, subscriptions. Small, transactional, never lost.

`Store` owns the database; the other modules are its questions and changes: plain functions `(session, ...) -> value`,
run by `await store.read(function, ...)` or `await store.write(function, ...)`, each call one transaction.

    store = await Store.open(data / "state.db")
    ids = await store.write(servers.register, ("gpu1", "gpu2"), now)     # stable numbers, never reused
    principals = await store.read(keys.principals, now)                  # sha256 -> Principal, for the snapshot
"""

from __future__ import annotations

from fleetproxy.control.state.store import Store
from fleetproxy.control.state.upgrade import StoreBroken, StoreNewer

__all__ = ["Store", "StoreBroken", "StoreNewer"]
