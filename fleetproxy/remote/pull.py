"""Pulling a model, step by step."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

from fleetproxy.remote.call import CallError, Fleet, error_text

#: A server may check a large file for minutes without a word.
SILENCE_S = 900.0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One line of progress."""

    status: str
    #: The line as it came.
    line: str
    server: str = ""
    done_bytes: int | None = None
    total_bytes: int | None = None


def pull(fleet: Fleet, model: str, *, server: str | None = None, insecure: bool = False) -> Iterator[Step]:
    """Steps until it is there. Raises CallError, also when the steps end before that."""
    body = {"model": model, "stream": True} | ({"insecure": True} if insecure else {})
    with fleet.stream("POST", "/api/pull", body, server=server) as stream:
        where = stream.headers.get("x-fleet-backend", "")
        for line in stream.lines:
            try:
                value = json.loads(line) if line else {}
            except ValueError:
                raise CallError("failed", f"the server told progress that is no JSON: {line[:80]!r}") from None
            if not isinstance(value, dict) or not value:
                continue
            if text := error_text(value):
                raise CallError("missing" if "does not exist" in text else "failed", text)
            status = str(value.get("status") or "")
            yield Step(
                status=status,
                line=line.decode(errors="replace"),
                server=where,
                done_bytes=value.get("completed", 0) if value.get("total") else None,
                total_bytes=value.get("total"),
            )
            if status == "success":
                return
    raise CallError("failed", "the server broke off before it had all of it; the same again goes on from there")
