"""Which fleetproxy is meant, and with which key.

Address, the first there is: `--url`, FLEETPROXY_URL, OLLAMA_HOST, the one that runs with our data folder,
the settings. Key: `--key`, FLEETPROXY_KEY (or the file FLEETPROXY_KEY_FILE names), OLLAMA_API_KEY, and for our own
fleetproxy `auth.api_key` of its settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from fleetproxy.folders import FolderError, Running, data_folder, running
from fleetproxy.settings.environment import variable
from fleetproxy.settings.load import load
from fleetproxy.settings.problems import ConfigError
from fleetproxy.settings.servers import BadAddress, is_loopback, parse_url, public_url

URL, KEY = "FLEETPROXY_URL", "FLEETPROXY_KEY"
THEIR_URL, THEIR_KEY = "OLLAMA_HOST", "OLLAMA_API_KEY"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  (where servers listen is not where one calls)


class BadTarget(Exception):
    """An address or key that cannot be used; the text says which and what is wanted."""


class Target(msgspec.Struct, frozen=True):
    """Where to call, and as whom."""

    #: http(s)://host:port[/prefix], nothing behind it.
    url: str
    #: What told the address: an option, a variable, "data folder" or "settings".
    origin: str
    key: str = ""
    #: The one that runs with our data folder: control is asked over its socket, with the key only we can read.
    live: Running | None = None

    @property
    def verified(self) -> bool:
        """Whether a certificate must match: our own names our public host, not the loopback address we call."""
        return self.origin not in ("data folder", "settings")

    def __repr__(self) -> str:
        return f"Target({self.url!r}, {self.origin!r}, {'***' if self.key else ''!r})"


def find(
    url: str | None = None,
    key: str | None = None,
    *,
    config: str | None = None,
    data_dir: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> Target:
    """The fleetproxy that is meant. Raises BadTarget; ConfigError and FolderError where the settings are needed."""
    environment = os.environ if environment is None else environment
    try:
        given = key or variable(environment, KEY, file=True, secret=True) or environment.get(THEIR_KEY) or ""
    except ValueError as error:
        raise BadTarget(f"{KEY}: {error}") from None
    if not given.isascii() or not given.isprintable():
        raise BadTarget("the key has characters that no key of ours has")
    # A data folder on the command line means that one, whatever the environment says of another.
    named = [] if config or data_dir else [(URL, environment.get(URL)), (THEIR_URL, environment.get(THEIR_URL))]
    for origin, text in [("--url", url), *named]:
        if text:
            plain = _plain(text, origin)
            return Target(plain, origin, given, _ours(plain, environment))
    settings = load({"data_dir": data_dir} if data_dir else {}, config=config, environment=environment).settings
    found = running(data_folder(settings))
    given = given or settings.auth.api_key or ""
    if found is not None and found.url:
        return Target(found.url, "data folder", given, found)
    return Target(public_url(settings), "settings", given)


def _ours(url: str, environment: Mapping[str, str]) -> Running | None:
    """The one with our data folder, when this is its address."""
    try:
        found = running(data_folder(load(environment=environment).settings))
    except (ConfigError, FolderError):
        return None
    if found is None or not found.url:
        return None
    theirs, named = urlsplit(found.url), urlsplit(url)
    same = theirs.port == named.port and is_loopback(theirs.hostname or "") and is_loopback(named.hostname or "")
    return found if same else None


def _plain(text: str, origin: str) -> str:
    """As Ollama's clients read it: a bare host means port 11434, a scheme brings its own."""
    text = text.strip().strip("\"'")
    if text.startswith(":"):
        text = f"127.0.0.1{text}"
    if "[" not in text and text.count(":") > 1 and "://" not in text:
        text = f"[{text}]"
    try:
        address = parse_url(text, "openai" if "://" in text else "ollama")
    except BadAddress as error:
        raise BadTarget(f"{origin}: {error}") from None
    host = _EVERYWHERE.get(address.host, address.host)
    host = f"[{host}]" if ":" in host else host
    return f"{address.scheme}://{host}:{address.port}{address.prefix}"


def host_of(url: str) -> str:
    """host:port of an address, for sentences."""
    return urlsplit(url).netloc or url
