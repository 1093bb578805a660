"""`fleetproxy drain`"""

from __future__ import annotations

from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser, seconds
from fleetproxy.cli.output import talk
from fleetproxy.remote import steer
from fleetproxy.remote.call import Fleet

_EXAMPLES = """\
  fleetproxy drain gpu1
  fleetproxy drain gpu1 --wait && ssh gpu1 sudo reboot
  fleetproxy drain macbook-worker --wait --within 60"""

_SAYS = """\
Give a server or a dial-in worker no new requests; what runs there may end. It stays listed and
polled. `fleetproxy undrain` takes it back."""


def run(words: list[str]) -> int:
    options = parser("drain", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("name", help="the server, or worker (its name or id)")
    options.add_argument("--wait", action="store_true", help="until nothing runs there any more")
    options.add_argument(
        "--within",
        type=seconds,
        default=600.0,
        metavar="S",
        help="with --wait: exit code 124 after so many seconds (600)",
    )
    add_target(options)
    asked = options.parse_args(words)

    def work(fleet: Fleet) -> None:
        found = steer.anybody_named(fleet, asked.name)
        steer.drain(fleet, found, True)
        if not asked.wait:
            talk(f"{found.name} gets nothing new")
            return
        told = 0

        def tell(running: int) -> None:
            nonlocal told
            if running != told:
                told = running
                talk(f"{found.name} still serves {running}")

        steer.wait_idle(fleet, found, asked.within, tell)
        talk(f"{found.name} is empty")

    return asking("drain", asked, work)
