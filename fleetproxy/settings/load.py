"""Where settings come from, put together with the place of each value.

Later wins: default < names of other programs (`ancestors`) < file < `config.d/*.toml` beside it < FLEETPROXY_* of the
environment < command line. Tables merge; a list replaces, but `servers` and `keys` of several files add up.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from fleetproxy.settings.ancestors import ANCESTORS, UNUSED
from fleetproxy.settings.check import check, complete
from fleetproxy.settings.environment import KUBERNETES_PORT, NOT_SETTINGS, from_text, variable
from fleetproxy.settings.fields import ENVIRONMENT_PREFIX, environment_name, every_key
from fleetproxy.settings.files import check_files
from fleetproxy.settings.layers import Layers, dotted, grow, near
from fleetproxy.settings.model import Settings
from fleetproxy.settings.positions import positions
from fleetproxy.settings.problems import ConfigError, Origin, Origins, Problem
from fleetproxy.settings.servers import BadAddress, short_server, without_password

FILE_NAME = "fleetproxy.toml"
MAX_FILE_BYTES = 4 * 1024 * 1024
#: Lists that several files build together.
_SHARED_LISTS = ("servers", "keys", "client_keys")


class Loaded(msgspec.Struct, frozen=True):
    """Settings that passed every check, and where they came from."""

    settings: Settings
    origins: Origins
    #: Sentences worth a log line: variables of other programs that were used, or lost to a file.
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    servers: Iterable[str] = (),
    config: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Loaded:
    """Read all sources. Raises ConfigError with every mistake found, each with its place.

    `flags` are dotted keys and values of the command line, `servers` its `--server` words; `config` is a file that must
    exist; `folder` is where `./` is.
    """
    environment = os.environ if environment is None else environment
    folder = Path.cwd() if folder is None else folder
    layers = Layers()
    notes: list[str] = []
    _lay_ancestors(layers, environment, notes)
    files = _find_files(config, environment, folder, notes)
    _lay_files(layers, files, notes)
    _lay_environment(layers, environment)
    _lay_flags(layers, flags or {}, servers)
    _refuse(layers.problems)
    settings = complete(msgspec.convert(layers.tree, Settings))
    _refuse(check(settings, layers.origins) or check_files(settings, layers.origins))
    return Loaded(settings, layers.origins, tuple(notes), tuple(files))


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise ConfigError(tuple(problems))


# --- the layers, lowest first ---


def _lay_ancestors(layers: Layers, environment: Mapping[str, str], notes: list[str]) -> None:
    taken: set[str] = set()
    for ancestor in ANCESTORS:
        origin = Origin(ancestor.name)
        try:
            text = variable(environment, ancestor.name, file=ancestor.secret, secret=ancestor.secret)
            if text is None:
                continue
            found = ancestor.read(text)
        except ValueError as error:
            layers.problems.append(Problem("", origin, str(error)))
            continue
        values = dict.fromkeys(ancestor.keys, found) if ancestor.keys else found
        values = {key: value for key, value in values.items() if key not in taken and not _has_twin(environment, key)}
        taken |= set(values)
        if values:
            layers.lay(grow(values), origin)
            plain = ", ".join(environment_name(tuple(key.split("."))) for key in values)
            notes.append(f"{ancestor.name} of the environment is used; its own name here is {plain}")
    notes += [f"{name} has no meaning here: {why}" for name, why in UNUSED.items() if environment.get(name)]


def _has_twin(environment: Mapping[str, str], key: str) -> bool:
    name = environment_name(tuple(key.split(".")))
    return bool(environment.get(name) or environment.get(f"{name}_FILE"))


def _lay_files(layers: Layers, files: list[Path], notes: list[str]) -> None:
    before = dict(layers.origins)
    fresh = set(_SHARED_LISTS)
    for path in files:
        tree, places = _parse(path)
        for name in _SHARED_LISTS:
            if name not in tree:
                continue
            if name in fresh:
                fresh.discard(name)
                layers.drop(name)
            layers.extend(name, tree.pop(name), places)
        layers.lay(tree, places)
    for key, origin in before.items():
        holds = layers.origins.get(key)
        if holds is not None and holds != origin:
            notes.append(f"{origin} is set, but {dotted(key)} in {holds} holds")


def _lay_environment(layers: Layers, environment: Mapping[str, str]) -> None:
    known: set[str] = set()
    for path, field in every_key():
        name = environment_name(path)
        known.add(name)
        from_file = field.secret or field.kind == "list"
        if from_file:
            known.add(f"{name}_FILE")
        try:
            text = variable(environment, name, file=from_file, secret=field.secret)
            if text is None or (path == ("port",) and KUBERNETES_PORT.fullmatch(text)):
                continue
            value = from_text(field, text)
        except ValueError as error:
            layers.problem(path, Origin(name), str(error))
            continue
        layers.lay(grow({dotted(path): value}), Origin(name))
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known and not NOT_SETTINGS.fullmatch(name):
            layers.problems.append(Problem("", Origin("environment"), f"unknown variable {name}{near(name, known)}"))


def _lay_flags(layers: Layers, flags: Mapping[str, Any], servers: Iterable[str]) -> None:
    for word in servers:
        origin = Origin(f"--server {without_password(word)}")
        try:
            layers.put_server(dict(short_server(word)), origin)
        except BadAddress as error:
            layers.problems.append(Problem("", origin, str(error)))
    for key, value in flags.items():
        option = {"metrics.listen": "metrics-port"}.get(key, key.replace("_", "-"))
        layers.lay(grow({key: value}), Origin(f"--{option}"))


# --- files ---


def _find_files(config: str | None, environment: Mapping[str, str], folder: Path, notes: list[str]) -> list[Path]:
    """The file, then the pieces of `config.d` beside it, by name."""
    config = config or environment.get("FLEETPROXY_CONFIG") or None
    if config is not None:
        return _named_file(folder / Path(config).expanduser())
    if _is_there(here := folder / FILE_NAME):
        return [here, *_pieces(folder)]
    home = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME") or "/nonexistent") / ".config")
    for place in (Path(home) / "fleetproxy", Path("/etc/fleetproxy")):
        found = [path for path in (place / FILE_NAME,) if _is_there(path)] + _pieces(place)
        if found:
            return found
    if theirs := environment.get("CONFIG_FILE"):
        if theirs.endswith(".toml"):
            notes.append("CONFIG_FILE of the environment is used; its own name here is FLEETPROXY_CONFIG")
            return _named_file(folder / theirs)
        notes.append(f"CONFIG_FILE={theirs} is not read: the configuration here is TOML")
    return []


def _named_file(path: Path) -> list[Path]:
    if path.suffix.lower() in {".yaml", ".yml", ".json"}:
        raise ConfigError((Problem("", Origin(str(path)), "the configuration of fleetproxy is TOML"),))
    if not _is_there(path):
        raise ConfigError((Problem("", Origin(str(path)), "there is no such file"),))
    return [path, *_pieces(path.parent)]


def _is_there(path: Path) -> bool:
    """Raises ConfigError where we may not look: what stands there may be what keeps strangers out."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        what = f"cannot be read: {error.strerror}; be the user fleetproxy runs as, or name another file with --config"
        raise ConfigError((Problem("", Origin(str(path)), what),)) from None
    return True


def _pieces(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in (folder / "config.d").glob("*.toml") if not path.name.startswith("."))
    except OSError:
        return []


def _parse(path: Path) -> tuple[dict[str, Any], Origins]:
    """The tree of a file, and the place of each path in it."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError((Problem("", Origin(str(path)), f"is larger than {MAX_FILE_BYTES} bytes"),))
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
        tree = tomllib.loads(text)
    except OSError as error:
        raise ConfigError((Problem("", Origin(str(path)), f"cannot be read: {error.strerror}"),)) from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError((Problem("", Origin(str(path), line), "is not UTF-8 text"),)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((_syntax(path, str(error)),)) from None
    except RecursionError:
        raise ConfigError((Problem("", Origin(str(path)), "is nested too deeply"),)) from None
    places: Origins = {place: Origin(str(path), at.line, at.column) for place, at in positions(text).items()}
    return tree, {(): Origin(str(path)), **places}


def _syntax(path: Path, message: str) -> Problem:
    found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if found is None:
        return Problem("", Origin(str(path)), f"is not valid TOML: {message.removesuffix(' (at end of document)')}")
    origin = Origin(str(path), int(found[1]), int(found[2]))
    return Problem("", origin, f"is not valid TOML: {message[: found.start()]}")
