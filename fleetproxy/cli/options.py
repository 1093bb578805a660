"""What the commands share: help with examples first, the options that are settings, mistakes as sentences."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from fleetproxy.cli import BAD_CONFIG, EXIT_CODES
from fleetproxy.folders import data_folder
from fleetproxy.settings.check import strangers
from fleetproxy.settings.load import Loaded, load
from fleetproxy.settings.problems import ConfigError, Origin, Problem


def parser(command: str, *, examples: str, says: str) -> argparse.ArgumentParser:
    """A parser whose help begins with examples and ends with the exit codes."""
    return _ExamplesFirst(
        prog=f"fleetproxy {command}",
        description=says,
        usage=argparse.SUPPRESS,
        epilog=EXIT_CODES,
        formatter_class=_Formatter,
        allow_abbrev=False,
        examples=examples,
    )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """The same width everywhere: the reference page is made from it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=100)


class _ExamplesFirst(argparse.ArgumentParser):
    def __init__(self, *, examples: str = "", **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._examples = examples

    def format_help(self) -> str:
        return f"examples:\n{self._examples}\n\n{super().format_help()}"

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def add_settings(options: argparse.ArgumentParser) -> None:
    """The options that are settings; each beats the environment and the file."""
    options.add_argument("--config", metavar="FILE", help="read this TOML file instead of looking for fleetproxy.toml")
    options.add_argument(
        "--server",
        metavar="NAME=URL",
        action="append",
        default=[],
        help="add a server; openai+http://... for vLLM, llama.cpp and the like; may be repeated",
    )
    options.add_argument("--host", help="address to listen on (127.0.0.1)")
    options.add_argument("--port", type=port, help="port to listen on (11434); 0 takes a free one")
    options.add_argument("--metrics-port", type=port, metavar="PORT", help="serve /metrics on a port of its own")
    options.add_argument("--processes", type=int, metavar="N", help="proxy processes (1)")
    options.add_argument("--data-dir", metavar="FOLDER", help="where history and accounts are kept")
    options.add_argument("--open", action="store_true", default=None, help="listen beyond loopback without keys")
    options.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning, error or none")
    options.add_argument("--log-format", metavar="FORMAT", help="text, json or auto")


#: Option -> the setting it is.
_SETTINGS = {
    "host": "host",
    "port": "port",
    "processes": "processes",
    "data_dir": "data_dir",
    "open": "open",
    "log_level": "log.level",
    "log_format": "log.format",
}


def reader(options: argparse.Namespace) -> Callable[[], Loaded]:
    """Reads all settings, now and again at SIGHUP. Raises ConfigError."""
    flags = {key: value for name, key in _SETTINGS.items() if (value := getattr(options, name)) is not None}
    if options.metrics_port is not None:
        flags["metrics.listen"] = str(options.metrics_port)
    first: list[Path] = []

    def read() -> Loaded:
        loaded = load(flags, servers=options.server, config=options.config)
        # No file is no error at the start; later it would empty the fleet and let everybody in.
        if first and first[0] not in loaded.files:
            raise ConfigError((Problem("", Origin(str(first[0])), "was read at the start and is gone; put it back"),))
        first[:] = first or [path for path in loaded.files if path.parent.name != "config.d"][:1]
        # Users may hold keys of their own: then nobody needs one in the configuration.
        problem = strangers(loaded.settings, loaded.origins)
        if problem is not None and not _may_have_users(data_folder(loaded.settings)):
            raise ConfigError((problem,))
        return loaded

    return read


def _may_have_users(folder: Path) -> bool:
    try:
        (folder / "state.db").stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # not for us to see
    return True


def complain(error: Exception) -> int:
    """Say every mistake of the configuration on a line of its own."""
    for line in str(error).splitlines():
        sys.stderr.write(f"fleetproxy: {line}\n")
    return BAD_CONFIG


def port(text: str) -> int:
    """Of the command line. Raises ArgumentTypeError, as those below."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"wants a port from 0 to 65535, got {text!r}")
    return int(text)


def count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:7]) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"wants a number from 1 to 1000000, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    return _measure(text, 86_400.0, "seconds, above 0 and up to 86400")


def gibibytes(text: str) -> float:
    return _measure(text, 1_000_000.0, "GiB, above 0 and up to 1000000")


def _measure(text: str, most: float, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"wants {wanted}, got {text!r}")
    return value
