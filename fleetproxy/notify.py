"""Words to systemd (`Type=notify`); silence when it did not start us."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Send lines such as READY=1 or WATCHDOG=1."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(message.encode())


def watchdog_s() -> float:
    """How often systemd wants to hear from us; 0 when it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdigit() and os.environ.get("NOTIFY_SOCKET") else 0.0
