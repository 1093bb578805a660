"""Transfer channels: what one caller writes, another one reads, at the same time and without it being kept."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec

from fleetproxy.core.operation import Endpoint
from fleetproxy.families.base import Family

#: An id as we make them: 128 random bits, written as a UUID.
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_encode = msgspec.json.Encoder().encode

CREATE = Endpoint(
    name="transfer_create",
    methods=("POST",),
    path="/api/transfer",
    family="transfer",
    shape="tunnel",
    surface="family",
    read=False,
    doc="A new channel: its id, and until when both ends have to be there.",
)
CREATE_SLASH = msgspec.structs.replace(CREATE, name="transfer_create_slash", path="/api/transfer/")
READ = Endpoint(
    name="transfer_read",
    methods=("GET",),
    path="/api/transfer/{channel_id}",
    family="transfer",
    shape="tunnel",
    surface="family",
    read=False,
    doc="The reading end of a channel: waits for the writer, then answers with what it writes, as it comes.",
)
WRITE = Endpoint(
    name="transfer_write",
    methods=("POST",),
    path="/api/transfer/{channel_id}",
    family="transfer",
    shape="tunnel",
    surface="family",
    read=False,
    upload=True,
    doc="The writing end of a channel: waits for the reader, then the body goes to it, of any length.",
)

family = Family(
    name="transfer",
    summary="Channels that carry bytes from one caller to another.",
    endpoints=(
        CREATE,
        msgspec.structs.replace(CREATE, name="transfer_create_slash", path="/api/transfer/"),
        READ,
        WRITE,
    ),
)


def channel_id_of(raw_path: bytes) -> str:
    """The channel a raw path names; "" when it cannot be one of ours."""
    text = raw_path.rpartition(b"/")[2].decode("latin-1")
    return text if _ID.match(text) else ""


def made(channel_id: str, expires_at_s: float) -> bytes:
    """The answer to a create. `expires_at_s` is seconds since the epoch."""
    expires_at = datetime.fromtimestamp(int(expires_at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _encode({"channel_id": channel_id, "expires_at": expires_at}) + b"\n"


#: What the writer is told when the reader has everything.
DONE = b'{"status":"ok"}\n'
