"""`fleetproxy worker drain` and `fleetproxy worker undrain`"""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Iterator

from fleetproxy.cli import BAD_CONFIG, FAILED, OK, UNAUTHORIZED, UNREACHABLE
from fleetproxy.cli.options import parser
from fleetproxy.folders import FolderError
from fleetproxy.settings.servers import BadAddress, parse_listen

_EXAMPLES = """\
  fleetproxy worker drain --status-addr 127.0.0.1:4555
  STATUS_ADDR=127.0.0.1:4555 fleetproxy worker drain
  fleetproxy worker undrain --status-addr 127.0.0.1:4555     (if it has not left yet)"""

_SAYS = """\
Have a worker of this machine take nothing new, finish what runs and leave, as SIGTERM does. It is
asked at the address it was started with (--status-addr), with the token it keeps in its data folder;
`undrain` has it take requests again."""

TIMEOUT_S = 5.0
MOST_BYTES = 1024 * 1024


def run(words: list[str], word: str = "drain") -> int:
    options = parser(f"worker {word}", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("--status-addr", metavar="ADDRESS", help="the worker's own --status-addr [STATUS_ADDR]")
    given = options.parse_args(words).status_addr or os.environ.get("STATUS_ADDR", "")
    if not given:
        text = "say where the worker listens: --status-addr, as it was started with; SIGTERM drains it too"
        return _complain(word, text, BAD_CONFIG)
    try:
        host, port = parse_listen(given, "127.0.0.1")
        tokens = list(_tokens())
    except (BadAddress, FolderError) as error:
        return _complain(word, str(error), BAD_CONFIG)
    try:
        _, body = _ask(host, port, "GET", "/status", "")
        told = json.loads(body)
        name, running = str(told["worker_name"]), int(told["current_jobs"])
        status = 401
        for token in tokens:
            if status == 401:
                status, _ = _ask(host, port, "POST", f"/control/{word}", token)
    except (OSError, http.client.HTTPException) as error:
        return _complain(word, f"nobody answers at {host}:{port}: {error}", UNREACHABLE)
    except (ValueError, KeyError, TypeError):
        return _complain(word, f"what answers at {host}:{port} is no worker", FAILED)
    if status == 401:
        text = "the worker keeps its token elsewhere: run this as its user, with its FLEETPROXY_DATA_DIR"
        return _complain(word, text, UNAUTHORIZED)
    if status != 200:
        return _complain(word, f"the worker answered {status}", FAILED)
    if word == "drain":
        print(f"{name} finishes what runs ({running}), then it leaves")
    else:
        print(f"{name} takes requests again")
    return OK


def _tokens() -> Iterator[str]:
    """The tokens that workers of this user keep. Raises FolderError."""
    from fleetproxy.worker.options import token_paths  # noqa: PLC0415  (help needs none of it)

    for path in token_paths(os.environ):
        try:
            yield path.read_text().strip()
        except OSError:
            continue


def _ask(host: str, port: int, method: str, path: str, token: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host if host != "0.0.0.0" else "127.0.0.1", port, timeout=TIMEOUT_S)  # noqa: S104
    try:
        connection.request(method, path, headers={"X-Auth-Token": token} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read(MOST_BYTES)
    finally:
        connection.close()


def _complain(word: str, text: str, code: int) -> int:
    sys.stderr.write(f"fleetproxy worker {word}: {text}\n")
    return code
