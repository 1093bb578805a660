"""Who is told of what: hears what control writes down, decides, hands it to the outbox. Never waits for anybody.

    fleet's own chat, webhook   offline, reboot and threshold alerts, each at most every 30 minutes per server
    users' chats                offline, online, reboot of the servers they subscribed to

Servers in maintenance are not spoken of. While our own line to the internet is down nothing is said about servers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from fleetproxy import log
from fleetproxy.control.analytics.rows import Row, ServerEvent, SystemMetrics
from fleetproxy.control.notify import messages, webhook
from fleetproxy.control.notify.messages import Notice
from fleetproxy.control.notify.outbox import Outbox
from fleetproxy.control.notify.telegram import Telegram
from fleetproxy.control.ports import Caller, FleetPort
from fleetproxy.control.state import Store, notices
from fleetproxy.control.state.notices import Chat, Webhook
from fleetproxy.core.alerts import NOTICES_PER_HOUR, Line, Readings, alerts, checked, cooled
from fleetproxy.errors import FleetError
from fleetproxy.settings import Settings
from fleetproxy.settings.servers import BadAddress, parse_listen
from fleetproxy.transport.base import Transport

_log = log.get("control.notify")

MAX_HEARD = 1000
WAN_TIMEOUT_S = 3.0
MISSING_MODELS_EVERY_S = 60.0
MISSING_MODEL_COOLDOWN_S = 300.0


class Pen(Protocol):
    """`control.analytics.journal.Journal`."""

    def put(self, *rows: Row) -> None: ...


class Overheard:
    """A journal somebody listens to: what is written down is told on."""

    def __init__(self, journal: Pen) -> None:
        self._journal = journal
        self.listeners: list[Callable[[Row], None]] = []

    def put(self, *rows: Row) -> None:
        self._journal.put(*rows)
        for row in rows:
            for listener in self.listeners:
                listener(row)


class Notifier:
    def __init__(
        self,
        store: Store,
        settings: Callable[[], Settings],
        fleet: FleetPort,
        caller: Caller,
        transport: Transport,
        *,
        missing_models: Callable[[datetime], Awaitable[Iterable[tuple[str, str, int]]]] | None = None,
        outbox: Outbox | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        connect: Callable[[str, int], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._fleet = fleet
        self._transport = transport
        self._missing_models = missing_models
        self._monotonic = monotonic
        self._connect = connect or _connect
        self.telegram = Telegram(caller, lambda: settings().telegram.api_url)
        self.outbox = outbox or Outbox()
        self._heard: deque[Row] = deque(maxlen=MAX_HEARD)
        self._wake = asyncio.Event()
        self.line = Line()
        self._down_since: datetime | None = None
        #: When an alert was told last, by (server, kind).
        self._told_s: dict[tuple[int, str], float] = {}
        #: When notices of a server's coming and going were told, by (server, kind).
        self._recent_s: dict[tuple[int, str], deque[float]] = {}
        self._missing_told_s: dict[str, float] = {}
        #: Rows not looked at because too many came at once; notices left out because a server came and went.
        self.overrun = 0
        self.muted = 0

    # --- in ------------------------------------------------------------------------------------------------------

    def hear(self, row: Row) -> None:
        """Something was written down. Never waits, never raises."""
        if isinstance(row, SystemMetrics) or (isinstance(row, ServerEvent) and row.event != "deploy"):
            if len(self._heard) == MAX_HEARD:
                self.overrun += 1
            self._heard.append(row)
            self._wake.set()

    def greet(self, chat: Chat, text: str) -> None:
        """A word to a chat that was just set."""

        async def send(_: Sequence[Notice]) -> None:
            await self.telegram.send(chat.bot_token, chat.chat_id, text)

        notice = Notice(kind="online", at=datetime.now(UTC), subject="", lines=())
        self.outbox.put(("greeting", chat.bot_token, chat.chat_id), notice, send)

    async def try_chat(self, chat: Chat, by: str) -> None:
        """Send a test to a chat now, past the outbox. Raises Later, Hopeless or BackendError."""
        notice = messages.test(by, datetime.now(UTC))
        await self.telegram.send(chat.bot_token, chat.chat_id, notice.html)

    async def try_webhook(self, hook: Webhook, by: str) -> None:
        """Post a test now, past the outbox. Raises BackendError or TimeoutError."""
        await webhook.post(self._transport, hook, [messages.test(by, datetime.now(UTC))])

    async def job_failed(self, name: str, detail: str) -> None:
        await self._tell_fleet(messages.job_failed(name, detail, datetime.now(UTC)))

    # --- running -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="notices")
            tasks.create_task(self._watch_line(), name="wan")
            tasks.create_task(self._watch_missing(), name="missing models")

    async def close(self) -> None:
        await self.outbox.close()

    async def _listen(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.settle()

    async def settle(self) -> None:
        """Look at everything heard so far."""
        while self._heard:
            row = self._heard.popleft()
            try:
                if isinstance(row, ServerEvent):
                    await self._server_event(row)
                elif isinstance(row, SystemMetrics):
                    await self._metrics(row)
            except FleetError as error:
                _log.warning("a notice is lost: %s", error)
            except Exception:
                _log.exception("a notice is lost")

    async def _server_event(self, event: ServerEvent) -> None:
        if event.event == "deploy" or self.line.is_down or self._in_maintenance(event.server_id):
            return
        at = datetime.fromtimestamp(event.occurred_at_us / 1e6, UTC)
        notice = {
            "offline": lambda: messages.offline(event.server, event.server_id, at),
            "online": lambda: messages.online(event.server, event.server_id, at),
            "reboot": lambda: messages.reboot(event.server, event.server_id, event.detail, at),
        }[event.event]()
        if self._too_often(event.server_id, event.event):
            self.muted += 1
            return
        if event.event != "online":
            await self._alert(event.server_id, notice)
        else:
            await self._tell_webhook(notice)
        for chat in await self._store.read(notices.listeners, event.server_id, event.event):
            self._tell(chat, notice)

    async def _metrics(self, row: SystemMetrics) -> None:
        if self.line.is_down or self._in_maintenance(row.server_id):
            return
        readings = Readings(**{name: getattr(row, name) for name in Readings.__struct_fields__})
        at = datetime.fromtimestamp(row.polled_at_us / 1e6, UTC)
        for found in alerts(readings):
            await self._alert(row.server_id, messages.alert(row.server, row.server_id, found, at))

    # --- out -----------------------------------------------------------------------------------------------------

    async def _alert(self, server_id: int, notice: Notice) -> None:
        now_s = self._monotonic()
        if cooled(self._told_s, server_id, notice.kind, now_s):
            self._told_s[server_id, notice.kind] = now_s
            await self._tell_fleet(notice)

    async def _tell_fleet(self, notice: Notice) -> None:
        """The fleet's own chat and the webhook."""
        telegram = self._settings().telegram
        if telegram.bot_token and telegram.chat_id:
            self._tell(Chat(0, telegram.bot_token, telegram.chat_id, True), notice)
        await self._tell_webhook(notice)

    async def _tell_webhook(self, notice: Notice) -> None:
        hook = await self._store.read(notices.webhook)
        if hook is not None and hook.is_enabled and (not hook.events or notice.kind in hook.events):

            async def send(batch: Sequence[Notice]) -> None:
                current = await self._store.read(notices.webhook)
                if current is not None and current.is_enabled:
                    await webhook.post(self._transport, current, batch)

            self.outbox.put("webhook", notice, send)

    def _tell(self, chat: Chat, notice: Notice) -> None:
        async def send(batch: Sequence[Notice]) -> None:
            await self.telegram.send(chat.bot_token, chat.chat_id, messages.joined(batch))

        self.outbox.put((chat.bot_token, chat.chat_id), notice, send)

    def _in_maintenance(self, server_id: int) -> bool:
        return any(backend.id == server_id and not backend.enabled for backend, _ in self._fleet.backends())

    def _too_often(self, server_id: int, kind: str) -> bool:
        times = self._recent_s.setdefault((server_id, kind), deque())
        now_s = self._monotonic()
        while times and now_s - times[0] > 3600:
            times.popleft()
        if len(times) >= NOTICES_PER_HOUR:
            return True
        times.append(now_s)
        return False

    # --- our own line, and models nobody has -----------------------------------------------------------------------

    async def _watch_line(self) -> None:
        while True:
            wan = self._settings().wan
            if wan.targets and await self._anybody_listens():
                await self.check_line(wan.targets, wan.offline_threshold)
            await asyncio.sleep(wan.interval_s)

    async def check_line(self, targets: Sequence[str], threshold: int) -> None:
        """Is the internet there? One target that takes a connection is enough."""
        before = self.line
        reachable = await self._any_reachable(targets)
        self.line = checked(before, reachable, self._monotonic(), threshold)
        if self.line.is_down and not before.is_down:
            down_s = self._monotonic() - self.line.failing_since_s
            self._down_since = datetime.now(UTC) - timedelta(seconds=down_s)
            _log.warning("the internet cannot be reached: notices about servers wait until it can")
        elif before.is_down and not self.line.is_down and self._down_since is not None:
            began, self._down_since = self._down_since, None
            await self._tell_fleet(messages.wan_resolved(began, datetime.now(UTC)))

    async def _any_reachable(self, targets: Sequence[str]) -> bool:
        for target in targets:
            try:
                host, port = parse_listen(target, "127.0.0.1")
                async with asyncio.timeout(WAN_TIMEOUT_S):
                    await self._connect(host, port)
            except (OSError, TimeoutError, BadAddress):
                continue
            return True
        return False

    async def _anybody_listens(self) -> bool:
        telegram = self._settings().telegram
        return bool(telegram.bot_token) or await self._store.read(notices.anybody)

    async def _watch_missing(self) -> None:
        since = datetime.now(UTC)
        while True:
            await asyncio.sleep(MISSING_MODELS_EVERY_S)
            now = datetime.now(UTC)
            try:
                await self.look_for_missing(since)
            except FleetError as error:
                _log.debug("missing models not looked for: %s", error)
            except Exception:
                _log.exception("missing models not looked for")
            since = now

    async def look_for_missing(self, since: datetime) -> None:
        """Tell of models that were asked for and that nobody has; each at most every 5 minutes."""
        if self._missing_models is None or self._settings().telegram.mute_model_not_found:
            return
        now_s = self._monotonic()
        self._missing_told_s = {
            model: told_s for model, told_s in self._missing_told_s.items() if now_s - told_s < MISSING_MODEL_COOLDOWN_S
        }
        for model, source, count in await self._missing_models(since):
            if model not in self._missing_told_s:
                self._missing_told_s[model] = now_s
                await self._tell_fleet(messages.model_not_found(model, source, count, datetime.now(UTC)))

    def status(self) -> dict[str, Any]:
        """For metrics and the health page."""
        return {
            "waiting": self.outbox.waiting,
            "sent": self.outbox.sent,
            "dropped": self.outbox.dropped + self.overrun,
            "failed": self.outbox.failed,
            "muted": self.muted,
            "line": msgspec.to_builtins(self.line),
        }


async def _connect(host: str, port: int) -> None:
    _, writer = await asyncio.open_connection(host, port)
    writer.close()
