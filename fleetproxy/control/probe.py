"""One poll of one server: what it says about itself, read. Never raises for what a server does."""

from __future__ import annotations

from collections.abc import MutableSet
from typing import Protocol

import msgspec

from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendError
from fleetproxy.families.llm import listings
from fleetproxy.families.llm.listings import BadListing, Listing

#: Statuses that mean "there is no such path here", as opposed to "not now".
_ABSENT = frozenset({*range(300, 400), 400, 404, 405, 410, 501})
_UNAUTHORISED = frozenset({401, 403})


class Reply(Protocol):
    """One whole answer of a server."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...


class Getter(Protocol):
    """`transport.httpx_client.HttpxClient`, or whatever answers in its place. Failures are BackendErrors."""

    async def get(self, backend: Backend, path: str, timeout_s: float) -> Reply: ...


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What one poll found. A listing is None when the server did not give it this time: the last one stays."""

    #: The server is up and answers as its kind should.
    reachable: bool
    #: Why not, or what was missing; a sentence for the operator, without addresses.
    error: str | None = None
    version: str | None = None
    #: `/api/ps`.
    resident: Listing | None = None
    #: `/api/tags`.
    on_disk: Listing | None = None
    #: `/v1/models`.
    v1_models: Listing | None = None


class _Refused(Exception):
    """A path gave no answer we can use; the text says why. `gone`: it is not worth asking this server for more."""

    def __init__(self, text: str, *, status: int | None = None, gone: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.gone = gone


class _Asking:
    """One server, asked one thing at a time."""

    def __init__(self, client: Getter, backend: Backend, timeout_s: float, absent: MutableSet[str]) -> None:
        self.client = client
        self.backend = backend
        self.timeout_s = timeout_s
        #: Optional paths this server does not have; they are not asked again.
        self.absent = absent
        self.complaints: list[str] = []

    async def get(self, path: str) -> bytes:
        """The body at `path`. Raises _Refused."""
        try:
            reply = await self.client.get(self.backend, path, self.timeout_s)
        except BackendError as error:
            raise _Refused(f"{path}: {error}", gone=True) from None
        if 200 <= reply.status < 300:
            return reply.body
        if reply.status in _UNAUTHORISED:
            why = "it refuses our key; check api_key" if self.backend.api_key else "it wants a key; set api_key"
            raise _Refused(f"{path} answered {reply.status}: {why}", status=reply.status)
        raise _Refused(f"{path} answered {reply.status}", status=reply.status)

    async def listing(self, path: str, key: str, name: str) -> Listing | None:
        """The listing at `path`; None (and a complaint) when there is none. Raises _Refused when the server is gone."""
        try:
            return listings.listing(await self.get(path), key, name)
        except BadListing as error:
            self.complaints.append(f"{path}: {error}")
        except _Refused as refusal:
            self.complaints.append(str(refusal))
            if refusal.gone:
                raise
        return None

    async def optional(self, path: str) -> bytes | None:
        """The body at a path that not every server has. Raises _Refused when it is there but not well."""
        if path in self.absent:
            return None
        try:
            return await self.get(path)
        except _Refused as refusal:
            if refusal.status not in _ABSENT:
                raise
            self.absent.add(path)
            return None

    @property
    def complaint(self) -> str | None:
        return "; ".join(self.complaints) or None


async def probe(client: Getter, backend: Backend, timeout_s: float, absent: MutableSet[str]) -> Probe:
    """Ask a server what there is to know, one request at a time, each in at most `timeout_s` seconds.

    A server that does not answer is asked once only. `absent` remembers, from poll to poll, optional paths it lacks.
    """
    asking = _Asking(client, backend, timeout_s, absent)
    return await (_ollama(asking) if backend.kind == "ollama" else _openai(asking))


async def _ollama(asking: _Asking) -> Probe:
    """Up means: `/api/version` or one of the native lists answers as Ollama does."""
    version = None
    known = False
    try:
        version = listings.version(await asking.get("/api/version"))
        known = version is not None
        if not known:
            asking.complaints.append("/api/version: the answer has no version")
    except BadListing as error:
        asking.complaints.append(f"/api/version: {error}")
    except _Refused as refusal:
        if refusal.gone:
            return Probe(reachable=False, error=str(refusal))
        asking.complaints.append(str(refusal))
    resident = on_disk = v1_models = None
    try:
        on_disk = await asking.listing("/api/tags", "models", "name")
        resident = await asking.listing("/api/ps", "models", "name")
        if on_disk is not None or resident is not None:
            body = await asking.optional("/v1/models")
            v1_models = None if body is None else listings.listing(body, "data", "id")
    except (_Refused, BadListing):
        pass  # the complaint is kept; what we have so far counts
    reachable = known or on_disk is not None or resident is not None
    return Probe(
        reachable=reachable,
        error=asking.complaint,
        version=version,
        resident=resident,
        on_disk=on_disk,
        v1_models=v1_models,
    )


async def _openai(asking: _Asking) -> Probe:
    """Up means: `/health` does not say otherwise, and `/v1/models` lists models."""
    try:
        await asking.optional("/health")
        models = await asking.listing("/v1/models", "data", "id")
    except _Refused as refusal:
        return Probe(reachable=False, error=_not_ready(refusal))
    if models is None:
        return Probe(reachable=False, error=asking.complaint)
    version = None
    try:
        told = await asking.optional("/version")
        version = None if told is None else listings.version(told)
    except (_Refused, BadListing):
        pass  # nice to know, nothing more
    return Probe(reachable=True, version=version, v1_models=models)


def _not_ready(refusal: _Refused) -> str:
    return f"{refusal}: it is not ready (loading a model?)" if refusal.status == 503 else str(refusal)
