"""A real MCP server for tests: `python mcp_server.py stdio`, or `python mcp_server.py http` on a free port."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import mcp_types as types
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel

server = MCPServer("tests", instructions="for tests", log_level="ERROR")
seen: list[str] = []


class Name(BaseModel):
    name: str


@server.tool()
def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


@server.tool()
def big(size: int) -> str:
    """So many characters."""
    return "z" * size


@server.tool()
async def steps(count: int, ctx: Context) -> str:
    """Tells of its progress."""
    for step in range(count):
        await ctx.report_progress(step + 1, count, f"step {step + 1}")
    return "done"


@server.tool()
async def greet(ctx: Context) -> str:
    """Asks back for a name."""
    answer = await ctx.elicit("who are you?", Name)
    return f"hello {answer.data.name}" if answer.action == "accept" else "hello nobody"


@server.tool()
async def dream(ctx: Context) -> str:
    """Asks the caller's model."""
    message = types.SamplingMessage(role="user", content=types.TextContent(type="text", text="dream"))
    result = await ctx.session.create_message([message], max_tokens=10)
    return f"dreamt of {result.content.text}"  # type: ignore[union-attr]


@server.tool()
async def change(ctx: Context) -> str:
    """Tells everybody that the tools have changed."""
    await ctx.session.send_tool_list_changed()
    await ctx.notify_tools_changed()
    return "changed"


@server.tool()
async def wait(seconds: float) -> str:
    """Takes its time, and remembers being cancelled."""
    try:
        await asyncio.sleep(seconds)
    except BaseException:
        seen.append("cancelled")
        raise
    seen.append("finished")
    return "waited"


@server.tool()
def history() -> str:
    """What became of the waiting."""
    return ",".join(seen)


@server.tool()
def pid() -> int:
    """Which process this is."""
    return os.getpid()


@server.tool()
def die() -> str:
    """Ends the process."""
    os._exit(3)


def main() -> None:
    if sys.argv[1] == "stdio":
        server.run("stdio")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stderr.write(f"mcp server on http://127.0.0.1:{port}\n")
    sys.stderr.flush()
    server.run("streamable-http", port=port, json_response="json" in sys.argv)


if __name__ == "__main__":
    main()
