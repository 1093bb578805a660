"""Writes the reference pages that are made from the code: `just docs`. A test sees that they are fresh."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from fleetproxy.cli import COMMANDS, main
from fleetproxy.control.analytics.dictionary import page as tables_page
from fleetproxy.control.api.reference import every_handler
from fleetproxy.control.api.reference import page as api_page
from fleetproxy.control.metrics.dictionary import page as metrics_page
from fleetproxy.settings import Settings
from fleetproxy.settings.ancestors import ANCESTORS, UNUSED
from fleetproxy.settings.fields import Field, environment_name, fields_of
from fleetproxy.settings.fixed import FIXED
from fleetproxy.settings.model import Section
from fleetproxy.settings.show import schema

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))  # loaded by a test too, from elsewhere
import endpoint_words  # noqa: E402
import error_words  # noqa: E402
import header_words  # noqa: E402
import llms  # noqa: E402

REFERENCE = DOCS / "reference"
#: Words whose second word changes their options.
_KINDS = {"worker": ("asr", "mcp", "metrics", "drain")}

_SETTINGS_HEAD = """\
# Settings

Every setting, its default and its environment variable. Sizes are bytes, times are seconds.

Sources, later wins: default < [names of other programs](#names-of-other-programs) < file < `config.d/*.toml` beside
the file < `FLEETPROXY_*` variables < options of `fleetproxy serve`. The file is `fleetproxy.toml` in `./`, in
`$XDG_CONFIG_HOME/fleetproxy/` or in `/etc/fleetproxy/`, the first there is; `--config` or `FLEETPROXY_CONFIG` names
another. Tables merge, values and lists replace; `[[servers]]` and `[[keys]]` of several files add up.

Variables take lists as `a,b,c` or JSON, tables as `name=value,name=value` or JSON. Secrets, `FLEETPROXY_SERVERS` and
`FLEETPROXY_KEYS` are also read from the file that `<NAME>_FILE` names. Unknown keys and variables are errors.

`SIGHUP` reads everything again; a bad configuration is reported and the old one stays. These need a restart:

{fixed}.

```toml
host = "0.0.0.0"

[[servers]]                        # or short, for all of them: servers = ["gpu1=10.0.0.5:11434"]
name = "gpu1"
url = "http://10.0.0.5:11434"
vram_gb = 24

[[servers]]
name = "vllm"
url = "http://10.0.0.6:8000"
kind = "openai"
max_concurrent = 32

[[keys]]
name = "anna"
key = "a-long-random-key"
```
"""


def pages() -> dict[str, str]:
    """File name -> content of every generated page."""
    return {
        "settings.md": "".join(_settings()),
        "commands.md": "".join(_commands()),
        "tables.md": tables_page(),
        "metrics.md": metrics_page(),
        "api.md": api_page(every_handler()),
        "endpoints.md": endpoint_words.page(),
        "errors.md": error_words.page(),
        "headers.md": header_words.page(),
        "fleetproxy.schema.json": json.dumps(schema(), indent=2) + "\n",
    }


def _settings() -> Iterator[str]:
    yield _SETTINGS_HEAD.replace("{fixed}", ", ".join(f"`{name}`" for name in FIXED))
    yield "\n## Top level\n\n"
    yield from _table(Settings, ())
    for name, field in fields_of(Settings).items():
        if field.section is None:
            continue
        yield f"\n## `[[{name}]]`\n\n" if field.kind == "list" else f"\n## `[{name}]`\n\n"
        summary = (field.section.__doc__ or "").split("\n")[0]
        if summary and not summary.startswith(f"{field.section.__name__}("):
            yield f"{summary}\n\n"
        yield from _table(field.section, (name,))
    yield "\n## Names of other programs\n\n"
    yield "Read where neither a file nor a variable of ours says otherwise, and said in the log.\n\n"
    yield "| variable | sets |\n| --- | --- |\n"
    for ancestor in ANCESTORS:
        keys = ", ".join(f"`{key}`" for key in ancestor.keys) or "`host`, `port`"
        yield f"| `{ancestor.name}` | {keys} |\n"
    yield "\nWithout meaning here:\n\n"
    for name, why in UNUSED.items():
        yield f"- `{name}`: {why}\n"


def _table(section: type[Section], path: tuple[str, ...]) -> Iterator[str]:
    listed = bool(path) and fields_of(Settings)[path[0]].kind == "list"
    yield "| key | wants | default | meaning |\n| --- | --- | --- | --- |\n"
    for name, field in fields_of(section).items():
        if field.section is not None:
            continue
        variable = "" if listed else f"<br>`{environment_name((*path, name))}`"
        yield f"| `{name}`{variable} | {field.wants} | {_default(field)} | {_cell(field.doc)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(field: Field) -> str:
    if field.required:
        return "must be given"
    return "" if field.default in (None, (), {}) else f"`{json.dumps(field.default)}`"


def _commands() -> Iterator[str]:
    yield (
        "# Commands\n\nWhat each word of the command line does, as `--help` prints it.\n\n```\n"
        + _help(["--help"])
        + "```\n"
    )
    for word in COMMANDS:
        yield f"\n## `fleetproxy {word}`\n\n```\n" + _help([word, "--help"]) + "```\n"
        for kind in _KINDS.get(word, ()):
            yield f"\n### `fleetproxy {word} {kind}`\n\n```\n" + _help([word, kind, "--help"]) + "```\n"


def _help(words: list[str]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(words)
    return "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines()) + "\n"


if __name__ == "__main__":
    for name, content in pages().items():
        (REFERENCE / name).write_text(content)
    (DOCS.parent / "llms.txt").write_text(llms.index(DOCS))
