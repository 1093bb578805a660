"""`/api/settings/*`: a user's Telegram chat and subscriptions, the fleet's options and webhook."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, Router, delete, get, post, put
from msgspec import Meta

from fleetproxy import log
from fleetproxy.control.api.guard import ADMIN, USER, Identity
from fleetproxy.control.api.reading import EXCEPTION_HANDLERS, MAX_BODY_BYTES, body
from fleetproxy.control.notify.messages import KINDS
from fleetproxy.control.notify.telegram import BadToken, Hopeless, Later
from fleetproxy.control.services import services_of
from fleetproxy.control.state import notices, options
from fleetproxy.control.state.notices import Subscription, Webhook
from fleetproxy.core.destination import forbidden
from fleetproxy.errors import BackendError, BadRequest, ConnectFailed, PathUnknown
from fleetproxy.settings.servers import BadAddress, parse_url

_log = log.get("control.settings")

FleetRequest = Request[Identity, Any, Any]

CHAT_FAULT = "Bot token and chat ID required"
SUBSCRIPTIONS_FAULT = "Invalid subscriptions payload"
WEBHOOK_FAULT = f"url (http or https) required; secret (text), events (of {', '.join(KINDS)}), isEnabled (boolean)"
HELLO = "fleetproxy: Telegram notifications configured successfully!"
MAX_SUBSCRIPTIONS = 2000
MASK = "****"


class ChatUpdate(msgspec.Struct, rename="camel"):
    bot_token: Annotated[str, Meta(min_length=1, max_length=256)]
    chat_id: Annotated[str, Meta(min_length=1, max_length=128)]
    is_enabled: bool = True


class Wanted(msgspec.Struct, rename="camel"):
    server_id: Annotated[int, Meta(gt=0, lt=2**53)]
    notify_offline: bool
    notify_online: bool
    notify_reboot: bool


class OptionUpdate(msgspec.Struct):
    key: str
    value: Any


class WebhookUpdate(msgspec.Struct, rename="camel"):
    url: Annotated[str, Meta(min_length=1, max_length=1024)]
    #: Absent or the mask: the secret stays; null: none.
    secret: Annotated[str, Meta(max_length=256)] | msgspec.UnsetType | None = msgspec.UNSET
    events: Annotated[tuple[str, ...], Meta(max_length=32)] = ()
    is_enabled: bool = True


@get("/api/settings/telegram", opt=USER)
async def show_chat(request: FleetRequest) -> Response[dict[str, Any] | None]:
    """The caller's own chat, its token masked; null when there is none."""
    chat = await services_of(request).store.read(notices.chat, request.user.own.id)
    if chat is None:
        return Response(None, media_type="application/json")
    return Response({"chatId": chat.chat_id, "botToken": mask(chat.bot_token), "isEnabled": chat.is_enabled})


@put("/api/settings/telegram", opt=USER)
async def change_chat(request: FleetRequest) -> dict[str, bool]:
    """Set the caller's own chat. The token is tried; the mask sent back keeps the one we have."""
    services = services_of(request)
    user = request.user.own
    asked = await body(request, ChatUpdate, CHAT_FAULT)
    if not asked.bot_token.strip() or not asked.chat_id.strip():
        raise BadRequest(CHAT_FAULT)
    token = asked.bot_token.strip()
    known = await services.store.read(notices.chat, user.id)
    if known is not None and token == mask(known.bot_token):
        token = known.bot_token
    try:
        await services.notifier.telegram.check(token)
    except BadToken:
        raise BadRequest("Invalid bot token") from None
    except BackendError:
        raise BadRequest("Failed to validate bot token") from None
    chat = notices.Chat(user.id, token, asked.chat_id.strip(), asked.is_enabled)
    await services.store.write(notices.set_chat, chat, services.now())
    services.notifier.greet(chat, HELLO)
    _log.info("%s set a Telegram chat", user.username)
    return {"ok": True}


@delete("/api/settings/telegram", opt=USER, status_code=200)
async def remove_chat(request: FleetRequest) -> dict[str, bool]:
    """Forget the caller's own chat."""
    await services_of(request).store.write(notices.drop_chat, request.user.own.id)
    return {"ok": True}


@post("/api/settings/telegram/test", opt=USER, status_code=200)
async def try_chat(request: FleetRequest) -> dict[str, Any]:
    """Send a test to the caller's own chat now: whether it was taken (`ok`), else why not (`detail`)."""
    services = services_of(request)
    chat = await services.store.read(notices.chat, request.user.own.id)
    if chat is None:
        raise PathUnknown("No chat is set: save one first")
    return await _tried(services.notifier.try_chat(chat, request.user.name), "Telegram has taken the message.")


@get("/api/settings/subscriptions", opt=USER)
async def list_subscriptions(request: FleetRequest) -> list[dict[str, Any]]:
    """What the caller hears of: by server, offline, online, reboot."""
    found = await services_of(request).store.read(notices.subscriptions, request.user.own.id)
    return [msgspec.to_builtins(one) for one in found]


