"""`fleetproxy health`"""

from __future__ import annotations

import http.client
import ssl
import sys
from urllib.parse import urlsplit

from fleetproxy.cli import FAILED, OK, UNREACHABLE
from fleetproxy.cli.options import complain, parser, seconds
from fleetproxy.folders import FolderError, data_folder, running
from fleetproxy.settings.load import load
from fleetproxy.settings.problems import ConfigError
from fleetproxy.settings.servers import public_url

_EXAMPLES = """\
  fleetproxy health
  fleetproxy health --ready
  fleetproxy health --url http://10.0.0.9:11434
  HEALTHCHECK CMD ["fleetproxy", "health"]"""

_SAYS = """\
Ask a running fleetproxy whether it is well. Exit code 0: well; 1: it answers, but not
well; 4: nobody answers. Without --url the one of this data folder is asked."""

MOST_BYTES = 64 * 1024


def run(words: list[str]) -> int:
    options = parser("health", examples=_EXAMPLES, says=_SAYS)
    options.add_argument(
        "--ready", action="store_true", help="ask whether it can serve requests, not only whether it runs"
    )
    options.add_argument("--url", help="the address to ask")
    options.add_argument("--timeout", type=seconds, default=5.0, metavar="S", help="seconds to wait for the answer (5)")
    options.add_argument("--config", metavar="FILE", help="configuration that names the data folder")
    options.add_argument("--data-dir", metavar="FOLDER", help="data folder of the one to ask")
    asked = options.parse_args(words)
    try:
        url = asked.url or _own_url(asked.config, asked.data_dir)
    except (ConfigError, FolderError) as error:
        return complain(error)
    path = "/readyz" if asked.ready else "/healthz"
    try:
        status, body = _get(url, path, asked.timeout, verify=asked.url is not None)
    except (OSError, http.client.HTTPException, ValueError) as error:
        sys.stderr.write(f"fleetproxy: no answer from {url}{path}: {error}\n")
        return UNREACHABLE
    print(body.strip() or f"HTTP {status}")
    return OK if status == 200 else FAILED


def _own_url(config: str | None, data_dir: str | None) -> str:
    """Where the fleetproxy of this data folder listens, from its own note, else from the settings."""
    settings = load({"data_dir": data_dir} if data_dir else {}, config=config).settings
    found = running(data_folder(settings))
    return found.url if found is not None and found.url else public_url(settings)


def _get(url: str, path: str, timeout_s: float, *, verify: bool) -> tuple[int, str]:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("wants http(s)://host[:port]")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # Our own certificate names our public host, not the loopback address we ask at.
        context = ssl.create_default_context() if verify else ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        answer = connection.getresponse()
        return answer.status, answer.read(MOST_BYTES).decode(errors="replace")
    finally:
        connection.close()
