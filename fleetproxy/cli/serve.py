"""`fleetproxy serve`"""

from __future__ import annotations

import asyncio
import sys

from fleetproxy import log
from fleetproxy.cli import FAILED, OK
from fleetproxy.cli.browser import add_browser, show
from fleetproxy.cli.options import add_settings, complain, parser, reader
from fleetproxy.folders import FolderError
from fleetproxy.ports import PortTaken
from fleetproxy.serve import StartFailed, Supervisor
from fleetproxy.settings.problems import ConfigError

_EXAMPLES = """\
  fleetproxy serve
  fleetproxy serve --server gpu1=10.0.0.5:11434 --server vllm=openai+http://10.0.0.6:8000
  fleetproxy serve --config /etc/fleetproxy/fleetproxy.toml --processes 2
  FLEETPROXY_AUTH__API_KEY_FILE=/run/secrets/key fleetproxy serve --host 0.0.0.0"""

_SAYS = """\
Run the proxy, its dashboard and its store until told to stop.

Ctrl-C or SIGTERM drains: new requests get 503, open ones may end; once more stops at
once. SIGHUP reads the configuration again. Settings come, later wins, from
fleetproxy.toml (in ./, $XDG_CONFIG_HOME/fleetproxy/ or /etc/fleetproxy/), config.d/*.toml
beside it, FLEETPROXY_* variables and these options."""


def run(words: list[str]) -> int:
    """Exit code 0 after a clean stop, 1 when it cannot start, 6 for a configuration that is no good."""
    options = parser("serve", examples=_EXAMPLES, says=_SAYS)
    add_settings(options)
    add_browser(options)
    asked = options.parse_args(words)
    read = reader(asked)
    try:
        loaded = read()
    except (ConfigError, FolderError) as error:
        return complain(error)
    log.setup(loaded.settings, "serve")
    for note in loaded.notes:
        log.get("config").info("%s", note)
    try:
        supervisor = Supervisor(loaded.settings, lambda: read().settings)
        if asked.browser:
            supervisor.on_ready = show
        asyncio.run(supervisor.run())
    except (StartFailed, FolderError, PortTaken) as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return FAILED
    return OK
