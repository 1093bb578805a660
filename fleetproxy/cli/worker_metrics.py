"""`fleetproxy worker metrics`"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fleetproxy.cli import BAD_CONFIG
from fleetproxy.cli.options import parser
from fleetproxy.settings.servers import BadAddress, is_loopback, parse_listen

DEFAULT_LISTEN = "127.0.0.1:9100"
_MIN_KEY_CHARACTERS = 16

_EXAMPLES = """\
  fleetproxy worker metrics
  AGENT_KEY="$KEY" fleetproxy worker metrics --listen 0.0.0.0:9100
  fleetproxy worker metrics --listen 10.0.0.5:9100 --open
  curl http://127.0.0.1:9100/metrics"""

_SAYS = """\
Tell how this machine is doing: processor, memory, disk, temperatures, graphics cards, boots.
`/metrics` speaks the JSON that a fleet's poller reads (ours and the Ollama Fleet Manager's,
which look at port 9100), and Prometheus' text to a Prometheus. Beyond loopback it wants a
key, which the fleet sends when `poll.agent_key` is set, or --open."""


def run(words: list[str]) -> int:
    options = parser("worker metrics", examples=_EXAMPLES, says=_SAYS)
    options.add_argument(
        "--listen", metavar="HOST:PORT", help=f"address to listen on ({DEFAULT_LISTEN}) [AGENT_LISTEN]"
    )
    options.add_argument(
        "--key-file", metavar="FILE", help="the key callers must send is the first line of this file [AGENT_KEY_FILE]"
    )
    options.add_argument("--open", action="store_true", help="listen beyond loopback without a key [AGENT_KEY]")
    options.add_argument("--log-level", default="info", metavar="LEVEL", help="debug, info, warning, error or none")
    asked = options.parse_args(words)
    listen = asked.listen or os.environ.get("AGENT_LISTEN") or DEFAULT_LISTEN
    try:
        host, port = parse_listen(listen, "127.0.0.1")
        key = _key(asked.key_file or os.environ.get("AGENT_KEY_FILE"))
    except (BadAddress, OSError, ValueError) as error:
        return _complain(str(error))
    if key is None and not asked.open and not is_loopback(host):
        return _complain(
            f"{host} is open to others: give a key in AGENT_KEY (or --key-file), or say --open if everybody may look"
        )
    if asked.log_level not in ("debug", "info", "warning", "error", "none"):
        return _complain(f"--log-level: {asked.log_level!r} is none of debug, info, warning, error, none")
    from fleetproxy.worker.metrics.main import run as work  # noqa: PLC0415  (help needs none of it)

    return work(host, port, key, asked.log_level)


def _key(file: str | None) -> str | None:
    """Raises OSError, ValueError."""
    key = Path(file).read_text().partition("\n")[0].strip() if file else os.environ.get("AGENT_KEY", "").strip()
    if file and not key:
        raise ValueError(f"{file}: the first line, where the key should be, is empty")
    if key and (len(key) < _MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable()):
        raise ValueError(f"the key wants at least {_MIN_KEY_CHARACTERS} characters, plain ones")
    return key or None


def _complain(text: str) -> int:
    sys.stderr.write(f"fleetproxy worker metrics: {text}\n")
    return BAD_CONFIG
