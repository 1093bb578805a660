from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from fleetproxy.control.analytics.rows import ServerEvent, SystemMetrics
from fleetproxy.control.notify import messages, outbox
from fleetproxy.control.notify.messages import Notice
from fleetproxy.control.notify.notifier import Notifier, Overheard
from fleetproxy.control.notify.outbox import Outbox
from fleetproxy.control.notify.telegram import Hopeless, Later
from fleetproxy.control.notify.webhook import signature
from fleetproxy.control.state import Store, notices, servers, users
from fleetproxy.control.state.notices import Chat, Subscription, Webhook
from fleetproxy.core.backend import Backend, BackendState
from fleetproxy.errors import ConnectFailed
from fleetproxy.settings import Settings, Telegram
from fleetproxy.testing.http import HttpServer, Reply
from fleetproxy.testing.message import Request
from fleetproxy.transport.httpx_client import HttpxClient
from fleetproxy.transport.pool import Http1Transport, tls_context

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
AT_US = int(NOW.timestamp() * 1e6)


class World:
    """A bot API and a webhook in one server; a fleet of two; a clock moved by hand."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str]] = []
        self.hooked: list[dict[str, object]] = []
        self.signatures: list[tuple[str, bytes]] = []
        self.statuses: dict[str, list[tuple[int, bytes]]] = {}
        self.now_s = 0.0
        self.reachable = True
        self.enabled = [True, True]
        self.slept: list[float] = []

    async def handle(self, request: Request, reply: Reply) -> None:
        raw = await request.body()
        body = json.loads(raw)
        if request.target.startswith("/hook"):
            self.signatures.append((request.header("x-fleet-signature"), raw))
            self.hooked.extend(body["notices"])
            await reply.send(200, b"{}")
            return
        token = request.target.split("/")[1].removeprefix("bot")
        status, answer = self.statuses[token].pop(0) if self.statuses.get(token) else (200, b'{"ok":true}')
        if status == 200:
            assert body["parse_mode"] == "HTML"
            self.sent.append((token, body["chat_id"], body["text"]))
        await reply.send(status, answer)

    def backends(self) -> Sequence[tuple[Backend, BackendState]]:
        return [(Backend(name=f"gpu{n}", id=n, column=n, enabled=self.enabled[n - 1]), BackendState()) for n in (1, 2)]

    async def apply(self) -> None: ...

    async def connect(self, host: str, port: int) -> None:
        if not self.reachable:
            raise OSError

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def texts(self, chat: str) -> list[str]:
        return [text for _, chat_id, text in self.sent if chat_id == chat]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    server = HttpServer(world.handle)
    await server.listen()
    world.url = f"http://127.0.0.1:{server.port}"  # type: ignore[attr-defined]
    yield world
    await server.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = await Store.open(tmp_path / "state.db")
    await store.write(servers.register, ("gpu1", "gpu2"), NOW)
    await store.write(users.create, "ann", "h", True, NOW)
    yield store
    await store.close()


@pytest.fixture
async def notifier(world: World, store: Store) -> AsyncIterator[Notifier]:
    settings = Settings(telegram=Telegram(bot_token="fleet:token", chat_id="fleet", api_url=world.url))  # type: ignore[attr-defined]
    missing = [("llama9:70b", "ann <3", 4), ("other", "ann", 1)]

    async def missing_models(since: datetime) -> list[tuple[str, str, int]]:
        return missing

    caller = HttpxClient()
    notifier = Notifier(
        store,
        lambda: settings,
        world,
        caller,
        Http1Transport(asyncio.get_running_loop(), tls_context),
        missing_models=missing_models,
        outbox=Outbox(world.sleep),
        monotonic=lambda: world.now_s,
        connect=world.connect,
    )
    yield notifier
    await notifier.close()
    await caller.aclose()


async def tell(notifier: Notifier, *rows: ServerEvent | SystemMetrics) -> None:
    for row in rows:
        notifier.hear(row)
        await notifier.settle()
        await notifier.outbox.settled()


def event(kind: str, server: int = 1, detail: str | None = None) -> ServerEvent:
    return ServerEvent(occurred_at_us=AT_US, server_id=server, server=f"gpu{server}", event=kind, detail=detail)  # type: ignore[arg-type]


def metrics(**readings: float) -> SystemMetrics:
    return SystemMetrics(polled_at_us=AT_US, server_id=1, server="gpu1", **readings)


async def listen(store: Store, user_id: int = 1, token: str = "ann:token", chat: str = "ann", **wishes: bool) -> None:
    await store.write(notices.set_chat, Chat(user_id, token, chat, True), NOW)
    wish = {"notify_offline": True, "notify_online": True, "notify_reboot": True} | wishes
    await store.write(notices.subscribe, user_id, [Subscription(server_id=1, **wish)], NOW)


async def test_the_fleets_chat_hears_of_outages_and_reboots_not_of_returns(notifier: Notifier, world: World) -> None:
    await tell(notifier, event("offline"), event("online"), event("reboot", detail="apt upgrade (root)"))
    assert world.texts("fleet") == [
        "<b>⚠️ Server Offline</b>\n<b>gpu1</b> is not responding.",
        "<b>🔄 Server Rebooted</b>\n<b>gpu1</b> rebooted.\napt upgrade (root)",
    ]


async def test_a_new_version_is_nobodys_alarm(notifier: Notifier, world: World, store: Store) -> None:
    await listen(store)
    await tell(notifier, event("deploy", detail="Ollama 0.12.3 -> 0.13.0"), event("reboot"))
    assert [len(world.texts(chat)) for chat in ("fleet", "ann")] == [1, 1]
    assert not any("0.13.0" in text for chat in ("fleet", "ann") for text in world.texts(chat))


async def test_subscribers_hear_what_they_asked_for(notifier: Notifier, world: World, store: Store) -> None:
    await listen(store, notify_reboot=False)
    await tell(notifier, event("offline"), event("online"), event("reboot"), event("offline", server=2))
    assert world.texts("ann") == [
        "<b>⚠️ Server Offline</b>\n<b>gpu1</b> is not responding.",
        "<b>✅ Server Online</b>\n<b>gpu1</b> is back online.",
    ]


async def test_thresholds_are_told_once_in_half_an_hour(notifier: Notifier, world: World) -> None:
    hot = metrics(
        gpu_temp_c=91.4, cpu_temp_c=84.9, disk_total_gb=100, disk_used_gb=91, mem_total_mb=1000, mem_available_mb=99
    )
    await tell(notifier, hot, hot)
    assert "\n\n".join(world.texts("fleet")).split("\n\n") == [
        "<b>🔥 GPU Overheating</b>\n<b>gpu1</b>\nGPU temperature: 91°C",
        "<b>💾 Disk Nearly Full</b>\n<b>gpu1</b>\nDisk usage: 91% (9GB free)",
        "<b>💨 Low Memory</b>\n<b>gpu1</b>\nMemory usage: 90% (99MB available)",
    ]
    world.now_s = 1799
    await tell(notifier, metrics(gpu_temp_c=95))
    count = len("\n\n".join(world.texts("fleet")).split("\n\n"))
    assert count == 3
    world.now_s = 1800
    await tell(notifier, metrics(gpu_temp_c=95))
    assert "95°C" in world.texts("fleet")[-1]


async def test_machines_that_lie_alarm_nobody(notifier: Notifier, world: World) -> None:
    nan, inf = float("nan"), float("inf")
    await tell(
        notifier,
        metrics(gpu_temp_c=nan, cpu_temp_c=inf),
        metrics(gpu_temp_c=1e300, disk_total_gb=0, disk_used_gb=9),
        metrics(disk_total_gb=10, disk_used_gb=1e300, mem_total_mb=-5, mem_available_mb=1),
        metrics(disk_total_gb=nan, disk_used_gb=nan, mem_total_mb=nan, mem_available_mb=nan),
    )
    assert world.sent == []


async def test_servers_in_maintenance_are_not_spoken_of(notifier: Notifier, world: World, store: Store) -> None:
    await listen(store)
    world.enabled[0] = False
    await tell(notifier, event("offline"), metrics(gpu_temp_c=99))
    assert world.sent == []


async def test_without_internet_nothing_is_said_of_servers_then_how_long(notifier: Notifier, world: World) -> None:
    targets = ("192.0.2.1:443",)
    await notifier.check_line(targets, 3)
    world.reachable = False
    for _ in range(3):
        assert not notifier.line.is_down
        world.now_s += 60
        await notifier.check_line(targets, 3)
    assert notifier.line.is_down
    await tell(notifier, event("offline"), metrics(gpu_temp_c=99))
    assert world.sent == []
    world.reachable = True
    await notifier.check_line(targets, 3)
    await notifier.outbox.settled()
    assert [text.split("\n")[:2] for text in world.texts("fleet")] == [
        ["<b>🌐 Internet Outage Resolved</b>", "<b>2 min</b>"]
    ]
    await tell(notifier, event("offline"))
    assert len(world.sent) == 2


async def test_a_fleet_that_never_had_internet_is_not_cut_off(notifier: Notifier, world: World) -> None:
    world.reachable = False
    for _ in range(10):
        await notifier.check_line(("192.0.2.1:443", "not an address", "[::1]:1"), 3)
    assert not notifier.line.is_down
    await tell(notifier, event("offline"))
    assert len(world.sent) == 1


async def test_a_server_that_comes_and_goes_is_told_of_a_few_times_an_hour(
    notifier: Notifier, world: World, store: Store
) -> None:
    await listen(store)
    for _ in range(100):
        world.now_s += 30
        await tell(notifier, event("offline"), event("online"))
    assert len(world.texts("ann")) == 12
    assert notifier.muted == 188
    world.now_s += 3600
    await tell(notifier, event("offline"))
    assert len(world.texts("ann")) == 13


async def test_missing_models_are_told_once_in_five_minutes(notifier: Notifier, world: World) -> None:
    for now_s in (0, 60, 299):
        world.now_s = now_s
        await notifier.look_for_missing(NOW)
        await notifier.outbox.settled()
    text = "\n\n".join(world.texts("fleet"))
    assert text.count("Model not found") == 2
    assert "<b>llama9:70b</b>\nRequested by ann &lt;3 (4 times)" in text
    world.now_s = 301
    await notifier.look_for_missing(NOW)
    await notifier.outbox.settled()
    assert "\n\n".join(world.texts("fleet")).count("Model not found") == 4


async def test_the_webhook_gets_signed_notices_of_its_kinds(notifier: Notifier, world: World, store: Store) -> None:
    hook = Webhook(f"{world.url}/hook?x=1", "shared secret", ("offline", "online"), True)  # type: ignore[attr-defined]
    await store.write(notices.set_webhook, hook, NOW)
    await tell(notifier, event("offline"), event("online"), event("reboot"))
    assert world.hooked == [
        {
            "kind": "offline",
            "title": "⚠️ Server Offline",
            "subject": "gpu1",
            "text": "is not responding.",
            "serverId": 1,
            "at": "2026-11-01T12:00:00.000Z",
        },
        {
            "kind": "online",
            "title": "✅ Server Online",
            "subject": "gpu1",
            "text": "is back online.",
            "serverId": 1,
            "at": "2026-11-01T12:00:00.000Z",
        },
    ]
    assert all(given == signature("shared secret", raw) for given, raw in world.signatures)
    await store.write(notices.set_webhook, msgspec.structs.replace(hook, is_enabled=False), NOW)
    await tell(notifier, event("offline", server=2))
    assert len(world.hooked) == 2


@pytest.mark.parametrize(
    ("answers", "delivered", "pauses"),
    [
        ([(429, b'{"ok":false,"parameters":{"retry_after":7}}')], True, [7.0]),
        ([(429, b"garbage")], True, [1.0]),
        ([(429, b'{"parameters":{"retry_after":1e9}}')], True, [3600.0]),
        ([(500, b"")] * 2, True, [5.0, 15.0]),
        ([(500, b"")] * 9, False, [5.0, 15.0, 45.0, 135.0]),
        ([(401, b"")], False, []),
        ([(400, b"")], False, []),
        ([(403, b"")], False, []),
    ],
)
async def test_what_telegram_says_is_heeded(
    notifier: Notifier, world: World, answers: list[tuple[int, bytes]], delivered: bool, pauses: list[float]
) -> None:
    world.statuses["fleet:token"] = list(answers)
    await tell(notifier, event("offline"))
    assert bool(world.sent) == delivered
    assert [pause for pause in world.slept if pause != outbox.PACE_S] == [p for p in pauses if p != outbox.PACE_S]
    assert (notifier.outbox.sent, notifier.outbox.failed) == ((1, 0) if delivered else (0, 1))


async def test_hearing_never_waits_and_is_bounded(notifier: Notifier, world: World) -> None:
    overheard = Overheard(type("Pen", (), {"put": lambda self, *rows: None})())
    overheard.listeners.append(notifier.hear)
    for _ in range(1500):
        overheard.put(event("offline"))
    assert notifier.overrun == 500
    await notifier.settle()
    await notifier.outbox.settled()
    assert len(world.sent) == 1


# --- the outbox ----------------------------------------------------------------------------------------------------


def notice(number: int = 0) -> Notice:
    return messages.offline(f"gpu{number}", number, NOW)


async def test_a_lane_that_hangs_holds_up_no_other() -> None:
    box, forever, delivered = Outbox(), asyncio.Event(), []

    async def hang(batch: Sequence[Notice]) -> None:
        await forever.wait()

    async def send(batch: Sequence[Notice]) -> None:
        delivered.append(len(batch))

    box.put("slow", notice(), hang)
    await asyncio.sleep(0)
    for number in range(2000):
        box.put("slow", notice(number), hang)
    box.put("fast", notice(), send)
    while not delivered:
        await asyncio.sleep(0)
    assert box.waiting <= outbox.MAX_WAITING
    assert box.dropped >= 999
    await box.close()


async def test_what_gathers_goes_out_together_and_whole() -> None:
    batches: list[int] = []
    gate = asyncio.Event()

    async def send(batch: Sequence[Notice]) -> None:
        batches.append(len(batch))
        await gate.wait()

    async def no_sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    box = Outbox(no_sleep)
    box.put("chat", notice(0), send)
    await asyncio.sleep(0)
    for number in range(1, 101):
        box.put("chat", notice(number), send)
    gate.set()
    await box.settled()
    assert batches == [1, 100]


async def test_no_task_is_named_after_a_chats_token(notifier: Notifier) -> None:
    """Names of tasks come into logs: of one that fails, or that is still there when the loop ends."""
    before = asyncio.all_tasks()
    notifier.greet(Chat(1, "123:secret", "42", True), "hello")
    (task,) = asyncio.all_tasks() - before
    assert "notices" in task.get_name()
    assert "secret" not in repr(task)
    await notifier.outbox.settled()


async def test_two_chats_set_one_after_the_other_are_both_greeted(notifier: Notifier, world: World) -> None:
    notifier.greet(Chat(1, "123:one", "42", True), "hello")
    notifier.greet(Chat(1, "123:two", "43", True), "hello")
    await notifier.outbox.settled()
    assert sorted(token for token, _, _ in world.sent) == ["123:one", "123:two"]


async def test_lanes_are_bounded() -> None:
    box = Outbox()

    async def send(batch: Sequence[Notice]) -> None:
        raise ConnectFailed

    for number in range(outbox.MAX_LANES + 10):
        box.put(number, notice(), send)
    assert box.dropped == 10
    await box.close()
    assert box.waiting == 0


@pytest.mark.parametrize("error", [Later(3.0), Hopeless(), ConnectFailed(), TimeoutError(), RuntimeError("bug")])
async def test_no_failure_ends_a_lane(error: Exception) -> None:
    delivered: list[str] = []

    async def no_sleep(seconds: float) -> None:
        await asyncio.sleep(0)

    failing = [True]

    async def send(batch: Sequence[Notice]) -> None:
        if failing[0]:
            raise error
        delivered.extend(one.subject for one in batch)

    box = Outbox(no_sleep)
    box.put("chat", notice(1), send)
    await box.settled()
    assert box.failed == 1
    failing[0] = False
    box.put("chat", notice(2), send)
    await box.settled()
    assert delivered == ["gpu2"]


# --- words ---------------------------------------------------------------------------------------------------------

HOSTILE = [
    "<b>x</b>",
    "a&b",
    "*bold* _it_ `code` [x](y)",
    "line\nbreak",
    "\x1b[31mred",
    "\u202eevil",
    "<img src=x onerror=1>",
    "x" * 5000,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_become_markup_or_lines(name: str) -> None:
    text = messages.offline(name, 1, NOW).html
    assert text.count("<") == 4
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(text) < 1000


def test_many_notices_are_one_message_of_bounded_length() -> None:
    text = messages.joined([notice(number) for number in range(500)])
    assert len(text) <= messages.MAX_CHARACTERS + 40
    assert text.endswith("more notices")
    shown = text.count("Server Offline")
    assert f"and {500 - shown} more" in text
    assert messages.joined([notice(1)]) == notice(1).html
