from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from control_plane import Control

from fleetproxy.control.notify.webhook import signature
from fleetproxy.settings import Settings, Telegram
from fleetproxy.testing.http import HttpServer, Reply
from fleetproxy.testing.message import Request

TOKEN = "123456:AAbbCCddEEffGGhhIIjjKKllMMnnOOppQQ"


class BotApi:
    """Telegram: knows TOKEN, keeps what it is sent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.sent: list[dict[str, object]] = []
        self.status = 200

    async def handle(self, request: Request, reply: Reply) -> None:
        self.asked.append(f"{request.method} {request.target}")
        body = await request.body()
        if self.status != 200:
            await reply.send(self.status, b'{"ok":false}')
        elif not request.target.startswith(f"/bot{TOKEN}/"):
            await reply.send(401, b'{"ok":false,"description":"Unauthorized"}')
        else:
            if request.target.endswith("/sendMessage"):
                self.sent.append(json.loads(body))
            await reply.send(200, b'{"ok":true,"result":{}}')


@pytest.fixture
async def bot_api() -> AsyncIterator[BotApi]:
    api = BotApi()
    server = HttpServer(api.handle)
    await server.listen()
    api.url = f"http://127.0.0.1:{server.port}"  # type: ignore[attr-defined]
    api.server = server  # type: ignore[attr-defined]
    yield api
    await server.close()


@pytest.fixture
def settings(bot_api: BotApi) -> Settings:
    return Settings(telegram=Telegram(api_url=bot_api.url))  # type: ignore[attr-defined]


# --- telegram ------------------------------------------------------------------------------------------------------


async def test_a_chat_is_set_tried_greeted_masked_and_removed(control: Control, bot_api: BotApi) -> None:
    admin = await control.admin()
    assert (await admin.get("/api/settings/telegram")).json() is None
    answer = await admin.put("/api/settings/telegram", json={"botToken": TOKEN, "chatId": "42"})
    assert answer.json() == {"ok": True}
    while not bot_api.sent:
        await asyncio.sleep(0.005)
    assert bot_api.sent[0]["chat_id"] == "42"
    assert "configured successfully" in str(bot_api.sent[0]["text"])
    shown = await admin.get("/api/settings/telegram")
    assert shown.json() == {"chatId": "42", "botToken": f"****{TOKEN[-8:]}", "isEnabled": True}
    assert TOKEN not in shown.text
    assert (await admin.delete("/api/settings/telegram")).json() == {"ok": True}
    assert (await admin.get("/api/settings/telegram")).json() is None


async def test_the_mask_sent_back_keeps_the_token(control: Control, bot_api: BotApi) -> None:
    admin = await control.admin()
    await admin.put("/api/settings/telegram", json={"botToken": TOKEN, "chatId": "42"})
    mask = (await admin.get("/api/settings/telegram")).json()["botToken"]
    answer = await admin.put("/api/settings/telegram", json={"botToken": mask, "chatId": "43", "isEnabled": False})
    assert answer.json() == {"ok": True}
    from fleetproxy.control.state import notices

    chat = await control.services.store.read(notices.chat, 1)
    assert chat
    assert (chat.bot_token, chat.chat_id, chat.is_enabled) == (TOKEN, "43", False)
    assert TOKEN not in repr(chat)


@pytest.mark.parametrize(
    "payload", [{}, {"botToken": TOKEN}, {"botToken": "", "chatId": "1"}, {"botToken": 1, "chatId": 2}]
)
async def test_token_and_chat_are_needed(control: Control, payload: dict[str, object]) -> None:
    admin = await control.admin()
    answer = await admin.put("/api/settings/telegram", json=payload)
    assert (answer.status_code, answer.json()) == (400, {"error": "Bot token and chat ID required"})


@pytest.mark.parametrize("token", ["999:wrong", "../../x", "a/b", "x?y", "a b", "%2e%2e", "\u00e9", "****12345678"])
async def test_tokens_telegram_does_not_know_are_refused(control: Control, bot_api: BotApi, token: str) -> None:
    admin = await control.admin()
    answer = await admin.put("/api/settings/telegram", json={"botToken": token, "chatId": "1"})
    assert (answer.status_code, answer.json()) == (400, {"error": "Invalid bot token"})
    assert all(asked.startswith("GET /bot") and asked.endswith("/getMe") for asked in bot_api.asked)
    assert (await admin.get("/api/settings/telegram")).json() is None


async def test_a_telegram_that_does_not_answer_is_told_apart(control: Control, bot_api: BotApi) -> None:
    admin = await control.admin()
    await bot_api.server.close()  # type: ignore[attr-defined]
    answer = await admin.put("/api/settings/telegram", json={"botToken": TOKEN, "chatId": "1"})
    assert (answer.status_code, answer.json()) == (400, {"error": "Failed to validate bot token"})


async def test_everybody_has_a_chat_of_their_own(control: Control) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    await admin.put("/api/settings/telegram", json={"botToken": TOKEN, "chatId": "42"})
    assert (await bob.get("/api/settings/telegram")).json() is None
    local = control.browser(**{"x-api-key": "l" * 64})
    assert (await local.get("/api/settings/telegram")).status_code == 403


# --- subscriptions -------------------------------------------------------------------------------------------------


def wish(server_id: int, offline: bool = True, online: bool = True, reboot: bool = False) -> dict[str, object]:
    return {"serverId": server_id, "notifyOffline": offline, "notifyOnline": online, "notifyReboot": reboot}


async def test_subscriptions_are_replaced_whole(control: Control) -> None:
    admin = await control.admin()
    await control.services.register_servers(["gpu1", "gpu2"])
    assert (await admin.get("/api/settings/subscriptions")).json() == []
    assert (await admin.put("/api/settings/subscriptions", json=[wish(1), wish(2, reboot=True)])).json() == {"ok": True}
    assert (await admin.put("/api/settings/subscriptions", json=[wish(2, online=False)])).json() == {"ok": True}
    assert (await admin.get("/api/settings/subscriptions")).json() == [
        {
            "id": 3,
            "serverId": 2,
            "serverName": "gpu2",
            "notifyOffline": True,
            "notifyOnline": False,
            "notifyReboot": False,
        }
    ]


async def test_a_faulty_set_changes_nothing(control: Control) -> None:
    admin = await control.admin()
    await control.services.register_servers(["gpu1"])
    await admin.put("/api/settings/subscriptions", json=[wish(1)])
    before = (await admin.get("/api/settings/subscriptions")).json()
    for payload in (
        [wish(1), wish(99)],
        [{"serverId": 1}],
        [wish(0)],
        [wish(-1)],
        {},
        "x",
        [wish(1) | {"notifyReboot": 1}],
    ):
        answer = await admin.put("/api/settings/subscriptions", json=payload)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("Invalid subscriptions payload")
    assert (await admin.get("/api/settings/subscriptions")).json() == before


async def test_one_server_twice_is_one_subscription(control: Control) -> None:
    admin = await control.admin()
    await control.services.register_servers(["gpu1"])
    await admin.put("/api/settings/subscriptions", json=[wish(1), wish(1, offline=False)])
    listed = (await admin.get("/api/settings/subscriptions")).json()
    assert [(one["serverId"], one["notifyOffline"]) for one in listed] == [(1, False)]


# --- the fleet's options and webhook ---------------------------------------------------------------------------------


async def test_options_have_defaults_and_known_names(control: Control) -> None:
    admin = await control.admin()
    bob = await control.user(admin, "bob")
    assert (await bob.get("/api/settings/fleet")).json() == {"intelligent_management_enabled": False}
    put = {"key": "intelligent_management_enabled", "value": True}
    assert (await bob.put("/api/settings/fleet", json=put)).status_code == 403
    assert (await admin.put("/api/settings/fleet", json=put)).json() == {"ok": True}
    assert (await bob.get("/api/settings/fleet")).json() == {"intelligent_management_enabled": True}
    for payload in ({"key": "other", "value": True}, {"key": "intelligent_management_enabled"}, {}, []):
        answer = await admin.put("/api/settings/fleet", json=payload)
        assert (answer.status_code, answer.json()) == (400, {"error": "Invalid setting key"})
    assert (await admin.put("/api/settings/fleet", json=put | {"value": "yes"})).status_code == 400


async def test_the_webhooks_secret_is_written_only(control: Control) -> None:
    admin = await control.admin()
    assert (await admin.get("/api/settings/webhook")).json() is None
    body = {"url": "https://10.0.0.1/hook?x=1", "secret": "of the hook", "events": ["offline"]}
    assert (await admin.put("/api/settings/webhook", json=body)).json() == {"ok": True}
    shown = await admin.get("/api/settings/webhook")
    assert shown.json() == {"url": body["url"], "secret": "****", "events": ["offline"], "isEnabled": True}
    from fleetproxy.control.state import notices

    for kept in ({"url": body["url"]}, {"url": body["url"], "secret": "****"}):
        await admin.put("/api/settings/webhook", json=kept)
        hook = await control.services.store.read(notices.webhook)
        assert hook
        assert hook.secret == "of the hook"
        assert "hook" not in repr(hook).lower().replace("webhook", "")
    await admin.put("/api/settings/webhook", json={"url": body["url"], "secret": None})
    assert (await admin.get("/api/settings/webhook")).json()["secret"] is None
    assert (await admin.delete("/api/settings/webhook")).json() == {"ok": True}
    assert (await admin.get("/api/settings/webhook")).json() is None


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"url": ""},
        {"url": "ftp://x"},
        {"url": "http://169.254.169.254/latest"},
        {"url": "http://user:pw@10.0.0.1"},
        {"url": "http://10.0.0.1/?a b"},
        {"url": "http://10.0.0.1/?a\r\nX: y"},
        {"url": "http://10.0.0.1/?\u00e4"},
        {"url": "http://10.0.0.1/?a#b"},
        {"url": "http://10.0.0.1", "events": ["everything"]},
        {"url": "http://10.0.0.1", "isEnabled": "yes"},
    ],
)
async def test_unfit_webhooks_are_refused(control: Control, payload: dict[str, object]) -> None:
    admin = await control.admin()
    assert (await admin.put("/api/settings/webhook", json=payload)).status_code == 400
    assert (await admin.get("/api/settings/webhook")).json() is None


def test_a_signature_anybody_can_check() -> None:
    assert signature("key", b"The quick brown fox jumps over the lazy dog") == (
        "sha256=f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
    )


async def test_a_chat_is_tried_now_and_telegrams_refusal_is_said(control: Control, bot_api: BotApi) -> None:
    admin = await control.admin()
    assert (await admin.post("/api/settings/telegram/test")).status_code == 404
    await admin.put("/api/settings/telegram", json={"botToken": TOKEN, "chatId": "42", "isEnabled": False})
    answer = await admin.post("/api/settings/telegram/test")
    assert (answer.status_code, answer.json()["ok"]) == (200, True)
    assert any("tries whether notices come through" in str(one["text"]) for one in bot_api.sent)
    bot_api.status = 400
    refused = (await admin.post("/api/settings/telegram/test")).json()
    assert refused["ok"] is False
    assert "chat id" in refused["detail"]


@pytest.fixture
async def hook() -> AsyncIterator[HttpServer]:
    """A webhook that keeps what it hears and answers with its `status`."""

    async def handle(request: Request, reply: Reply) -> None:
        server.heard.append((await request.body(), request.header("x-fleet-signature")))  # type: ignore[attr-defined]
        await reply.send(server.status, b"")  # type: ignore[attr-defined]

    server = HttpServer(handle)
    server.heard, server.status = [], 204  # type: ignore[attr-defined]
    await server.listen()
    yield server
    await server.close()


async def test_a_webhook_is_tried_now_signed_and_its_refusal_is_said(control: Control, hook: Any) -> None:
    admin = await control.admin()
    assert (await admin.post("/api/settings/webhook/test")).status_code == 404
    url = f"http://127.0.0.1:{hook.port}/hook"
    await admin.put("/api/settings/webhook", json={"url": url, "secret": "hush", "events": ["offline"]})
    assert (await admin.post("/api/settings/webhook/test")).json()["ok"] is True
    body, signed = hook.heard[0]
    assert signed == signature("hush", body)
    assert json.loads(body)["notices"][0]["kind"] == "test"
    hook.status = 500
    refused = (await admin.post("/api/settings/webhook/test")).json()
    assert refused == {"ok": False, "detail": "the webhook answered 500"}
