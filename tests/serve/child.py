"""A child of the supervisor with mains of a few lines: `process.py` is the real one, what it runs is not.

`<data>/behave.json` says how a child behaves: {"control": "crash", "proxy-0": "stubborn", ...}. Everything a child does
is written to `<data>/journal`, one line each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
import types

from fleetproxy import log, process
from fleetproxy.link.board import Board
from fleetproxy.process import Process


def note(of: Process, word: str) -> None:
    with (of.data / "journal").open("a") as journal:
        journal.write(f"{of.name} {word} {os.getpid()}\n")


async def act(of: Process) -> None:
    behaviours = json.loads((of.data / "behave.json").read_text())
    behaviour = behaviours.get(of.name, "")
    note(of, "started")
    of.reload.append(lambda: note(of, f"reloaded:{of.settings.queue.size}"))
    of.reload.append(lambda: log.get("child").debug("no key but %s", of.settings.auth.admin_key))
    if behaviour == "crash":
        raise RuntimeError("no such luck")
    if behaviour == "die once":
        (of.data / "behave.json").write_text(json.dumps({**behaviours, of.name: ""}))
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    server = await serve(of)
    if behaviour == "hang":
        time.sleep(3600)  # noqa: ASYNC251  (the event loop stands still: that is the case)
    await of.draining.wait()
    note(of, "draining")
    if behaviour == "stubborn":
        await of.stop.wait()
        note(of, "told to leave")
    if of.kind == "proxy":
        while not (of.data / "finish").exists() and not of.stop.is_set():
            await asyncio.sleep(0.01)
    server.close()
    note(of, "left")


async def serve(of: Process) -> asyncio.Server:
    if of.kind != "proxy":
        return await asyncio.start_unix_server(lambda _, writer: writer.close(), of.runtime / f"{of.kind}.sock")
    board = Board(of.runtime / "board", row=of.index + 1)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /hold"):
            board.add(7, 1)
        status = b"503 Draining" if of.draining.is_set() else b"200 OK"
        body = f"{of.name} {os.getpid()} {board.load(7)}".encode()
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()
        writer.close()

    assert of.listen_fd is not None
    return await asyncio.start_server(answer, sock=socket.socket(fileno=os.dup(of.listen_fd)))


for kind in process.KINDS:
    module = types.ModuleType(f"fleetproxy.{kind}.main")
    module.main = act  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module

if __name__ == "__main__":
    sys.exit(process.main(sys.argv[1:]))
