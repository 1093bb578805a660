"""The command line. Each word is a module with `run(words) -> exit code`, imported when it is asked for.

Data goes to standard output, talk to standard error.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

#: Word -> (module, what it does).
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("serve", "Run the proxy, its dashboard and its store"),
    "demo": ("demo", "Run it with a made-up fleet and traffic, to look around"),
    "worker": ("worker", "Dial in to a fleetproxy with the backend beside this machine"),
    "init": ("init", "Write a configuration file to begin with"),
    "migrate": ("migrate", "Make a configuration out of that of another program"),
    "config": ("config", "Check or show the configuration, print its schema"),
    "doctor": ("doctor", "Look for what is wrong, and say how to mend it"),
    "status": ("status", "How the fleet is, at one glance"),
    "top": ("top", "The fleet, live"),
    "servers": ("servers", "List, add, remove, enable and disable servers"),
    "drain": ("drain", "Give a server or worker nothing new"),
    "undrain": ("undrain", "Give it requests again"),
    "explain": ("explain", "Which server a model would be asked of, and why"),
    "bench": ("bench", "Measure how fast the fleet answers"),
    "list": ("list", "Models of the whole fleet (also: ls)"),
    "ps": ("ps", "Models in servers' memory"),
    "show": ("show", "What a model is and who has it"),
    "pull": ("pull", "Pull a model to a server"),
    "run": ("run", "Talk to a model"),
    "stop": ("stop", "Let a model go from memory"),
    "rm": ("rm", "Delete a model from a server's disk"),
    "query": ("query", "Ask the request history in SQL"),
    "export": ("export", "Write the request history to a Parquet, CSV or JSON lines file"),
    "users": ("users", "List, add and remove the users of the dashboard"),
    "keys": ("keys", "List, make and revoke API keys"),
    "backup": ("backup", "Copy users, keys, servers and jobs to a file"),
    "restore": ("restore", "Put such a copy back"),
    "health": ("health", "Ask a running fleetproxy whether it is well (for containers)"),
    "completion": ("completion", "Print what makes a shell complete these words"),
    "version": ("version", "Print the version"),
}
#: What people type who come from elsewhere.
ALIASES = {"ls": "list"}

OK, FAILED, USAGE, NOT_FOUND, UNREACHABLE, UNAUTHORIZED, BAD_CONFIG, FINDINGS = 0, 1, 2, 3, 4, 5, 6, 7
TIMEOUT, INTERRUPTED = 124, 130
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

EXIT_CODES = """\
exit codes:
  0 ok   1 failed   2 wrong usage   3 not found   4 unreachable   5 key refused
  6 configuration invalid   7 done, with findings   124 timeout   130 interrupted"""

_HELP = f"""\
examples:
  fleetproxy serve --server gpu1=10.0.0.5:11434 --server vllm=openai+http://10.0.0.6:8000
  fleetproxy demo
  fleetproxy query "select model, count(*) from requests group by all"
  fleetproxy status
  fleetproxy run llama3.2:3b "why is the sky blue?"

One address in front of a fleet of inference servers: Ollama, vLLM, llama.cpp and
anything that speaks OpenAI.

commands:
{chr(10).join(f"  {word:<10} {says}" for word, (_, says) in COMMANDS.items())}
  help env   List every environment variable

`fleetproxy <command> --help` tells more.

{EXIT_CODES}
"""  # noqa: S608  (help, not SQL)


def main(words: list[str] | None = None) -> int:
    """Run one command line; the exit code."""
    words = sys.argv[1:] if words is None else words
    _hold_standard_files()
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()  # what is small has waited until now
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()  # whoever read us has left
        return FAILED
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        _forget_output()
        sys.stderr.write(f"fleetproxy: cannot write what there is to say: {error.strerror}\n")
        return FAILED


def _forget_output() -> None:
    """Python would complain again when it closes standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _hold_standard_files() -> None:
    """Where 0, 1 or 2 is closed, the next file opened would get that number, and what is said would go into it."""
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(file, True)
    os.close(file)


def _run(words: list[str]) -> int:
    if not words:
        sys.stderr.write(_HELP)
        return USAGE
    word, rest = words[0], words[1:]
    if word in {"-h", "--help"} or (word == "help" and not rest):
        sys.stdout.write(_HELP)
        return OK
    if word == "help":
        if rest == ["env"]:
            return _command("config", ["env"])
        word, rest = rest[0], ["--help"]
    if word in {"-V", "--version"}:
        word = "version"
    word = ALIASES.get(word, word)
    if word not in COMMANDS:
        sys.stderr.write(f"fleetproxy: there is no command {word!r}{_near(word)}; see `fleetproxy --help`\n")
        return USAGE
    return _command(COMMANDS[word][0], rest)


def _command(module: str, words: list[str]) -> int:
    code: int = importlib.import_module(f"fleetproxy.cli.{module}").run(words)
    return code


def _near(word: str) -> str:
    import difflib  # noqa: PLC0415  (only for mistakes)

    found = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""