@put("/api/settings/subscriptions", opt=USER)
async def change_subscriptions(request: FleetRequest) -> dict[str, bool]:
    """Replace the caller's subscriptions: all of them, or (on any fault) none."""
    services = services_of(request)
    asked = await body(request, list[Wanted], SUBSCRIPTIONS_FAULT)
    if len(asked) > MAX_SUBSCRIPTIONS:
        raise BadRequest(SUBSCRIPTIONS_FAULT)
    wanted = [
        Subscription(
            server_id=one.server_id,
            notify_offline=one.notify_offline,
            notify_online=one.notify_online,
            notify_reboot=one.notify_reboot,
        )
        for one in asked
    ]
    await services.store.write(notices.subscribe, request.user.own.id, wanted, services.now())
    return {"ok": True}


@get("/api/settings/fleet", opt=USER)
async def show_options(request: FleetRequest) -> dict[str, Any]:
    """The fleet's options."""
    return await services_of(request).store.read(options.everything)


@put("/api/settings/fleet", opt=ADMIN)
async def change_option(request: FleetRequest) -> dict[str, bool]:
    """Set one of the fleet's options."""
    services = services_of(request)
    asked = await body(request, OptionUpdate, "Invalid setting key")
    if asked.key not in options.DEFAULTS:
        raise BadRequest("Invalid setting key")
    if not isinstance(asked.value, type(options.DEFAULTS[asked.key])):
        raise BadRequest(f"Invalid setting value: {asked.key} takes true or false")
    await services.store.write(options.put, asked.key, asked.value, services.now())
    _log.info("%s set %s to %s", request.user.name, asked.key, asked.value)
    return {"ok": True}


@get("/api/settings/webhook", opt=ADMIN)
async def show_webhook(request: FleetRequest) -> Response[dict[str, Any] | None]:
    """Where the fleet's notices are posted; null when nowhere."""
    hook = await services_of(request).store.read(notices.webhook)
    if hook is None:
        return Response(None, media_type="application/json")
    secret = None if hook.secret is None else MASK
    return Response({"url": hook.url, "secret": secret, "events": list(hook.events), "isEnabled": hook.is_enabled})


@put("/api/settings/webhook", opt=ADMIN)
async def change_webhook(request: FleetRequest) -> dict[str, bool]:
    """Set where notices are posted. The secret is never shown; the mask sent back keeps it."""
    services = services_of(request)
    asked = await body(request, WebhookUpdate, WEBHOOK_FAULT)
    unknown = sorted(set(asked.events) - set(KINDS))
    if unknown:
        raise BadRequest(f"Unknown event {unknown[0]!r}: known are {', '.join(KINDS)}")
    await _check_webhook(request, asked.url)
    known = await services.store.read(notices.webhook)
    secret = known.secret if known and asked.secret in (msgspec.UNSET, MASK) else asked.secret
    hook = Webhook(
        asked.url, secret if isinstance(secret, str) and secret != MASK else None, asked.events, asked.is_enabled
    )
    await services.store.write(notices.set_webhook, hook, services.now())
    _log.info("%s set the webhook", request.user.name)
    return {"ok": True}


@delete("/api/settings/webhook", opt=ADMIN, status_code=200)
async def remove_webhook(request: FleetRequest) -> dict[str, bool]:
    """Post notices nowhere."""
    await services_of(request).store.write(notices.drop_webhook)
    return {"ok": True}


@post("/api/settings/webhook/test", opt=ADMIN, status_code=200)
async def try_webhook(request: FleetRequest) -> dict[str, Any]:
    """Post a test notice to the webhook now: whether it was taken (`ok`), else why not (`detail`)."""
    services = services_of(request)
    hook = await services.store.read(notices.webhook)
    if hook is None:
        raise PathUnknown("No webhook is set: save one first")
    return await _tried(services.notifier.try_webhook(hook, request.user.name), "The webhook has taken the notice.")


async def _tried(work: Awaitable[None], done: str) -> dict[str, Any]:
    try:
        await work
    except Later as error:
        return {"ok": False, "detail": f"Telegram asks to wait {error.pause_s:.0f} s."}
    except Hopeless:
        return {"ok": False, "detail": "Telegram refuses it: is the chat id right, and was the bot spoken to first?"}
    except TimeoutError:
        return {"ok": False, "detail": "There was no answer in time."}
    except ConnectFailed:
        return {"ok": False, "detail": "Nothing answers there: the connection could not be made."}
    except BackendError as error:
        return {"ok": False, "detail": str(error)}
    return {"ok": True, "detail": done}


def mask(token: str) -> str:
    """A secret as it may be shown."""
    return MASK + token[-8:] if len(token) > 8 else MASK


async def _check_webhook(request: FleetRequest, url: str) -> None:
    base, _, query = url.partition("?")
    if not all("!" <= letter <= "~" and letter != "#" for letter in query):
        raise BadRequest("url: a query is printable ASCII without spaces; write other characters as %XX")
    try:
        address = parse_url(base, "openai")
        found = await services_of(request).resolver.look_up(address.host, 3.0)
    except BadAddress as error:
        raise BadRequest(f"url: {error}") from None
    except BackendError:
        return
    for ip in found:
        why = forbidden(ip)
        if why is not None:
            raise BadRequest(f"url: {address.host} may not be connected to: {why}")


handlers = [
    Router(
        path="/",
        route_handlers=[
            show_chat,
            change_chat,
            remove_chat,
            try_chat,
            list_subscriptions,
            change_subscriptions,
            show_options,
            change_option,
            show_webhook,
            change_webhook,
            remove_webhook,
            try_webhook,
        ],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=MAX_BODY_BYTES,
        tags=["settings"],
    )
]
