"""`fleetproxy completion bash|zsh|fish`"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys

from fleetproxy.cli import ALIASES, COMMANDS, OK, main
from fleetproxy.cli.options import parser

_EXAMPLES = """\
  eval "$(fleetproxy completion bash)"
  fleetproxy completion bash > ~/.local/share/bash-completion/completions/fleetproxy
  fleetproxy completion zsh > "${fpath[1]}/_fleetproxy"
  fleetproxy completion fish > ~/.config/fish/completions/fleetproxy.fish"""

_SAYS = """\
Print what makes a shell complete commands, options, and the names of models and servers (a
running fleetproxy is asked for those, for a second at most)."""

_SHELLS = ("bash", "zsh", "fish")
#: Commands whose next word is a model, or a server; and words a command wants first.
_MODELS = ("show", "pull", "run", "stop", "rm")
_SERVERS = ("drain", "undrain")
_ASK_MODELS = "fleetproxy list -o name --timeout 1 2>/dev/null"
_ASK_SERVERS = "fleetproxy servers -o name --timeout 1 2>/dev/null"
_CHOICES = re.compile(r"^  \{([a-z,-]+)\}", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]+)")


def run(words: list[str]) -> int:
    options = parser("completion", examples=_EXAMPLES, says=_SAYS)
    options.add_argument("shell", choices=_SHELLS, help="the shell")
    asked = options.parse_args(words)
    known = {word: _words_of(word) for word in COMMANDS}
    sys.stdout.write({"bash": _bash, "zsh": _zsh, "fish": _fish}[asked.shell](known))
    return OK


#: Sub-words that a command's help does not list as choices.
_UNSAID = {"worker": ["llm", "asr", "mcp", "metrics", "drain", "undrain"]}


def _words_of(word: str) -> tuple[list[str], list[str]]:
    """What may follow a command: its sub-words, and its options; read off its own help."""
    said = io.StringIO()
    if word == "completion":
        return list(_SHELLS), ["--help"]
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([word, "--help"])
    text = said.getvalue().partition("\n\n")[2]
    begins = _CHOICES.search(text)
    subs = begins[1].split(",") if begins else _UNSAID.get(word, [])
    listed = "\n".join(line for line in text.splitlines() if line.startswith("  -"))
    return subs, sorted({"--help", *_OPTION.findall(listed)})


def _bash(known: dict[str, tuple[list[str], list[str]]]) -> str:
    cases = "\n".join(
        f"    {word}) words={shlex.quote(' '.join([*subs, *flags]))} ;;" for word, (subs, flags) in known.items()
    )
    return f"""\
# fleetproxy completion bash
_fleetproxy() {{
  # Bash breaks words at colons, and models have them.
  local line="${{COMP_LINE:0:$COMP_POINT}}" words="" names="" name
  local current="${{line##* }}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W {shlex.quote(" ".join([*known, *ALIASES, "help"]))} -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [ "${{current#-}}" = "$current" ]; then
    case "${{COMP_WORDS[1]}}:${{COMP_WORDS[COMP_CWORD-1]}}" in
      *:--server) words="" names="$({_ASK_SERVERS})" ;;
      {"|".join(f"{word}:*" for word in _SERVERS)}) words="" names="$({_ASK_SERVERS})" ;;
      *:--model) words="" names="$({_ASK_MODELS})" ;;
      {"|".join(f"{word}:*" for word in _MODELS)}) words="" names="$({_ASK_MODELS})" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  # Names are others' words: compgen would run what stands in them, and so would the line.
  while IFS= read -r name; do
    [ -n "$name" ] && printf -v name %q "$name" && [[ "$name" == "$current"* ]] && COMPREPLY+=("$name")
  done <<<"$names"
  if [ "${{current%:*}}" != "$current" ] && [ "${{COMP_WORDBREAKS#*:}}" != "$COMP_WORDBREAKS" ]; then
    COMPREPLY=("${{COMPREPLY[@]#"${{current%:*}}:"}}")
  fi
}}
complete -o default -F _fleetproxy fleetproxy
"""


def _zsh(known: dict[str, tuple[list[str], list[str]]]) -> str:
    commands = "\n".join(f"    {shlex.quote(f'{word}:{says}')}" for word, (_, says) in COMMANDS.items())
    cases = "\n".join(f"    {word}) compadd -- {' '.join([*subs, *flags])} ;;" for word, (subs, flags) in known.items())
    return f"""\
#compdef fleetproxy
# fleetproxy completion zsh
_fleetproxy() {{
  local -a commands
  commands=(
{commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  case "$words[2]:$words[CURRENT-1]" in
    *:--server|{"|".join(f"{word}:{word}" for word in _SERVERS)}) compadd -- ${{(f)"$({_ASK_SERVERS})"}} ;;
    *:--model|{"|".join(f"{word}:{word}" for word in _MODELS)}) compadd -- ${{(f)"$({_ASK_MODELS})"}} ;;
  esac
  case "$words[2]" in
{cases}
  esac
}}
if [ "$funcstack[1]" = "_fleetproxy" ]; then _fleetproxy "$@"; else compdef _fleetproxy fleetproxy; fi
"""


def _fish(known: dict[str, tuple[list[str], list[str]]]) -> str:
    lines = ["# fleetproxy completion fish", "complete -c fleetproxy -f"]
    for word, (_, says) in COMMANDS.items():
        lines.append(f"complete -c fleetproxy -n __fish_use_subcommand -a {word} -d {shlex.quote(says)}")
    for word, (subs, flags) in known.items():
        seen = f"'__fish_seen_subcommand_from {word}'"
        if subs:
            lines.append(f"complete -c fleetproxy -n {seen} -a {shlex.quote(' '.join(subs))}")
        lines += [f"complete -c fleetproxy -n {seen} -l {flag[2:]}" for flag in flags]
        if word in _MODELS or word in _SERVERS:
            ask = _ASK_MODELS if word in _MODELS else _ASK_SERVERS
            lines.append(f"complete -c fleetproxy -n {seen} -a '({ask})'")
    return "\n".join(lines) + "\n"
