"""A dial-in worker as it tells of itself, and what it is to routing: a backend whose address is the hub.

Whatever a worker says comes from outside: `Offer.bounded()` cuts it down to what we keep, once, before anybody sees it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Literal

import msgspec

from fleetproxy.core.backend import Backend, BackendState, DiskModel, Kind, ResidentModel

MAX_MODELS = 1000
#: All names of one worker together. A thousand of the longest would leave no room for the rest of what is said of it.
MAX_MODELS_BYTES = 256 * 1024
MAX_NAME_CHARACTERS = 256
MAX_LABEL_CHARACTERS = 128
MAX_CONCURRENCY = 1024
MAX_BATCH = 65536
#: What one worker's model lists may hold; more is left out (its models are routed all the same).
MAX_LISTING_BYTES = 512 * 1024

Status = Literal["idle", "not_ready", "draining"]
WireProtocol = Literal["fleetproxy.v1", "nfrx"]


class Host(msgspec.Struct, frozen=True, omit_defaults=True):
    """The machine and the backend behind a worker. Empty: it did not say."""

    hostname: str = ""
    os_name: str = ""
    os_version: str = ""
    #: "ollama", "llama.cpp", "vllm", ...
    backend_family: str = ""
    backend_version: str = ""


class Listing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What our own agent read from its backend, as a poll of it would have: JSON arrays, bytes untouched."""

    #: Entries of /api/ps, /api/tags and /v1/models.
    ps: bytes = b"[]"
    tags: bytes = b"[]"
    v1_models: bytes = b"[]"
    resident: tuple[ResidentModel, ...] = ()
    on_disk: tuple[DiskModel, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Roughly, and not less than what it takes on the wire."""
        models: tuple[ResidentModel | DiskModel, ...] = (*self.resident, *self.on_disk)
        texts = sum(len(text) * 4 + 64 for model in models for text in _texts(model))
        return len(self.ps) + len(self.tags) + len(self.v1_models) + texts


class Offer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker can do at this moment."""

    models: tuple[str, ...] = ()
    #: Requests it takes at once; 0: none now.
    max_concurrency: int = 0
    #: Inputs of one embeddings request it likes best; 0: no preference.
    embedding_batch_size: int = 0
    status: Status = "idle"
    #: What its backend speaks. A stock nfrx agent is "worker": OpenAI paths only.
    kind: Kind = "worker"
    host: Host = Host()
    vram_bytes: int | None = None
    listing: Listing | None = None

    def bounded(self) -> Offer:
        """The same within our limits: cut, de-duplicated, clamped, printable."""
        listing = self.listing
        if listing is not None and (
            listing.size_bytes > MAX_LISTING_BYTES or len(listing.resident) + len(listing.on_disk) > 2 * MAX_MODELS
        ):
            listing = None
        host = self.host
        return Offer(
            models=bounded_models(self.models),
            max_concurrency=min(max(self.max_concurrency, 0), MAX_CONCURRENCY),
            embedding_batch_size=min(max(self.embedding_batch_size, 0), MAX_BATCH),
            status=self.status,
            kind=self.kind,
            host=Host(*(printable(getattr(host, field), MAX_LABEL_CHARACTERS) for field in host.__struct_fields__)),
            vram_bytes=self.vram_bytes if self.vram_bytes is not None and 0 < self.vram_bytes < 2**63 else None,
            listing=listing,
        )

    @property
    def slots(self) -> int:
        """Requests it may get now."""
        return self.max_concurrency if self.status == "idle" else 0


class Worker(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A worker that is connected."""

    id: str
    #: Unique among those connected, unlike the name it gave.
    name: str
    #: "llm", "asr".
    family: str = "llm"
    #: On the load board; of `WORKER_COLUMNS`.
    column: int
    protocol: WireProtocol = "nfrx"
    version: str = ""
    build_sha: str = ""
    build_date: str = ""
    #: Where it dialled in from.
    remote: str = ""
    offer: Offer = Offer()
    #: Seconds since the epoch.
    connected_at_s: float = 0.0
    last_heartbeat_s: float = 0.0
    cpu_percent: float = 0.0
    ram_percent: float = 0.0

    def light(self) -> Worker:
        """The same without the raw lists, which only control needs."""
        listing = self.offer.listing
        if listing is None:
            return self
        offer = msgspec.structs.replace(self.offer, listing=Listing(resident=listing.resident, on_disk=listing.on_disk))
        return msgspec.structs.replace(self, offer=offer)


def _texts(model: ResidentModel | DiskModel) -> Iterable[str]:
    return [value for value in msgspec.structs.astuple(model) if isinstance(value, str)]


def printable(text: str, most: int) -> str:
    """A label from outside: no control characters, no line breaks, not too long."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:most]).strip()


def bounded_models(models: Iterable[str]) -> tuple[str, ...]:
    """Each once, in order, without impossible names, at most MAX_MODELS in MAX_MODELS_BYTES."""
    kept: dict[str, None] = {}
    size = 0
    for model in models:
        if model and len(model) <= MAX_NAME_CHARACTERS and model.isprintable() and model.strip() == model:
            size += len(model.encode()) if model not in kept else 0
            if size > MAX_MODELS_BYTES:
                break
            kept[model] = None
            if len(kept) == MAX_MODELS:
                break
    return tuple(kept)


def unique_name(wanted: str, worker_id: str, taken: Iterable[str]) -> str:
    """A backend name for a worker: the one it gave, told apart by its id where somebody has that name already."""
    folded = {name.lower() for name in taken}
    base = wanted or worker_id[:8]
    for name in (base, f"{base}-{worker_id[:8]}", f"{base}-{worker_id}"):
        if name.lower() not in folded:
            return name
    number = 2
    while f"{base}-{number}".lower() in folded:
        number += 1
    return f"{base}-{number}"


def number_of(family: str, worker_id: str) -> int:
    """A worker's number in the dashboard API: the same wherever it is computed, far from those of servers."""
    return 2**32 + zlib.crc32(f"{family}/{worker_id}".encode())


def backend_of(worker: Worker) -> Backend:
    """The backend a worker is."""
    offer = worker.offer
    return Backend(
        name=worker.name,
        id=number_of(worker.family, worker.id),
        column=worker.column,
        kind=offer.kind,
        scheme="hub",
        host=worker.id,
        port=0,
        max_concurrent=max(offer.max_concurrency, 1),
        embedding_batch_size=offer.embedding_batch_size or None,
        vram_bytes=offer.vram_bytes,
        enabled=offer.slots > 0,
        draining=offer.status == "draining",
    )


def _v1_models(worker: Worker) -> bytes:
    """What /v1/models of a worker that named its models only would have listed."""
    created = int(worker.connected_at_s)
    listed = [
        {"id": model, "object": "model", "created": created, "owned_by": worker.name} for model in worker.offer.models
    ]
    return msgspec.json.encode(listed)


def state_of(worker: Worker) -> BackendState:
    """What a poll of the worker's backend would have said."""
    offer = worker.offer
    resident: tuple[ResidentModel, ...] = ()
    on_disk = tuple(DiskModel(name=model) for model in offer.models)
    listing = offer.listing
    if listing is not None:
        listed = {model.name for model in listing.on_disk}
        resident = listing.resident
        on_disk = listing.on_disk + tuple(model for model in on_disk if model.name not in listed)
    elif offer.host.backend_family != "ollama":
        # Servers other than Ollama hold in memory what they list.
        resident = tuple(ResidentModel(name=model) for model in offer.models)
    return BackendState(
        online=offer.slots > 0,
        version=offer.host.backend_version or None,
        resident=resident,
        on_disk=on_disk,
        raw_ps=msgspec.Raw(listing.ps if listing else b"[]"),
        raw_tags=msgspec.Raw(listing.tags if listing else b"[]"),
        raw_v1_models=msgspec.Raw(listing.v1_models if listing else _v1_models(worker)),
        polled_at_s=worker.last_heartbeat_s or worker.connected_at_s,
        consecutive_successes=1 if offer.slots else 0,
        consecutive_failures=0 if offer.slots else 1,
    )
