"""`fleetproxy keys`"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from fleetproxy.cli import USAGE
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import clean
from fleetproxy.cli.users import add_place, at_place
from fleetproxy.control.accounts import Accounts

_EXAMPLES = """\
  fleetproxy keys list ann
  fleetproxy keys add ann --label laptop --days 90
  fleetproxy keys add ci --label nightly --model llama3.2:3b --scope inference
  fleetproxy keys remove ann laptop"""

_SAYS = """\
API keys of users. A new key is printed once, alone on standard output; afterwards only its first
characters are known. A running fleetproxy is asked; without one its data folder is changed.
Scopes: inference (the proxy), read (look at the dashboard), manage (whatever the user may do)."""


def run(words: list[str]) -> int:
    options = parser("keys", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("what", choices=("list", "add", "remove"), help="what to do")
    options.add_argument("user", help="whose keys")
    options.add_argument("key", nargs="?", help="remove: label or first characters of the key")
    options.add_argument("--label", help="add: a name for it; without one the user's default key is replaced")
    options.add_argument(
        "--scope", action="append", choices=("inference", "read", "manage"), help="add: may be repeated (inference)"
    )
    options.add_argument("--model", action="append", metavar="NAME", help="add: only these models; may be repeated")
    options.add_argument("--days", type=_days, metavar="N", help="add: ends after so many days")
    options.add_argument("--json", action="store_true", help="list: print JSON")
    add_place(options)
    asked = options.parse_args(words)
    if asked.what == "remove" and not asked.key:
        sys.stderr.write("fleetproxy keys remove: which? name its label or first characters\n")
        return USAGE
    return at_place(asked, lambda found: _do(found, asked))


def _do(found: Accounts, asked: argparse.Namespace) -> None:
    if asked.what == "list":
        _list(found.keys(asked.user), asked.json)
    elif asked.what == "add":
        print(found.add_key(asked.user, _wishes(asked)))
        sys.stderr.write("this key is not shown again\n")
    else:
        found.remove_key(asked.user, asked.key)
        sys.stderr.write(f"key {asked.key} of {asked.user} revoked\n")


def _wishes(asked: argparse.Namespace) -> dict[str, Any]:
    expires = None if asked.days is None else (datetime.now(UTC) + timedelta(days=asked.days)).isoformat()
    wishes = {"label": asked.label, "scopes": asked.scope, "models": asked.model, "expiresAt": expires}
    return {name: value for name, value in wishes.items() if value is not None}


def _list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        json.dump(rows, sys.stdout, ensure_ascii=False)
        print()
        return
    print(f"{'KEY':<12} {'LABEL':<20} {'SCOPES':<24} {'EXPIRES':<26} MODELS")
    for row in rows:
        models = "all" if row["models"] is None else clean(", ".join(row["models"]))
        label, scopes = clean(row["label"]), ", ".join(row["scopes"])
        print(f"{row['prefix'] + '…':<12} {label:<20} {scopes:<24} {row['expiresAt'] or 'never':<26} {models}")


def _days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 36_500:
        raise argparse.ArgumentTypeError("wants a number of days from 1 to 36500")
    return int(text)
