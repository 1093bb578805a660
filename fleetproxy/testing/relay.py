"""A stock MCP relay for tests: nfrx's protocol, message by message, or left to itself with an answer for each call.

async with await FakeRelay.dial("ws://127.0.0.1:11434/api/mcp/connect", relay_id="tools") as relay:
    relay.serve(lambda request: {"result": {}})
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

#: What the stock relay reads at most; a longer message ends its connection with 1009.
READ_LIMIT_BYTES = 32768

Frame = dict[str, Any]
#: The request of a call -> members of its answer beside "jsonrpc" and "id".
Answer = Callable[[dict[str, Any]], "dict[str, Any] | Awaitable[dict[str, Any]]"]


class FakeRelay:
    """One connected relay."""

    def __init__(self, socket: ClientConnection, relay_id: str) -> None:
        self.socket = socket
        self.id = relay_id
        #: What the server has said and nobody has asked for yet.
        self.heard: list[Frame] = []
        #: Tokens that came with calls, by session.
        self.tokens: dict[str, str] = {}
        #: Sessions the server has closed.
        self.closed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def dial(cls, url: str, *, relay_id: str = "", name: str = "fake", key: str = "") -> Self:
        """Connect and register. Raises ConnectionClosed when the server does not want it."""
        headers = {"Authorization": f"Bearer {key}"} if key else None
        socket = await connect(
            url, additional_headers=headers, compression=None, ping_interval=None, max_size=READ_LIMIT_BYTES
        )
        await socket.send(json.dumps({"client_name": name, "id": relay_id}))
        ack = json.loads(await socket.recv())
        return cls(socket, ack["id"])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.socket.close()

    def kill(self) -> None:
        """Gone without a word."""
        self.socket.transport.abort()

    # --- by hand ---------------------------------------------------------------------------------------------------

    async def say(self, t: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"t": t, **fields}))

    async def raw(self, text: str) -> None:
        await self.socket.send(text)

    async def next(self, t: str, within_s: float = 5.0) -> Frame:
        """The next message of a type; others are kept in `heard` until they are asked for."""
        for kept in self.heard:
            if kept.get("t") == t:
                self.heard.remove(kept)
                return kept
        async with asyncio.timeout(within_s):
            while True:
                frame: Frame = json.loads(await self.socket.recv())
                if frame.get("t") == t:
                    return frame
                self.heard.append(frame)

    async def call(self) -> tuple[str, Frame]:
        """A call up to its request: (session, request)."""
        await self.say("open.ok", sid=(await self.next("open"))["sid"])
        frame = await self.next("rpc")
        return frame["sid"], frame["payload"]

    async def reply(self, sid: str, request: Frame, **members: Any) -> None:
        """Answer a call as the stock relay does."""
        await self.say("rpc", sid=sid, payload={"jsonrpc": "2.0", "id": request.get("id"), **members})
        await self.say("close", sid=sid, msg="done")

    # --- by itself -------------------------------------------------------------------------------------------------

    def serve(self, answer: Answer, *, token: str = "") -> None:
        """Answer every call from now on, each in a task of its own; with `token`, only those that bring it."""
        self._spawn(self._serve(answer, token))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, answer: Answer, token: str) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                frame: Frame = json.loads(await self.socket.recv())
                sid = frame.get("sid", "")
                match frame.get("t"):
                    case "open":
                        self.tokens[sid] = frame.get("auth", "")
                        if token and frame.get("auth") != token:
                            await self.say("open.fail", sid=sid, code="MCP_UNAUTHORIZED", msg="unauthorized")
                        else:
                            await self.say("open.ok", sid=sid)
                    case "rpc":
                        self._spawn(self._answer(sid, frame["payload"], answer))
                    case "close":
                        self.closed.add(sid)
                    case _:
                        self.heard.append(frame)

    async def _answer(self, sid: str, request: Frame, answer: Answer) -> None:
        members = answer(request)
        if isinstance(members, Awaitable):
            members = await members
        with contextlib.suppress(ConnectionClosed):
            await self.reply(sid, request, **members)
