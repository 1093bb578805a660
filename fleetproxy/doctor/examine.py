"""The whole examination, in the order one reads it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import msgspec

from fleetproxy.doctor.backends import backends
from fleetproxy.doctor.configuration import configuration, mistakes
from fleetproxy.doctor.finding import Finding, fail
from fleetproxy.doctor.folders import addresses, folders
from fleetproxy.doctor.machine import machine
from fleetproxy.doctor.service import service
from fleetproxy.folders import FolderError, data_folder, running
from fleetproxy.remote.address import BadTarget, find
from fleetproxy.settings.load import Loaded, load
from fleetproxy.settings.problems import ConfigError


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What to look at."""

    url: str | None = None
    key: str | None = None
    config: str | None = None
    data_dir: str | None = None
    #: Have each server answer one token: that may load a model.
    deep: bool = False


def examine(wish: Wish, now: datetime) -> Iterator[Finding]:
    """Findings as they are made. Never raises for what it finds."""
    yield from machine()
    try:
        loaded: Loaded | None = load({"data_dir": wish.data_dir} if wish.data_dir else {}, config=wish.config)
    except ConfigError as error:
        loaded = None
        yield from mistakes(error)
    if loaded is not None:
        settings = loaded.settings
        yield from configuration(loaded, now)
        try:
            live = running(data_folder(settings))
        except FolderError:
            live = None
        yield from folders(settings, live)
        yield from addresses(settings, live)
        yield from backends(settings.servers, deep=wish.deep)
    try:
        target = find(wish.url, wish.key, config=wish.config, data_dir=wish.data_dir)
    except (BadTarget, FolderError) as error:
        yield fail("service", str(error), "name it with --url")
    except ConfigError:
        return
    else:
        yield from service(target)
