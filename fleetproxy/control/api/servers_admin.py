"""Adding, changing, switching and removing servers. Reading them is `GET /api/servers`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response, Router, delete, patch, post
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import Meta

from fleetproxy import log
from fleetproxy.control.api.guard import ADMIN, Identity
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES, body, path_id
from fleetproxy.control.saying import Said
from fleetproxy.control.services import Services, services_of
from fleetproxy.control.state import servers
from fleetproxy.control.state.servers import ServerEntry
from fleetproxy.control.trial import PROMPT, Tell, Trial, Trier
from fleetproxy.control.trial import lines as lines_of
from fleetproxy.control.trial import shown as shown_trial
from fleetproxy.core.backend import Backend, Kind
from fleetproxy.core.destination import forbidden
from fleetproxy.errors import BackendError, BadRequest, PathUnknown, RateLimited
from fleetproxy.settings import Server
from fleetproxy.settings.servers import BadAddress, is_loopback, parse_url, to_backend

_log = log.get("control.servers")

FleetRequest = Request[Identity, Any, Any]

RESOLVE_S = 3.0
#: Servers tried at once.
MAX_TRIALS = 8
_LINES = "application/x-ndjson"
TRIAL_FAULT = "url required; model and prompt are texts, the other fields those of a server"
ADD_FAULT = (
    "name and url required; a name has no control characters and no invisible marks, url is "
    "http(s)://host[:port][/prefix], kind is ollama or openai, apiKey printable ASCII without spaces, "
    "hostHeader host or host:port"
)
CHANGE_FAULT = "isDisabled must be a boolean"

_Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
_Gigabytes = Annotated[float, Meta(gt=0, le=1_000_000)]
_Count = Annotated[int, Meta(ge=1, le=1_000_000)]
_Text = Annotated[str, Meta(max_length=1024)]
#: They become lines of requests, and a name in a handshake: what the configuration file may say, and nothing else.
_Token = Annotated[str, Meta(max_length=1024, pattern=r"^[\x21-\x7e]*\Z")]
_Host = Annotated[str, Meta(max_length=1024, pattern=r"^[A-Za-z0-9.:_\[\]-]*\Z")]
_Model = Annotated[str, Meta(min_length=1, max_length=256)]
_Prompt = Annotated[str, Meta(min_length=1, max_length=2000)]
UNSET = msgspec.UNSET
Unset = msgspec.UnsetType


class Changes(msgspec.Struct, rename="camel", kw_only=True):
    """What may be said of a server. `host`, `ramGb` and `backendType` are the fleet manager's words."""

    url: _Text | Unset = UNSET
    host: _Text | Unset = UNSET
    kind: Literal["ollama", "openai"] | Unset = UNSET
    backend_type: Literal["ollama", "vllm"] | Unset = UNSET
    api_key: _Token | Unset | None = UNSET
    vram_gb: _Gigabytes | Unset | None = UNSET
    ram_gb: _Gigabytes | Unset | None = UNSET
    max_concurrent: _Count | Unset | None = UNSET
    embedding_batch_size: _Count | Unset | None = UNSET
    http2: bool | Unset = UNSET
    tls_verify: bool | Unset = UNSET
    tls_server_name: _Host | Unset | None = UNSET
    host_header: _Host | Unset | None = UNSET
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] | Unset | None = UNSET
    is_disabled: bool | Unset = UNSET
    is_draining: bool | Unset = UNSET

    def fields(self) -> dict[str, Any]:
        """As fields of `settings.Server`."""
        given = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) is not UNSET}
        if self.host is not UNSET and "url" not in given:
            given["url"] = self.host
        if self.ram_gb is not UNSET and "vram_gb" not in given:
            given["vram_gb"] = self.ram_gb
        if self.backend_type is not UNSET and "kind" not in given:
            given["kind"] = "ollama" if self.backend_type == "ollama" else "openai"
        return given


_FIELDS = (
    "url", "kind", "api_key", "vram_gb", "max_concurrent", "embedding_batch_size", "http2", "tls_verify",
    "tls_server_name", "host_header", "metrics_port",
)  # fmt: skip


