"""What the verbs that call a running fleetproxy share: whom to call, and what an error means for the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from fleetproxy.cli import FAILED, NOT_FOUND, OK, TIMEOUT, UNAUTHORIZED, UNREACHABLE, USAGE
from fleetproxy.cli.options import complain, seconds
from fleetproxy.cli.output import one_line, talk
from fleetproxy.folders import FolderError
from fleetproxy.remote.address import BadTarget, Target, find
from fleetproxy.remote.call import CALL_S, CallError, Fleet, Kind
from fleetproxy.settings.problems import ConfigError

EXITS: dict[Kind, int] = {
    "failed": FAILED,
    "missing": NOT_FOUND,
    "unreachable": UNREACHABLE,
    "refused": UNAUTHORIZED,
    "timeout": TIMEOUT,
}


class Mistake(Exception):
    """What was asked for cannot be done; exits with `code`."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def add_target(options: argparse.ArgumentParser, *, timeout_s: float = CALL_S) -> None:
    """Whom to call, and with which key."""
    options.add_argument(
        "--url", help="the fleetproxy to ask [FLEETPROXY_URL, OLLAMA_HOST, else the one of this machine]"
    )
    options.add_argument("--key", help="API key; better in the environment [FLEETPROXY_KEY, OLLAMA_API_KEY]")
    options.add_argument(
        "--timeout",
        type=seconds,
        default=timeout_s,
        metavar="S",
        help=f"seconds to wait for an answer ({timeout_s:g})",
    )
    options.add_argument("--config", metavar="FILE", help="configuration that tells address and data folder")
    options.add_argument("--data-dir", metavar="FOLDER", help="data folder of the one to ask")


def target_of(asked: argparse.Namespace) -> Target:
    """Raises BadTarget, ConfigError, FolderError."""
    return find(asked.url, asked.key, config=asked.config, data_dir=asked.data_dir)


def asking(word: str, asked: argparse.Namespace, work: Callable[[Fleet], int | None]) -> int:
    """Do it with the fleetproxy that is meant; mistakes become sentences and exit codes."""
    try:
        return work(Fleet(target_of(asked), timeout_s=asked.timeout)) or OK
    except (ConfigError, FolderError) as error:
        return complain(error)
    except BadTarget as error:
        talk(one_line(f"fleetproxy {word}: {error}"))
        return USAGE
    except CallError as error:
        sys.stdout.flush()
        talk(one_line(f"fleetproxy {word}: {error}"))
        return EXITS[error.kind]
    except Mistake as error:
        talk(one_line(f"fleetproxy {word}: {error}"))
        return error.code
