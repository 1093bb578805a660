"""`fleetproxy backup` and `fleetproxy restore`"""

from __future__ import annotations

import sys
from pathlib import Path

from fleetproxy.cli import FAILED, OK, UNREACHABLE
from fleetproxy.cli.options import complain, parser
from fleetproxy.cli.users import add_place, settings_of
from fleetproxy.control import safekeeping
from fleetproxy.control.state import StoreBroken
from fleetproxy.folders import FolderError
from fleetproxy.settings.problems import ConfigError

_EXAMPLES = """\
  fleetproxy backup
  fleetproxy backup /var/backups/fleetproxy-state.db"""

_SAYS = """\
Copy users, keys, servers, jobs and settings to one file, also while fleetproxy runs. The file
holds secrets (tokens of servers and chats): only you can read it. The request history is not in
it: export that with a scheduled job or `fleetproxy query`."""

_RESTORE_EXAMPLES = """\
  fleetproxy restore /var/backups/fleetproxy-state.db"""

_RESTORE_SAYS = """\
Put a copy in the place of users, keys, servers, jobs and settings. fleetproxy must not run. What
was there is kept beside it. Everybody is logged out; keys and users are those of the copy."""


def run(words: list[str]) -> int:
    options = parser("backup", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("target", nargs="?", type=Path, help="file or folder to write to (a new file here)")
    add_place(options)
    asked = options.parse_args(words)
    try:
        print(safekeeping.backup(settings_of(asked), asked.target))
    except (ConfigError, FolderError) as error:
        return complain(error)
    except StoreBroken as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return UNREACHABLE
    except OSError as error:
        sys.stderr.write(f"fleetproxy: cannot write the copy: {error}\n")
        return FAILED
    return OK


def run_restore(words: list[str]) -> int:
    options = parser("restore", examples=_RESTORE_EXAMPLES, says=_RESTORE_SAYS)
    options.add_argument("copy", type=Path, help="a file that `fleetproxy backup` made")
    add_place(options)
    asked = options.parse_args(words)
    try:
        kept = safekeeping.restore(settings_of(asked), asked.copy)
    except ConfigError as error:
        return complain(error)
    except (FolderError, StoreBroken, OSError) as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return FAILED
    sys.stderr.write("restored" + (f"; what was there is kept as {kept}\n" if kept else "\n"))
    return OK