class NewServer(Changes, kw_only=True, rename="camel"):
    name: _Name


class TrialOfKnown(msgspec.Struct, kw_only=True, rename="camel"):
    model: _Model | None = None
    prompt: _Prompt = PROMPT


class TrialOfNew(Changes, kw_only=True, rename="camel"):
    model: _Model | None = None
    prompt: _Prompt = PROMPT


@post("/api/servers", opt=ADMIN, status_code=201)
async def add_server(request: FleetRequest) -> dict[str, Any]:
    """Add a server to the fleet."""
    services = services_of(request)
    asked = await body(request, NewServer, ADD_FAULT)
    fields = asked.fields()
    if not fields.get("url") or not asked.name.strip().isprintable():
        raise BadRequest(ADD_FAULT)
    try:
        server = msgspec.convert({**fields, "name": asked.name.strip()}, Server)
    except msgspec.ValidationError:
        raise BadRequest(ADD_FAULT) from None
    await check_address(services, server)
    entry = await services.store.write(
        servers.add,
        server,
        services.now(),
        is_disabled=True if asked.is_disabled is True else None,
        is_draining=asked.is_draining is True,
    )
    await services.take_in()
    _log.info("%s added server %s", request.user.name, server.name)
    return shown(entry)


@patch("/api/servers/{server_id:str}", opt=ADMIN)
async def change_server(request: FleetRequest, server_id: FromPath[str]) -> dict[str, bool]:
    """Maintenance (`isDisabled`) and draining (`isDraining`) of any server; settings of one added through the API."""
    services = services_of(request)
    number = path_id(server_id, "server ID")
    asked = await body(request, Changes, CHANGE_FAULT)
    fields = asked.fields()
    if not fields and asked.is_disabled is UNSET and asked.is_draining is UNSET:
        raise BadRequest(CHANGE_FAULT)
    if fields:
        entry = await services.store.read(servers.get, number)
        if entry is None:
            raise PathUnknown("Server not found")
        if entry.server is not None:
            await check_address(services, msgspec.structs.replace(entry.server, **fields))
    await services.store.write(
        servers.change,
        number,
        fields,
        is_disabled=None if asked.is_disabled is UNSET else asked.is_disabled,
        is_draining=None if asked.is_draining is UNSET else asked.is_draining,
    )
    await services.take_in()
    _log.info("%s changed server %d (%s)", request.user.name, number, ", ".join(_changed(asked, fields)))
    return {"ok": True}


@delete("/api/servers/{server_id:str}", opt=ADMIN, status_code=200)
async def remove_server(request: FleetRequest, server_id: FromPath[str]) -> Response[dict[str, bool]]:
    """Take a server that was added through the API out of the fleet; its open requests end by themselves."""
    services = services_of(request)
    entry = await services.store.write(servers.remove, path_id(server_id, "server ID"), services.now())
    await services.take_in()
    _log.info("%s removed server %s", request.user.name, entry.name)
    return Response({"ok": True})


@post("/api/servers/test", opt=ADMIN, status_code=200)
async def try_server(request: FleetRequest) -> Response[Any]:
    """Try a server that is not in the fleet (yet): is it there, of which kind, with which models; with `model`, does it
    answer. Nothing is kept. With `Accept: application/x-ndjson` it is told as it goes, in lines by `type`: step, found,
    thinking, text; the last is end (`ttftMs`, `tokens`, `tokensPerSecond`, `truncated`) or error.
    """
    services = services_of(request)
    asked = await body(request, TrialOfNew, TRIAL_FAULT)
    fields = asked.fields()
    if not fields.get("url"):
        raise BadRequest(TRIAL_FAULT)
    kinds: tuple[Kind, ...] = (fields["kind"],) if "kind" in fields else ()
    backend, fault = None, ""
    try:
        server = msgspec.convert({**fields, "name": "trial"}, Server)
        await check_address(services, server)
        backend = to_backend(server, id=0, column=-1)
    except msgspec.ValidationError:
        raise BadRequest(TRIAL_FAULT) from None
    except (BadAddress, BadRequest) as error:
        fault = str(error)
    return await _answer(request, _Tried(services, backend, fault, kinds, asked))


