"""`fleetproxy doctor`"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from fleetproxy.cli import FAILED, FINDINGS, OK
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import Cell, clean, coloured, painted, print_json, talk
from fleetproxy.doctor.bundle import write
from fleetproxy.doctor.examine import Wish, examine
from fleetproxy.doctor.finding import Finding, worst
from fleetproxy.settings.load import load
from fleetproxy.settings.problems import ConfigError

_EXAMPLES = """\
  fleetproxy doctor
  fleetproxy doctor --url https://fleet.example --key "$KEY"
  fleetproxy doctor --deep
  fleetproxy doctor --strict --json
  fleetproxy doctor --bundle support.tar.gz"""

_SAYS = """\
Look at this machine, the settings, every server, and the fleetproxy that runs, for what is
wrong; each line that is not ok says how to mend it. Exit code 7 when something fails, with
--strict also when something is worth a warning. Nothing is changed, nothing is sent elsewhere."""

_SIGNS = {"ok": Cell("✓ ok  ", "good"), "warn": Cell("! warn", "warn"), "fail": Cell("✗ fail", "bad")}


def run(words: list[str]) -> int:
    options = parser("doctor", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("--url", help="the address clients use, behind whatever proxy there is [FLEETPROXY_URL]")
    options.add_argument("--key", help="API key; better in the environment [FLEETPROXY_KEY]")
    options.add_argument("--deep", action="store_true", help="have every server answer one token: may load models")
    options.add_argument("--strict", action="store_true", help="exit code 7 on warnings too")
    options.add_argument("--json", action="store_true", help="print a JSON array of findings")
    options.add_argument("--bundle", metavar="FILE", help="write an archive for support, without secrets")
    options.add_argument("--no-color", action="store_true", help="no colours; NO_COLOR and TERM=dumb say so too")
    options.add_argument("--config", metavar="FILE", help="configuration to look at")
    options.add_argument("--data-dir", metavar="FOLDER", help="data folder to look at")
    asked = options.parse_args(words)
    wish = Wish(url=asked.url, key=asked.key, config=asked.config, data_dir=asked.data_dir, deep=asked.deep)
    findings: list[Finding] = []
    for finding in examine(wish, datetime.now(UTC)):
        findings.append(finding)
        if not asked.json:
            _print(finding, asked)
    if asked.json:
        print_json(findings)
    else:
        counts = Counter(finding.level for finding in findings)
        print(f"\n{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failed")
    if asked.bundle and not _bundle(asked, findings):
        return FAILED
    level = worst(findings)
    return FINDINGS if level == "fail" or (level == "warn" and asked.strict) else OK


def _print(finding: Finding, asked: argparse.Namespace) -> None:
    sign = painted(_SIGNS[finding.level], colour=coloured(sys.stdout, off=asked.no_color))
    print(f"{sign}  {finding.area:<20} {clean(finding.text)}", flush=True)
    if finding.fix:
        print(f"{'':<8}{'':<20} → {clean(finding.fix)}", flush=True)


def _bundle(asked: argparse.Namespace, findings: list[Finding]) -> bool:
    try:
        loaded = load({"data_dir": asked.data_dir} if asked.data_dir else {}, config=asked.config)
    except ConfigError:
        loaded = None
    try:
        names = write(Path(asked.bundle), findings, loaded, datetime.now(UTC))
    except OSError as error:
        talk(f"fleetproxy doctor: {asked.bundle} cannot be written: {error.strerror}")
        return False
    talk(f"{asked.bundle} holds {', '.join(names)}; read it before you give it away")
    return True
