"""What the backend beside a worker can do, read from it: its make, its version, its models."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from fleetproxy.core.backend import Backend
from fleetproxy.core.worker import Host, Listing, Offer
from fleetproxy.errors import FleetError
from fleetproxy.families.llm import listings
from fleetproxy.families.llm.listings import BadListing
from fleetproxy.transport.base import Call, Transport
from fleetproxy.worker.options import Options

MAX_ANSWER_BYTES = 8 * 1024 * 1024
CONNECT_S = 3.0
#: One look takes at most this, whatever REQUEST_TIMEOUT says.
MAX_PROBE_S = 10.0

Make = Literal["ollama", "openai"]


class ProbeFailed(Exception):
    """The backend does not answer as one; the text says what it did."""


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at the backend found."""

    make: Make
    models: tuple[str, ...]
    #: "ollama", "llama.cpp", "vllm", "" when it does not say.
    family: str = ""
    version: str = ""
    listing: Listing | None = None


class Probe:
    """Looks at one backend, again and again."""

    def __init__(self, options: Options, backend: Backend, transport: Transport, host: Host) -> None:
        self._options = options
        self._backend = backend
        self._transport = transport
        self._host = host
        #: What the backend is, once it has said so: not asked again.
        self._known: tuple[Make, str, str] | None = None
        key = backend.api_key
        self._lines = b"accept: application/json\r\n"
        if key is not None:
            self._lines += b"authorization: Bearer %b\r\n" % key.encode()

    async def look(self) -> Found:
        """What the backend can do now. Raises ProbeFailed."""
        try:
            async with asyncio.timeout(min(self._options.probe_timeout_s, MAX_PROBE_S)):
                return await self._look()
        except TimeoutError:
            self._known = None
            raise ProbeFailed("the backend does not answer in time") from None
        except ProbeFailed:
            self._known = None
            raise

    def offer(self, found: Found | None, vram_bytes: int | None) -> Offer:
        """What the worker offers after a look; nothing when it failed."""
        options = self._options
        if found is None:
            return Offer(
                embedding_batch_size=options.embedding_batch_size, status="not_ready", kind="openai", host=self._host
            )
        host = msgspec.structs.replace(self._host, backend_family=found.family, backend_version=found.version)
        return Offer(
            models=found.models,
            max_concurrency=options.max_concurrency,
            embedding_batch_size=options.embedding_batch_size,
            kind=found.make,
            host=host,
            vram_bytes=vram_bytes,
            listing=found.listing,
        ).bounded()

    async def _look(self) -> Found:
        if self._known is None:
            self._known = await self._identify()
        make, family, version = self._known
        if make == "ollama":
            return await self._ollama(family, version)
        models = await self._listing("/v1/models", "data", "id")
        # Such servers hold in memory what they list.
        resident = listings.resident(models)
        listing = Listing(v1_models=bytes(models.raw), resident=resident, on_disk=listings.on_disk(models))
        return Found(
            make="openai",
            models=tuple(model.name for model in resident),
            family=family,
            version=version,
            listing=listing,
        )

    async def _ollama(self, family: str, version: str) -> Found:
        tags = await self._listing("/api/tags", "models", "name")
        ps = await self._listing("/api/ps", "models", "name")
        on_disk = listings.on_disk(tags)
        listing = Listing(
            ps=bytes(ps.raw),
            tags=bytes(tags.raw),
            v1_models=await self._v1_models(),
            resident=listings.resident(ps),
            on_disk=on_disk,
        )
        return Found(
            make="ollama",
            models=tuple(model.name for model in on_disk),
            family=family,
            version=version,
            listing=listing,
        )

    async def _v1_models(self) -> bytes:
        try:
            return bytes((await self._listing("/v1/models", "data", "id")).raw)
        except ProbeFailed:
            return b"[]"

    async def _identify(self) -> tuple[Make, str, str]:
        """What the backend is, its family, its version."""
        style = self._options.style
        if self._options.family == "asr":
            return "openai", "", ""
        status, body = await self._get("/api/version")
        version = _field(body, "version") if status == 200 else ""
        if style == "ollama" or (style == "auto" and version):
            return "ollama", "ollama", version
        if version:
            return "openai", "ollama", version
        status, body = await self._get("/props")
        build = _field(body, "build_info") if status == 200 else ""
        if build:
            return "openai", "llama.cpp", build
        status, body = await self._get("/version")
        version = _field(body, "version") if status == 200 else ""
        return "openai", "vllm" if version else "", version

    async def _listing(self, path: str, key: str, name: str) -> listings.Listing:
        status, body = await self._get(path)
        if status != 200:
            raise ProbeFailed(f"{path} answered {status}")
        try:
            return listings.listing(body, key, name)
        except BadListing as error:
            raise ProbeFailed(f"{path}: {error}") from None

    async def _get(self, path: str) -> tuple[int, bytes]:
        target = self._backend.path_prefix + path
        call = Call(method=b"GET", target=target.encode(), header_lines=self._lines, body=b"", fresh=True)
        try:
            upstream = await self._transport.open(self._backend, call, CONNECT_S)
            try:
                answer = await upstream.answer()
                if answer.complete:
                    return answer.status, upstream.take()
                body, complete = await upstream.read(MAX_ANSWER_BYTES)
            finally:
                upstream.close()
        except FleetError as error:
            raise ProbeFailed(f"{path}: {error}") from None
        if not complete:
            raise ProbeFailed(f"{path}: the answer broke off, or is too long")
        return answer.status, body


def _field(body: bytes, name: str) -> str:
    """A text field of a JSON object, "" when there is none."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""
