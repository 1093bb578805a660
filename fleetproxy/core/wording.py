"""The code words of decisions and errors, as sentences for people: one wording for dashboard, command line and API."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from fleetproxy.core import selection
from fleetproxy.core.explain import Verdict
from fleetproxy.core.record import Outcome
from fleetproxy.errors import FleetError

#: Why a server was asked first (`x-fleet-route`).
REASONS: dict[str, str] = {
    selection.LOADED: "The model was in this server's memory, and it was the least busy of those that hold it.",
    selection.LOADED_BUSY: "Every server that could answer was full; one that holds the model in memory was awaited.",
    selection.AVAILABLE: "No usable server held the model in memory; this one has it on disk and loaded it.",
    selection.AVAILABLE_BUSY: "Every server that has the model was full; the request waited for one of them.",
    selection.REDIRECTED: "The servers that hold the model in memory were full; this one has it on disk.",
    selection.MOST_VRAM: "No server lists the model; the one with the most free video memory was asked, once.",
    selection.ANY: "The path names no model; any online server that speaks it would do.",
    selection.PINNED: "The caller named this server (X-Ollama-Pin-Server).",
    selection.AFFINITY: "Uploads of one caller always go to the same server, so that what follows finds them there.",
    selection.MOST_SPACE: "A pull goes to the server with the most room.",
}
#: Why a server was or was not asked.
VERDICTS: dict[Verdict, str] = {
    "chosen": "Asked first.",
    "next": "Asked when those before it could not serve.",
    "waited_for": "Full: the request stands in line for it.",
    "offline": "It does not answer our polls.",
    "maintenance": "It is disabled or draining: it gets nothing new.",
    "not_pinned": "The caller named another server.",
    "dialect": "It does not speak this path.",
    "model_missing": "It does not have the model; others do.",
    "full": "All its slots are taken or waited for, and others are free.",
    "tripped": "It failed several times in a row lately and is left alone for a while; others are sound.",
    "not_allowed": "The caller's key may not use this model.",
    "not_preferred": "One server is enough here, and another one came first.",
}
OUTCOMES: dict[Outcome, str] = {
    "ok": "The server's answer went through whole.",
    "refused": "Refused here; no server was asked.",
    "backend_error": "No answer could be had from a server.",
    "truncated": "The answer broke off after it had begun; the caller saw it break.",
    "client_gone": "The caller left before the answer was complete.",
    "aborted": "fleetproxy was stopped while it ran.",
}


def reason_words(reason: str | None) -> str:
    """A sentence for a route reason; "" for none, the word itself for one we do not know."""
    return "" if reason is None else REASONS.get(reason, reason)


def error_words(code: str | None) -> str:
    """A sentence for an error code; "" for none, the word itself for one we do not know."""
    return "" if code is None else _errors().get(code, code)


@cache
def _errors() -> dict[str, str]:
    return {kind.code: " ".join((kind.__doc__ or "").split()) for kind in reversed(list(_kinds(FleetError)))}


def _kinds(kind: type[FleetError]) -> Iterator[type[FleetError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)
