"""`fleetproxy users`"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from fleetproxy.cli import FAILED, NOT_FOUND, OK, UNAUTHORIZED, UNREACHABLE, USAGE
from fleetproxy.cli.options import complain, parser
from fleetproxy.control.accounts import AccountError, Accounts, accounts
from fleetproxy.control.local_call import Unreachable
from fleetproxy.control.state import StoreBroken
from fleetproxy.folders import FolderError
from fleetproxy.settings import Settings
from fleetproxy.settings.load import load
from fleetproxy.settings.problems import ConfigError

_EXAMPLES = """\
  fleetproxy users list
  fleetproxy users add ann --admin
  echo "$PASSWORD" | fleetproxy users password ann --password-stdin
  fleetproxy users remove ann"""

_SAYS = """\
Who may log in to the dashboard. A running fleetproxy is asked; without one its data folder is
changed. A forgotten password: `fleetproxy users password NAME`, as the user fleetproxy runs as."""

EXITS = {401: UNAUTHORIZED, 403: UNAUTHORIZED, 404: NOT_FOUND}


def run(words: list[str]) -> int:
    options = parser("users", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("what", choices=("list", "add", "password", "promote", "demote", "remove"), help="what to do")
    options.add_argument("name", nargs="?", help="the user (all but list)")
    options.add_argument("--admin", action="store_true", help="add: an administrator")
    options.add_argument("--password-stdin", action="store_true", help="read the password from standard input")
    options.add_argument("--json", action="store_true", help="list: print JSON")
    add_place(options)
    asked = options.parse_args(words)
    if asked.what != "list" and not asked.name:
        sys.stderr.write(f"fleetproxy users {asked.what}: whose? name a user\n")
        return USAGE
    password = _password(asked) if asked.what in ("add", "password") else ""
    if password is None:
        return USAGE
    return at_place(asked, lambda found: _do(found, asked, password))


def add_place(options: argparse.ArgumentParser) -> None:
    options.add_argument("--config", metavar="FILE", help="configuration that names the data folder")
    options.add_argument("--data-dir", metavar="FOLDER", help="data folder of the one to change")


def settings_of(asked: argparse.Namespace) -> Settings:
    return load({"data_dir": asked.data_dir} if asked.data_dir else {}, config=asked.config).settings


def at_place(asked: argparse.Namespace, work: Any) -> int:
    """Do it at the data folder that was named; mistakes become sentences and exit codes."""
    try:
        with accounts(settings_of(asked)) as found:
            work(found)
    except (ConfigError, FolderError) as error:
        return complain(error)
    except (Unreachable, StoreBroken) as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return UNREACHABLE
    except AccountError as error:
        sys.stderr.write(f"fleetproxy: {error}\n")
        return EXITS.get(error.status, FAILED)
    return OK


def _do(found: Accounts, asked: argparse.Namespace, password: str) -> None:
    match asked.what:
        case "list":
            _list(found.users(), asked.json)
        case "add":
            made = found.add_user(asked.name, password, asked.admin)
            _say(f"user {made['username']} added{' as administrator' if asked.admin else ''}")
        case "password":
            found.change_user(asked.name, {"password": password})
            _say(f"password of {asked.name} changed; their sessions have ended")
        case "promote" | "demote":
            found.change_user(asked.name, {"isAdmin": asked.what == "promote"})
            _say(f"{asked.name} is {'an' if asked.what == 'promote' else 'no'} administrator now")
        case _:
            found.remove_user(asked.name)
            _say(f"user {asked.name} removed, with sessions and keys")


def _list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        json.dump(rows, sys.stdout, ensure_ascii=False)
        print()
        return
    print(f"{'ID':<5} {'NAME':<24} {'ROLE':<14} CREATED")
    for row in rows:
        role = "administrator" if row["isAdmin"] else "user"
        print(f"{row['id']:<5} {row['username']:<24} {role:<14} {row['createdAt']}")


def _password(asked: argparse.Namespace) -> str | None:
    if asked.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        sys.stderr.write("fleetproxy users: no terminal to ask for the password at; give it with --password-stdin\n")
        return None
    import getpass  # noqa: PLC0415  (only at a terminal)

    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        sys.stderr.write("fleetproxy users: these were two different passwords\n")
        return None
    return password


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
