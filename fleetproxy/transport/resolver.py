"""Names to addresses without holding anybody up.

The loop's own `getaddrinfo` runs on a small shared pool of threads (four under uvloop): four names whose DNS hangs
would keep every other name waiting. Here each lookup has a thread of its own, at most one per name and `MAX_LOOKUPS`
in all; a thread that hangs is left behind, and does not hold up the end of the process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Callable

from fleetproxy.core.destination import forbidden
from fleetproxy.errors import ConnectFailed, ConnectTimeout

#: Addresses are asked again after this.
FRESH_S = 30.0
#: While DNS does not answer, the last addresses it gave serve for this long.
STALE_S = 600.0
MAX_LOOKUPS = 64
MAX_NAMES = 4096

#: "There is no such name" as opposed to "I could not find out".
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})

Lookup = Callable[[str], tuple[str, ...]]


def lookup(name: str) -> tuple[str, ...]:
    """Addresses of a name in the system's order of preference, as text. Blocks. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(_text(sockaddr) for *_, sockaddr in found))


class Resolver:
    """A cache of names. Owned by one event loop."""

    def __init__(self, lookup: Lookup = lookup, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookup = lookup
        self._clock = clock
        #: name -> (addresses, when they were found)
        self._known: dict[str, tuple[tuple[str, ...], float]] = {}
        self._running: dict[str, asyncio.Future[tuple[str, ...]]] = {}
        #: Lookups begun, since the start.
        self.lookups = 0

    async def resolve(self, host: str, timeout_s: float) -> tuple[str, ...]:
        """Addresses to connect to, never empty. Raises ConnectFailed (no such name, or only forbidden addresses) or
        ConnectTimeout (DNS is silent).

        Each answer of DNS is judged anew: a name that was fine when it was set may point elsewhere by now.
        """
        found = await self.look_up(host, timeout_s)
        if _is_address(host):
            return found
        allowed = tuple(address for address in found if forbidden(address) is None)
        if not allowed:
            raise ConnectFailed(f"the server's name leads where nothing may be connected to: {forbidden(found[0])}")
        return allowed

    async def look_up(self, host: str, timeout_s: float) -> tuple[str, ...]:
        """The same, with addresses nobody may connect to."""
        if _is_address(host):
            return (host,)
        known = self._known.get(host)
        now = self._clock()
        if known and now - known[1] < FRESH_S:
            return known[0]
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._find(host))
        except TimeoutError:
            failure: OSError | None = None
        except OSError as error:
            failure = error
        if known and now - known[1] < STALE_S and (failure is None or failure.errno not in _NO_SUCH_NAME):
            return known[0]
        if failure is None:
            raise ConnectTimeout("the server's name could not be resolved in time; check DNS")
        self._known.pop(host, None)
        raise ConnectFailed(f"the server's name cannot be resolved: {failure.strerror or failure}")

    def forget(self, host: str) -> None:
        """Ask again next time: nothing answered at the addresses we have."""
        known = self._known.get(host)
        if known:
            self._known[host] = (known[0], known[1] - FRESH_S)

    def _find(self, host: str) -> asyncio.Future[tuple[str, ...]]:
        running = self._running.get(host)
        if running is not None:
            return running
        if len(self._running) >= MAX_LOOKUPS:
            raise OSError(socket.EAI_AGAIN, f"{MAX_LOOKUPS} other names are being looked up and DNS does not answer")
        loop = asyncio.get_running_loop()
        future = self._running[host] = loop.create_future()
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to ask
        self.lookups += 1
        threading.Thread(target=self._look, args=(loop, host, future), name=f"dns {host}"[:15], daemon=True).start()
        return future

    def _look(self, loop: asyncio.AbstractEventLoop, host: str, future: asyncio.Future[tuple[str, ...]]) -> None:
        """In a thread of its own."""
        found: tuple[str, ...] | OSError
        try:
            found = self._lookup(host) or OSError(socket.EAI_NONAME, "the name has no address")
        except OSError as error:
            found = error
        except (UnicodeError, ValueError) as error:
            found = OSError(socket.EAI_NONAME, f"this is no host name: {error}")
        try:
            loop.call_soon_threadsafe(self._found, host, future, found)
        except RuntimeError:
            pass  # the loop is gone, and so is whoever asked

    def _found(self, host: str, future: asyncio.Future[tuple[str, ...]], found: tuple[str, ...] | OSError) -> None:
        self._running.pop(host, None)
        if isinstance(found, OSError):
            future.set_exception(found)
            return
        self._known.pop(host, None)
        while len(self._known) >= MAX_NAMES:
            del self._known[next(iter(self._known))]
        self._known[host] = (found, self._clock())
        future.set_result(found)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _text(sockaddr: tuple[object, ...]) -> str:
    """An address with its scope, which link-local IPv6 addresses need."""
    host, scope = str(sockaddr[0]), sockaddr[3] if len(sockaddr) == 4 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host
