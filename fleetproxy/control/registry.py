"""Can a model be had again? Asked of the public registries, only when somebody wants to know."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta
from urllib.parse import quote

import msgspec

from fleetproxy.control.ports import Caller
from fleetproxy.core.backend import Backend
from fleetproxy.errors import BackendError
from fleetproxy.settings import Discovery
from fleetproxy.settings.servers import parse_url

REMEMBERED_FOR = timedelta(hours=24)
#: An answer we could not get is asked for again sooner.
FAILURE_REMEMBERED_FOR = timedelta(minutes=5)
MAX_REMEMBERED = 1000
TIMEOUT_S = 10.0
_ABSENT = frozenset({400, 401, 403, 404, 405, 410})


class Check(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    on_ollama: bool
    on_huggingface: bool
    checked_at: datetime
    #: A registry could not be asked; it counts as "not there".
    unsure: bool = False

    @property
    def is_custom(self) -> bool:
        return not (self.on_ollama or self.on_huggingface)


class Registry:
    def __init__(self, caller: Caller, settings: Callable[[], Discovery], now: Callable[[], datetime]) -> None:
        self._caller = caller
        self._settings = settings
        self._now = now
        self._known: OrderedDict[str, Check] = OrderedDict()

    async def check(self, model: str) -> Check:
        """Names with a slash are looked for at Hugging Face, others in Ollama's library."""
        known = self._known.get(model)
        kept_for = FAILURE_REMEMBERED_FOR if known and known.unsure else REMEMBERED_FOR
        if known is not None and self._now() - known.checked_at < kept_for:
            return known
        hugging = "/" in model
        if hugging:
            repository = model.removeprefix("hf.co/").removeprefix("huggingface.co/").partition(":")[0]
            there = await self._ask(self._settings().huggingface_url, "GET", f"/api/models/{_path(repository)}")
        else:
            name, _, tag = model.partition(":")
            manifest = f"/v2/library/{_path(name)}/manifests/{_path(tag or 'latest')}"
            there = await self._ask(self._settings().ollama_registry_url, "HEAD", manifest)
        check = Check(
            model=model,
            on_ollama=not hugging and there is True,
            on_huggingface=hugging and there is True,
            checked_at=self._now(),
            unsure=there is None,
        )
        self._known[model] = check
        self._known.move_to_end(model)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
        return check

    async def _ask(self, url: str, method: str, path: str) -> bool | None:
        """Whether it is there; None when the registry did not say."""
        try:
            status = (await self._caller.send(backend_at(url), method, path, TIMEOUT_S)).status
        except BackendError:
            return None
        return True if status == 200 else False if status in _ABSENT else None


def backend_at(url: str) -> Backend:
    """A place on the internet as something the control plane's client can call. Raises BadAddress."""
    address = parse_url(url, "openai")
    return Backend(
        name=f"{address.scheme}://{address.host}:{address.port}",
        id=0,
        column=0,
        kind="openai",
        scheme=address.scheme,
        host=address.host,
        port=address.port,
        path_prefix=address.prefix,
    )


def _path(text: str) -> str:
    """Text of a caller as path segments of a URL: it can name nothing outside of them."""
    segments = (quote(segment, safe="") for segment in text.split("/"))
    return "/".join("%2E" * len(segment) if segment and not segment.strip(".") else segment for segment in segments)
