"""The part of Telegram's bot API we use. Tokens stand in its paths, so nothing here is ever logged or shown."""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

from fleetproxy.control.ports import Caller
from fleetproxy.control.registry import backend_at
from fleetproxy.errors import BadResponse

TIMEOUT_S = 10.0
#: Telegram may ask for a pause; longer ones than this are cut to it.
MAX_PAUSE_S = 3600.0
_TOKEN = re.compile(r"[A-Za-z0-9:_-]{1,256}", re.ASCII)
#: Statuses that trying again cannot cure: a wrong token, a chat that is gone, a text it does not take.
_HOPELESS = frozenset({400, 401, 403, 404})


class BadToken(Exception):
    """Telegram does not know this bot."""


class Later(Exception):
    """Telegram asks for a pause."""

    def __init__(self, pause_s: float) -> None:
        super().__init__(f"later: {pause_s:.0f} s")
        self.pause_s = pause_s


class Hopeless(Exception):
    """This message will never be taken."""


class _Parameters(msgspec.Struct, frozen=True):
    retry_after: float = 0.0


class _Answer(msgspec.Struct):
    ok: bool = False
    parameters: _Parameters = _Parameters()


class Telegram:
    def __init__(self, caller: Caller, api_url: Callable[[], str]) -> None:
        self._caller = caller
        self._api_url = api_url

    async def check(self, token: str) -> None:
        """Raises BadToken, or BackendError when Telegram could not be asked."""
        if not _TOKEN.fullmatch(token):
            raise BadToken
        reply = await self._caller.send(backend_at(self._api_url()), "GET", f"/bot{token}/getMe", TIMEOUT_S)
        if not 200 <= reply.status < 300:
            raise BadToken

    async def send(self, token: str, chat_id: str, html: str) -> None:
        """Send one message. Raises Later, Hopeless or BackendError."""
        if not _TOKEN.fullmatch(token):
            raise Hopeless
        body = msgspec.json.encode(
            {"chat_id": chat_id, "text": html, "parse_mode": "HTML", "disable_web_page_preview": True}
        )
        path = f"/bot{token}/sendMessage"
        reply = await self._caller.send(backend_at(self._api_url()), "POST", path, TIMEOUT_S, json=body)
        if 200 <= reply.status < 300:
            return
        if reply.status == 429:
            raise Later(min(MAX_PAUSE_S, max(1.0, _pause(reply.body))))
        if reply.status in _HOPELESS:
            raise Hopeless
        raise BadResponse(f"Telegram answered {reply.status}")


def _pause(body: bytes) -> float:
    try:
        return msgspec.json.decode(body, type=_Answer).parameters.retry_after
    except (msgspec.DecodeError, RecursionError):
        return 1.0
