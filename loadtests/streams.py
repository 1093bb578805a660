"""The mixin for users that ask for streams: sends the request, reads the answer line by line, fires its numbers as rows
of their own. So TTFT, ITL, TOKENS and E2E stand in Locust's table, its CSV files and its page.
"""

from __future__ import annotations

import time
from typing import Any

from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError

from loadtests.definitions import Answer, Broken, Measured

#: What reading an answer that breaks off ends with.
BROKEN_OFF = (HTTPParseError, HTTPConnectionClosed, OSError)


class StreamsMixin:
    """For a FastHttpUser.

    Locust's own row of such a request ends with the head of the answer; it fails when the stream is not whole.
    """

    def stream(
        self, path: str, body: dict[str, Any], *, name: str, base: str = "", headers: dict[str, str] | None = None
    ) -> Measured | None:
        """One streamed answer, its numbers fired under `name`; None when it failed. `base`: not at the user's host."""
        user: Any = self
        began_s = time.perf_counter()
        answer = Answer(began_s)
        measured: Measured | None = None
        with user.client.post(
            base + path, json=body, name=name, headers=headers, stream=True, catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(said(response))
                return None
            try:
                while line := response.stream.readline(b"\n"):
                    answer.see(line, time.perf_counter())
                measured = answer.end(time.perf_counter())
            except Broken as broken:
                response.failure(str(broken))
                response.release()
            except BROKEN_OFF as error:
                response.failure(f"it broke off: {error or type(error).__name__}")
        if measured is not None:
            self._fire(name, measured)
        return measured

    def _fire(self, name: str, measured: Measured) -> None:
        values = {
            "TTFT": measured.ttft_ms,
            "ITL": measured.itl_ms,
            "TOKENS": float(measured.tokens),
            "E2E": measured.e2e_ms,
        }
        for kind, value in values.items():
            if value is not None:
                fire(self, kind, name, value, length=measured.tokens)


def fire(user: Any, kind: str, name: str, value: float, *, length: int = 0, error: Exception | None = None) -> None:
    """A sample of our own: a row `kind name` in Locust's table."""
    user.environment.events.request.fire(
        request_type=kind,
        name=name,
        response_time=value,
        response_length=length,
        exception=error,
        context=user.context(),
    )


def said(response: Any) -> str:
    """Why a request failed, for the table of failures: equal failures in equal words."""
    if not response.status_code:
        return f"no answer: {type(response.error).__name__}"
    return f"status {response.status_code}: {(response.text or '').strip()[:120]}"
