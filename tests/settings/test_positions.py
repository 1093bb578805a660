"""Where keys stand in TOML."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fleetproxy.settings.positions import positions

TEXT = '''# a comment = 1
port = 5
"quoted.key" = 1
log = { level = "x", format = 'y' }
hosts = [
  "a", # ]
  """b
  ]""",
]
[routing.aliases]
  a = "b = 1"
'c d' = "e"
[[servers]]
name = "one"
[[servers]]
name = "two"
[servers.extra]
deep = 1
'''


def test_every_key_is_found_where_it_is_written() -> None:
    found = positions(TEXT)
    assert found["port",] == (2, 1)
    assert found["quoted.key",] == (3, 1)
    assert found["log", "level"] == (4, 9)
    assert found["log", "format"] == (4, 22)
    assert found["hosts", 0] == (6, 3)
    assert found["hosts", 1] == (7, 3)
    assert found["routing", "aliases"] == (10, 1)
    assert found["routing", "aliases", "a"] == (11, 3)
    assert found["routing", "aliases", "c d"] == (12, 1)
    assert found["servers", 0, "name"] == (14, 1)
    assert found["servers", 1, "name"] == (16, 1)
    assert found["servers", 1, "extra", "deep"] == (18, 1)


KEY = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
WORD = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=6).map(
    lambda text: '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
)
VALUE = st.recursive(
    st.one_of(st.integers(0, 99).map(str), WORD, st.sampled_from(["true", "1.5", "1979-05-27", "''"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(KEY, inner, max_size=3).map(
            lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs.items()) + " }"
        ),
    ),
    max_leaves=6,
)
TABLE = st.dictionaries(KEY, VALUE, max_size=4).map(lambda pairs: "".join(f"{k} = {v}\n" for k, v in pairs.items()))


def paths(tree: Any, prefix: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found: set[tuple[str | int, ...]] = set()
    for key, value in pairs:
        found |= {(*prefix, key)} | paths(value, (*prefix, key))
    return found


@given(TABLE, st.dictionaries(KEY, TABLE, max_size=3), KEY, st.lists(TABLE, max_size=3))
def test_what_toml_has_has_a_place_and_nothing_else_has(
    top: str, tables: dict[str, str], name: str, items: list[str]
) -> None:
    text = (
        top
        + "".join(f"[{key}]\n{table}" for key, table in tables.items())
        + "".join(f"[[{name}]]\n{table}" for table in items)
    )
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # a name twice
    assert set(positions(text)) - {(name,)} == paths(tree) - {(name,)}


@given(st.text(st.sampled_from("abc=[]{}\".'#,\n 1"), max_size=40))
def test_garbage_never_fails_and_always_ends(text: str) -> None:
    positions(text)
