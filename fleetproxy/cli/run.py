"""`fleetproxy run`"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from typing import Any

from fleetproxy.cli.fleet import add_target, asking
from fleetproxy.cli.options import parser
from fleetproxy.cli.output import Cell, clean_lines, coloured, one_line, painted, talk
from fleetproxy.cli.wording import milliseconds
from fleetproxy.remote.call import CallError, Fleet
from fleetproxy.remote.chat import SILENCE_S, Piece, Talk, Totals, Wish, chat

_EXAMPLES = """\
  fleetproxy run llama3.2:3b
  fleetproxy run llama3.2:3b "why is the sky blue?"
  cat report.txt | fleetproxy run llama3.2:3b "sum this up" --verbose
  fleetproxy run qwen3:8b --server gpu1 --think false"""

_SAYS = """\
Talk to a model, or ask it once: the prompt is the words behind the model and what comes
over standard input. The answer goes to standard output as it comes. Models of servers that
speak OpenAI's dialect alone are asked in that."""

_HELP = """\
  /bye      leave (so does Ctrl-D)
  /clear    forget what was said
  /help     this
  \"\"\"       begin, and end, a text of several lines
  Ctrl-C    stop the answer"""

#: What is kept of a conversation, in messages.
_MOST_MESSAGES = 1000


def run(words: list[str]) -> int:
    options = parser("run", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("model", help="the model")
    options.add_argument("prompt", nargs="*", default=[], help="ask this once, instead of a conversation")
    options.add_argument("--system", metavar="TEXT", help="tell the model this first")
    options.add_argument("--format", choices=("json",), help="have it answer in JSON")
    options.add_argument("--think", type=_truth, metavar="BOOL", help="have it think first, or not")
    options.add_argument("--hidethinking", action="store_true", help="do not print its thoughts")
    options.add_argument("--keepalive", metavar="DURATION", help='how long it stays loaded, such as "30m"')
    options.add_argument("--verbose", action="store_true", help="tell server, tokens and times afterwards")
    options.add_argument("--server", metavar="NAME", help="ask this server")
    add_target(options, timeout_s=SILENCE_S)
    asked = options.parse_args(words)
    prompt = " ".join(asked.prompt)
    if not sys.stdin.isatty():
        prompt = "\n\n".join(part for part in (prompt, sys.stdin.read().strip()) if part)
    messages: list[dict[str, Any]] = [{"role": "system", "content": asked.system}] if asked.system else []

    def work(fleet: Fleet) -> None:
        if prompt or not sys.stdin.isatty():
            _answer(fleet, asked, [*messages, {"role": "user", "content": prompt}])
        else:
            _converse(fleet, asked, messages)

    return asking("run", asked, work)


def _converse(fleet: Fleet, asked: argparse.Namespace, messages: list[dict[str, Any]]) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, PLC0415  (gives `input` its editing)

    beginning = list(messages)
    while True:
        try:
            text = _read()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\nUse Ctrl-D or /bye to leave.")
            continue
        match text.strip():
            case "":
                continue
            case "/bye" | "/exit":
                return
            case "/clear":
                messages = list(beginning)
                print("Forgotten.")
                continue
            case "/?" | "/help":
                print(_HELP)
                continue
            case word if word.startswith("/") and " " not in word:
                print(f"There is no command {word}; see /help.")
                continue
        messages = [*messages, {"role": "user", "content": text}][-_MOST_MESSAGES:]
        try:
            messages.append({"role": "assistant", "content": _answer(fleet, asked, messages)})
        except KeyboardInterrupt:
            print()
            messages.pop()
        except CallError as error:
            talk(one_line(f"fleetproxy run: {error}"))
            messages.pop()


def _read() -> str:
    """One line, or several between triple quotes."""
    text = input(">>> ")
    if not text.startswith('"""'):
        return text
    text = text[3:]
    while not text.rstrip().endswith('"""'):
        text += "\n" + input("... ")
    return text.rstrip().removesuffix('"""')


def _answer(fleet: Fleet, asked: argparse.Namespace, messages: list[dict[str, Any]]) -> str:
    """Print an answer as it comes; all of it, without the thoughts."""
    wish = Wish(
        model=asked.model,
        messages=messages,
        think=asked.think,
        json_answer=asked.format == "json",
        keep_alive=asked.keepalive,
    )
    began_s = time.monotonic()
    first_s: float | None = None
    said = ""
    colour = coloured(sys.stdout)
    thinking = False
    with chat(fleet, wish, server=asked.server, silence_s=asked.timeout) as talking:
        for part in talking.parts:
            if isinstance(part, Totals):
                totals = part
                continue
            first_s = time.monotonic() if first_s is None else first_s
            if part.thinking and asked.hidethinking:
                continue
            if part.thinking != thinking:
                sys.stdout.write("Thinking...\n" if part.thinking else "\n...done thinking.\n\n")
                thinking = part.thinking
            _write(part, colour=colour)
            said += "" if part.thinking else part.text
    if not said.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()
    if asked.verbose:
        _tell(talking, totals, began_s, first_s, time.monotonic())
    return said


def _write(part: Piece, *, colour: bool) -> None:
    # What a model says is shown as it is, but it may not steer the terminal.
    sys.stdout.write(painted(Cell(clean_lines(part.text), "dim" if part.thinking else ""), colour=colour))
    sys.stdout.flush()


def _tell(talking: Talk, totals: Totals, began_s: float, first_s: float | None, ended_s: float) -> None:
    facts = {
        "server": talking.server,
        "route": talking.headers.get("x-fleet-route"),
        "queue": talking.headers.get("x-fleet-queue-ms", "0") + " ms",
        "first token": milliseconds(None if first_s is None else (first_s - began_s) * 1000),
        "total": milliseconds((ended_s - began_s) * 1000),
        "load": milliseconds(totals.load_ms) if totals.load_ms else None,
        "prompt tokens": totals.tokens_in,
        "answer tokens": totals.tokens_out,
        "answer rate": _rate(totals, first_s, ended_s),
        "ended by": totals.reason,
    }
    talk("")
    for name, value in facts.items():
        if value not in (None, ""):
            talk(f"{name + ':':<16}{value}")


def _rate(totals: Totals, first_s: float | None, ended_s: float) -> str | None:
    seconds = totals.answer_ms / 1000 if totals.answer_ms else ended_s - first_s if first_s else 0.0
    return f"{totals.tokens_out / seconds:.1f} tokens/s" if totals.tokens_out and seconds > 0 else None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"wants true or false, got {text!r}")
    return text.lower() == "true"
