"""MCP: servers behind a NAT, reached through relays that dial in (`/api/mcp/connect`)."""

from __future__ import annotations

import re
from urllib.parse import unquote

from fleetproxy.core.operation import Endpoint
from fleetproxy.families.base import Family

#: What a relay may call itself.
RELAY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_PATH = "/api/mcp/id/{id}"


def _endpoint(name: str, method: str, doc: str) -> Endpoint:
    return Endpoint(
        name=name, methods=(method,), path=_PATH, family="mcp", shape="tunnel", surface="family", read=False, doc=doc
    )


CALL = _endpoint(
    "mcp_call",
    "POST",
    "A JSON-RPC message for the MCP server behind this relay; the bearer token is the relay's, not ours.",
)
LISTEN = _endpoint(
    "mcp_listen", "GET", "What the server says of its own accord, as events; relays of ours only (Streamable HTTP)."
)
END = _endpoint("mcp_end", "DELETE", "The end of a session (`Mcp-Session-Id`); relays of ours only.")

family = Family(name="mcp", summary="Relay of MCP servers that dial in.", endpoints=(CALL, LISTEN, END))


def relay_of(raw_path: bytes) -> str:
    """The relay that a raw path names; "" when it can be none."""
    text = unquote(raw_path.rpartition(b"/")[2].decode("latin-1"), errors="replace")
    return text if RELAY_ID.match(text) else ""
