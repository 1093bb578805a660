"""Taking TCP addresses before anything is started, and saying in a sentence why one cannot be had.

Servers that set SO_REUSEPORT share a port in silence, so a bind that works proves nothing: each address is first bound
without it. The sockets are bound here and handed to the proxy processes, one each; the supervisor keeps a copy, so that
connections wait in the backlog while a dead process is replaced, instead of being refused.
"""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LISTEN = "0A"
_ASK_S = 1.0


class PortTaken(Exception):
    """An address cannot be listened on; the text says who has it and what to do."""


def claim(host: str, port: int, count: int = 1, *, option: str = "--port") -> list[socket.socket]:
    """`count` sockets bound (not yet listening) to one address, shared among our own processes alone.

    Port 0 takes any free port, the same for all. `option` is what the user may change when the address is taken.
    """
    family, address = resolve(host, port)
    first = _bind(family, address, shared=False, option=option)
    address = (address[0], first.getsockname()[1], *address[2:])
    first.close()
    sockets: list[socket.socket] = []
    try:
        for _ in range(count):
            sockets.append(_bind(family, address, shared=True, option=option))
    except PortTaken:
        for taken in sockets:
            taken.close()
        raise
    return sockets


def check(host: str, port: int, *, option: str) -> None:
    """See that an address is free, without keeping it."""
    if port:
        family, address = resolve(host, port)
        _bind(family, address, shared=False, option=option).close()


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """The one address to bind for a host name; IPv4 first where a name has both."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # noqa: S104
    except socket.gaierror as error:
        raise PortTaken(f"cannot listen on {host!r}: {error.strerror}") from None
    family, _, _, _, address = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0]
    return family, address


def holder(port: int) -> str | None:
    """Name and pid of the process that listens on this port, where the system lets us see it."""
    inodes = set(_listening_inodes(port))
    if not inodes:
        return None
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        target = _link(descriptor)
        if target.startswith("socket:[") and target[8:-1] in inodes:
            pid = descriptor.parts[2]
            return f"{_command(pid)} (process {pid})"
    return None


def _bind(family: socket.AddressFamily, address: tuple[Any, ...], *, shared: bool, option: str) -> socket.socket:
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by accepted connections. Without it a head and the piece after it, written apart, cost 40 ms: the
        # second waits for the caller's delayed acknowledgement of the first.
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        found.bind(address)
    except OSError as error:
        found.close()
        raise PortTaken(_why(error, str(address[0]), int(address[1]), option)) from None
    return found


def _why(error: OSError, host: str, port: int, option: str) -> str:
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            who = holder(port) or "another program"
            if _is_ollama(host, port, who):
                return (
                    f"{at} is taken: an Ollama answers there, {who}. Either start fleetproxy on another port "
                    f"({option} {port + 1}), or move Ollama (OLLAMA_HOST=127.0.0.1:{port + 1}) and add it to "
                    f"the fleet (--server local=127.0.0.1:{port + 1})"
                )
            return f"{at} is taken by {who}; stop it or choose another port with {option}"
        case errno.EACCES | errno.EPERM:
            return f"this user may not listen on {at}; choose a port above 1023 with {option}"
        case errno.EADDRNOTAVAIL:
            return f"this machine has no address {host}; listen on one of its own, 127.0.0.1 or 0.0.0.0"
        case _:
            return f"cannot listen on {at}: {error.strerror}"


def _is_ollama(host: str, port: int, who: str) -> bool:
    """Whether a stock Ollama holds the port; our own proxies answer with the same words, so their name is looked at."""
    if "fleetproxy" in who:
        return False
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    connection = http.client.HTTPConnection(target, port, timeout=_ASK_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read(64) == b"Ollama is running"
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def listens(pid: int, port: int) -> bool:
    """Whether this process has a listening socket on this port (Linux; elsewhere: whether anybody answers there)."""
    folder = Path(f"/proc/{pid}/fd")
    if not folder.exists():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return False
    try:
        return any(_link(descriptor) in inodes for descriptor in folder.iterdir())
    except OSError:  # it has just ended
        return False


def _link(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:
        return ""


def _command(pid: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "another program"
    if any(b"fleetproxy" in word for word in words[:4]):
        return "fleetproxy"
    return Path(words[0].decode(errors="replace")).name or "another program"
