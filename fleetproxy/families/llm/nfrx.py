"""nfrx's surface: `/api/llm/v1/*`, the same for one worker under `/api/llm/id/{worker}/v1/*`, and its model lists.

Dial-in workers and configured servers serve it alike; they are asked at the plain `/v1/*` path. Its lists are made from
the routing table in the data plane, so a worker is in them as soon as the hub has it, and out of them when it left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import unquote

import msgspec

from fleetproxy.core.operation import Endpoint
from fleetproxy.core.table import RoutingTable
from fleetproxy.families.llm import openai

_PREFIX, _PINNED_PREFIX = "/api/llm", "/api/llm/id/{worker}"
_SERVED = ("v1_chat_completions", "v1_completions", "v1_responses", "v1_embeddings", "v1_models", "v1_model")
_PINNED_DOC = " By the worker (its id) or the server (its name) in the path, and nobody else."
#: Told as the owner where backends are not named (`routing.hide_backends`).
_NOBODY = "fleetproxy"


def _rows() -> Iterable[Endpoint]:
    served = {endpoint.name: endpoint for endpoint in openai.ENDPOINTS}
    for name in _SERVED:
        row = served[name]
        family = msgspec.structs.replace(row, surface="family", forward=row.path.encode())
        word = name.removeprefix("v1_")
        yield msgspec.structs.replace(family, name=f"llm_{word}", path=_PREFIX + row.path)
        yield msgspec.structs.replace(
            family, name=f"llm_id_{word}", path=_PINNED_PREFIX + row.path, pinned=True, doc=row.doc + _PINNED_DOC
        )


ENDPOINTS: tuple[Endpoint, ...] = tuple(_rows())


def worker_of(path: str) -> str:
    """The worker or server that a raw path of a pinned endpoint names, percent-escapes undone."""
    return unquote(path.split("/", 5)[4], errors="replace")


# --- lists -----------------------------------------------------------------------------------------------------------


class _Entry(msgspec.Struct, frozen=True):
    id: str
    object: str
    #: Seconds since the epoch when the model was first seen.
    created: int
    owned_by: str


_encode = msgspec.json.Encoder().encode


def entries(
    table: RoutingTable,
    first_seen_s: Mapping[str, int],
    now_s: int,
    *,
    only: int | None = None,
    hide_backends: bool = False,
) -> dict[str, bytes]:
    """Model id -> its JSON object, sorted by id: what usable backends list, `owned_by` their names, sorted.

    `only` is an index into `table.backends`: that backend's models alone. A model that control has not seen yet was
    created `now_s`.
    """
    owners: dict[str, set[str]] = {}
    for routes in table.models.values():
        for route in routes:
            if only is None or route.backend == only:
                owners.setdefault(route.model, set()).add(table.backends[route.backend].backend.name)
    return {
        model: _encode(
            _Entry(
                model,
                "model",
                first_seen_s.get(model, now_s),
                _NOBODY if hide_backends else ",".join(sorted(owners[model])),
            )
        )
        for model in sorted(owners)
    }


def body(listed: Mapping[str, bytes]) -> bytes:
    """The list of these entries. Empty it is `[]`, where nfrx said null."""
    return b'{"object":"list","data":[' + b",".join(listed.values()) + b"]}"


def queue_event(request_id: str, model: str, position: int) -> bytes:
    """What a streaming caller of this surface sees while it stands in line."""
    said = {"type": "nfrx.queue", "request_id": request_id, "model": model, "position": position}
    return b"event: nfrx.queue\ndata: " + _encode(said) + b"\n\n"
