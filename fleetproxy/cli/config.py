"""`fleetproxy config check|show|schema|env`"""

from __future__ import annotations

import json
import sys

from fleetproxy.cli import OK
from fleetproxy.cli.options import add_settings, complain, parser, reader
from fleetproxy.folders import FolderError
from fleetproxy.settings.ancestors import ANCESTORS
from fleetproxy.settings.problems import ConfigError
from fleetproxy.settings.show import as_json, as_toml, environment_names, schema

_EXAMPLES = """\
  fleetproxy config check
  fleetproxy config show --origin
  fleetproxy config show --json --config other.toml
  fleetproxy config schema > fleetproxy.schema.json
  fleetproxy config env"""

_SAYS = """\
check    say every mistake with its file, line and column; exit code 6 when there is one
show     print all settings as they hold, secrets masked; --origin says where each is from
schema   print the JSON schema of the configuration file, for editors
env      list every environment variable"""

_OF_COMMANDS = {
    "FLEETPROXY_URL": "which fleetproxy to ask; then OLLAMA_HOST, then the one of this machine",
    "FLEETPROXY_KEY": "the key to show (or FLEETPROXY_KEY_FILE, a file with it); then OLLAMA_API_KEY",
    "FLEETPROXY_CONFIG": "the configuration file",
    "NO_COLOR, FORCE_COLOR": "no colours; colours also where there is no terminal",
    "SSL_CERT_FILE": "certificates to trust when asking at https://",
}


def run(words: list[str]) -> int:
    options = parser("config", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("what", choices=("check", "show", "schema", "env"))
    options.add_argument("--origin", action="store_true", help="show: say where each value is from")
    options.add_argument("--json", action="store_true", help="show: as JSON")
    add_settings(options)
    asked = options.parse_args(words)
    if asked.what == "schema":
        print(json.dumps(schema(), indent=2))
        return OK
    if asked.what == "env":
        return _environment()
    try:
        loaded = reader(asked)()
    except (ConfigError, FolderError) as error:
        return complain(error)
    for note in loaded.notes:
        sys.stderr.write(f"note: {note}\n")
    if asked.what == "show":
        sys.stdout.write(
            as_json(loaded.settings)
            if asked.json
            else as_toml(loaded.settings, loaded.origins if asked.origin else None)
        )
        return OK
    settings = loaded.settings
    read = ", ".join(map(str, loaded.files)) or "no file"
    print(f"valid: {len(settings.servers)} servers, {len(settings.keys)} keys ({read})")
    return OK


def _environment() -> int:
    print("Later wins: default < other programs' names < file < these variables < options.")
    print("Secrets, FLEETPROXY_SERVERS and FLEETPROXY_KEYS are also read from the file named by <NAME>_FILE.\n")
    for name, wants, doc in environment_names():
        print(f"{name}\n    {wants}{'. ' if doc else ''}{doc}")
    print("\nOf the commands that call a running fleetproxy, and of what they print:\n")
    for name, doc in _OF_COMMANDS.items():
        print(f"{name:<28} {doc}")
    print("\nNames of other programs, read where none of the above and no file says otherwise:\n")
    for ancestor in ANCESTORS:
        print(f"{ancestor.name:<28} {', '.join(ancestor.keys) or 'host, port'}")
    return OK