@post("/api/servers/{server_id:str}/test", opt=ADMIN, status_code=200)
async def try_known_server(request: FleetRequest, server_id: FromPath[str]) -> Response[Any]:
    """Try a server of the fleet, also one that is disabled or draining: is it there, what has it; with `model`, does it
    answer. With `Accept: application/x-ndjson` it is told as it goes, as that of a server that is not in the fleet.
    """
    services = services_of(request)
    number = path_id(server_id, "server ID")
    asked = await body(request, TrialOfKnown, TRIAL_FAULT) if await request.body() else TrialOfKnown()
    backend = next((one for one, _ in services.fleet.backends() if one.id == number), None)
    if backend is None or backend.kind == "worker":
        raise PathUnknown("Server not found")
    return await _answer(request, _Tried(services, backend, "", (backend.kind,), asked))


class _Tried(msgspec.Struct, frozen=True):
    """What is to be tried, and what is asked of it."""

    services: Services
    #: None: there can be none there; `fault` says why.
    backend: Backend | None
    fault: str
    kinds: tuple[Kind, ...]
    asked: TrialOfKnown | TrialOfNew

    async def run(self, tell: Tell | None = None) -> tuple[Trial, Said | None]:
        """Raises RateLimited."""
        services, backend = self.services, self.backend
        trier = Trier(services.trial_client, tell=tell)
        if backend is None:
            trier.step("address", False, self.fault)
            return Trial(ok=False, steps=tuple(trier.steps)), None
        if services.trials >= MAX_TRIALS:
            raise RateLimited("Too many servers are being tried at once; try again in a moment")
        services.trials += 1
        try:
            trier.step("address", True, f"{backend.scheme}://{backend.authority}{backend.path_prefix}")
            return await trier.run(backend, self.kinds, self.asked.model, self.asked.prompt), trier.said
        finally:
            services.trials -= 1


async def _answer(request: FleetRequest, tried: _Tried) -> Response[Any]:
    if _LINES not in request.headers.get("accept", ""):
        trial, _ = await tried.run()
        return Response(shown_trial(trial))
    return Stream(
        lines_of(tried.run), headers={"cache-control": "no-store", "x-accel-buffering": "no"}, media_type=_LINES
    )


async def check_address(services: Services, server: Server) -> None:
    """Refuse places no server of a fleet is at. Raises BadRequest."""
    try:
        address = parse_url(server.url, server.kind)
    except BadAddress as error:
        raise BadRequest(f"url: {error}") from None
    settings = services.settings()
    if is_loopback(address.host) and address.port == settings.port:
        raise BadRequest("url: this is fleetproxy itself")
    try:
        found = await services.resolver.look_up(address.host, RESOLVE_S)
    except BackendError:
        return  # a name that DNS does not know now is polled, and shown as offline, until it does
    for ip in found:
        why = forbidden(ip)
        if why is not None:
            raise BadRequest(f"url: {address.host} may not be connected to: {why}")


def shown(entry: ServerEntry) -> dict[str, Any]:
    """An entry as the API shows it: never its key."""
    server = entry.server
    return {
        "id": entry.id,
        "name": entry.name,
        "origin": entry.origin,
        "url": server.url if server else None,
        "kind": server.kind if server else None,
        "isDisabled": entry.is_disabled is True,
        "isDraining": entry.is_draining,
    }


def _changed(asked: Changes, fields: dict[str, Any]) -> list[str]:
    switches = [name for name in ("is_disabled", "is_draining") if getattr(asked, name) is not UNSET]
    return [*fields, *(f"{name}={getattr(asked, name)}" for name in switches)]


handlers = [
    Router(
        path="/",
        route_handlers=[add_server, try_server, try_known_server, change_server, remove_server],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["servers"],
    )
]
