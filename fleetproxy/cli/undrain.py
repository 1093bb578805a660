"""`fleetproxy undrain`"""

from __future__ import annotations

from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import talk
from fleetproxy.remote import steer
from fleetproxy.remote.call import Fleet

_EXAMPLES = """\
  fleetproxy undrain gpu1
  fleetproxy undrain gpu1 --url https://fleet.example"""

_SAYS = "Give a server or a dial-in worker requests again, after `fleetproxy drain`."


def run(words: list[str]) -> int:
    options = parser("undrain", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("name", help="the server, or worker (its name or id)")
    add_target(options)
    asked = options.parse_args(words)

    def work(fleet: Fleet) -> None:
        found = steer.anybody_named(fleet, asked.name)
        steer.drain(fleet, found, False)
        talk(f"{found.name} gets requests again")

    return asking("undrain", asked, work)
