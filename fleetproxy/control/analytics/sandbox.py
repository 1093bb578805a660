"""SQL that people write: exactly one SELECT or EXPLAIN, read only, bounded in time, rows and bytes.

The walls, each enough for what it guards:

    the instance    no files but those of spool and exports, no extensions, settings locked (`database.harden`)
    the transaction READ ONLY
    the statement   one SELECT, or EXPLAIN of one; of table functions only `TABLE_FUNCTIONS`; no tables by file name
    the caller      an administrator; two queries at once; `analytics.query_timeout_s`, then an interrupt

DuckDB cannot interrupt a function that builds one value, nor does its memory limit see that value: `SIZED` functions
take small constant sizes only, and what functions make of each other's values may grow `GROWTH_LIMIT`-fold. Memory and
thread settings are per instance, so a query shares them with loading.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import duckdb
import msgspec
import orjson

from fleetproxy.control.analytics.answers import Answer, json_value
from fleetproxy.control.analytics.database import judge
from fleetproxy.errors import BadQuery

SQL_CHARACTERS = 100_000
RESULT_BYTES = 16 * 1024 * 1024
#: Longest text or list a `SIZED` function may build for one row.
SIZE_LIMIT = 10_000
#: How many times as long as what it is made of a value may be, as far as the text of the query tells.
GROWTH_LIMIT = 1_000_000
_FETCH_ROWS = 500

TABLE_FUNCTIONS = frozenset({
    "range", "generate_series", "unnest", "json_each", "json_tree", "pragma_table_info", "pragma_show",
    "pragma_version", "pragma_database_size", "pragma_storage_info", "duckdb_columns", "duckdb_constraints",
    "duckdb_databases", "duckdb_functions", "duckdb_indexes", "duckdb_keywords", "duckdb_memory", "duckdb_schemas",
    "duckdb_sequences", "duckdb_settings", "duckdb_tables", "duckdb_types", "duckdb_views", "pg_timezone_names",
})  # fmt: skip
#: Functions that build a value as long as they are told -> the arguments that tell.
SIZED: dict[str, tuple[int, ...]] = {
    "repeat": (1,), "lpad": (1,), "rpad": (1,), "bitstring": (1,), "list_resize": (1,), "array_resize": (1,),
    "range": (0, 1), "generate_series": (0, 1),
}  # fmt: skip
#: Functions with effects outside of the query.
_REFUSED = frozenset({"write_log", "sleep_ms", "nextval", "setseed"})

_EXPLAIN = re.compile(
    r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*explain\b\s*(?P<analyze>analyze\b)?\s*"
    r"(?P<options>\(\s*(?:analyze|format\s+\w+)(?:\s*,\s*(?:analyze|format\s+\w+))*\s*\))?",
    re.IGNORECASE | re.DOTALL,
)


class Question(msgspec.Struct, frozen=True):
    """A statement that may run."""

    select: str
    #: "EXPLAIN ..." to put before it; "" to run it.
    explain: str = ""


def answer(cursor: duckdb.DuckDBPyConnection, sql: str, most_rows: int) -> Answer:
    """Run one question. The cursor is in a read-only transaction. Raises BadQuery; InterruptException goes through."""
    question = read(cursor, sql)
    try:
        if question.explain:
            cursor.execute(f"{question.explain} {question.select}")
            text = "\n".join(str(row[-1]) for row in cursor.fetchall())
            return Answer(("plan",), ("VARCHAR",), [[line] for line in text.splitlines()])
        return _rows(cursor, question.select, most_rows)
    except duckdb.Error as error:
        raise _explained(error) from None


def read(cursor: duckdb.DuckDBPyConnection, sql: str) -> Question:
    """What the text asks. Raises BadQuery when that is not one SELECT, or more than it may."""
    if len(sql) > SQL_CHARACTERS:
        raise BadQuery(f"The query is longer than {SQL_CHARACTERS} characters")
    try:
        statement = _one(cursor, sql)
        question = Question(_bare(cursor, statement.query))
        if statement.type == duckdb.StatementType.EXPLAIN:
            found = _EXPLAIN.match(sql)
            if found is None:
                raise BadQuery("EXPLAIN takes ANALYZE and (FORMAT ...) only")
            statement = _one(cursor, sql[found.end() :])
            explain = " ".join(filter(None, ("EXPLAIN", found["analyze"], found["options"])))
            question = Question(_bare(cursor, statement.query), explain)
        if statement.type != duckdb.StatementType.SELECT:
            raise BadQuery("Only SELECT and EXPLAIN of a SELECT are answered; the data cannot be changed from here")
        row = cursor.execute("SELECT json_serialize_sql(?)", [question.select]).fetchone()
    except duckdb.Error as error:
        raise _explained(error) from None
    try:
        tree = orjson.loads(row[0]) if row else {"error": True}
        if tree["error"]:
            raise BadQuery("This form of SELECT is not supported here; write it with GROUP BY, FILTER and CASE")
        for fault in _faults(tree):
            raise BadQuery(fault)
        if _growth(tree) > GROWTH_LIMIT:
            raise BadQuery(
                "The query could build values that are too long; repeat, pad and replace less within another"
            )
    except (orjson.JSONDecodeError, RecursionError):
        raise BadQuery("The query is nested too deeply") from None
    return question


def _one(cursor: duckdb.DuckDBPyConnection, sql: str) -> duckdb.Statement:
    statements = cursor.extract_statements(sql)
    if len(statements) != 1:
        raise BadQuery(f"Send exactly one statement; {len(statements) or 'none'} came")
    return statements[0]


def _bare(cursor: duckdb.DuckDBPyConnection, sql: str) -> str:
    """One statement's text without its semicolon and what follows it, so that it fits between brackets."""
    while True:
        head, semicolon, tail = sql.rpartition(";")
        try:
            # One that ends the statement: whole before it, nothing but blanks and comments behind it.
            if not semicolon or cursor.extract_statements(tail) or len(cursor.extract_statements(head)) != 1:
                return sql
        except duckdb.ParserException:
            return sql  # it is a part of a text, a name or a comment
        sql = head


def _rows(cursor: duckdb.DuckDBPyConnection, select: str, most_rows: int) -> Answer:
    relation = cursor.sql(select)
    columns, types = tuple(relation.columns), tuple(str(kind) for kind in relation.types)
    shown = ", ".join(
        # What Python has no exact value for comes as text.
        f"CAST(#{n} AS VARCHAR)" if any(word in kind for word in ("TIME ZONE", "INTERVAL", "BIT", "BLOB")) else f"#{n}"
        for n, kind in enumerate(types, 1)
    )
    cursor.execute(f"SELECT {shown} FROM (\n{select}\n) LIMIT {most_rows + 1}")  # noqa: S608
    rows: list[list[Any]] = []
    size = 0
    while fetched := cursor.fetchmany(_FETCH_ROWS):
        piece = [[json_value(value) for value in row] for row in fetched]
        size += len(orjson.dumps(piece))
        if size > RESULT_BYTES:
            return Answer(columns, types, rows, "bytes")
        rows += piece
        if len(rows) > most_rows:
            return Answer(columns, types, rows[:most_rows], "rows")
    return Answer(columns, types, rows)


def _faults(node: Any) -> Iterator[str]:
    """What a parsed SELECT may not contain, as sentences."""
    if isinstance(node, list):
        for item in node:
            yield from _faults(item)
        return
    if not isinstance(node, dict):
        return
    match node.get("type"), node.get("class"):
        case "TABLE_FUNCTION", _:
            function = node["function"]
            name = str(function.get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                yield f"{name}() cannot be used here: queries read the tables of the store, nothing else"
            yield from _faults(function.get("children"))
            node = {key: value for key, value in node.items() if key != "function"}
        case "BASE_TABLE", _:
            name = str(node.get("table_name", ""))
            if re.search(r"[/\\.*?:]", name):
                yield f"{name!r} is no table: files cannot be read from here"
        case _, "FUNCTION":
            yield from _function_faults(node)
    for value in node.values():
        yield from _faults(value)


def _function_faults(node: dict[str, Any]) -> Iterator[str]:
    name = str(node.get("function_name", "")).lower()
    if name in _REFUSED:
        yield f"{name}() cannot be used here"
    children = node.get("children") or []
    for position in SIZED.get(name, ()):
        if position < len(children) and not _small(children[position]):
            hint = f"; as a table, FROM {name}(...), it may be of any size" if name in TABLE_FUNCTIONS else ""
            yield f"{name}() takes plain numbers up to {SIZE_LIMIT} here{hint}"
            return


def _small(node: Any) -> bool:
    number = _constant(node)
    return isinstance(number, int) and 0 <= number <= SIZE_LIMIT


def _constant(node: Any) -> Any:
    """The value of a node that is one."""
    value = node.get("value") if isinstance(node, dict) and node.get("class") == "CONSTANT" else None
    return value.get("value") if isinstance(value, dict) else None


def _growth(node: Any) -> int:
    """How many times as long as what it is made of a value of this part may be: a function's share times that of its
    arguments; of a SELECT, what it makes of its tables times what those make of theirs."""
    if isinstance(node, list):
        return max(map(_growth, node), default=1)
    if not isinstance(node, dict):
        return 1
    if node.get("type") == "TABLE_FUNCTION":
        return _growth(node["function"].get("children"))  # as many rows as it likes
    # The tables of a WITH may be made of each other.
    below = math.prod(map(_growth, (node.get("cte_map") or {}).get("map") or ())) * _growth(node.get("from_table"))
    here = max((_growth(value) for name, value in node.items() if name not in ("cte_map", "from_table")), default=1)
    return (_share(node) if node.get("class") == "FUNCTION" else 1) * below * here


def _share(function: dict[str, Any]) -> int:
    """The same of one function alone."""
    name, children = str(function.get("function_name", "")).lower(), function.get("children") or []
    told = [_constant(child) for child in children]
    if name in SIZED:
        sizes: list[int] = [told[place] for place in SIZED[name] if place < len(told) and isinstance(told[place], int)]
        return max([1, *sizes])
    if name in ("replace", "regexp_replace") and len(told) > 2:
        return max(1, len(told[2])) if isinstance(told[2], str) else SIZE_LIMIT
    if name in ("printf", "format", "string_format") and told:
        # A width, in the format or (`*`, `{}` within a field) among the arguments.
        if not isinstance(told[0], str) or re.search(r"%[-+ #0]*\*|\{[^{}]*\{", told[0]):
            return GROWTH_LIMIT + 1
        return max([1, *(min(int(width), GROWTH_LIMIT + 1) for width in re.findall(r"[0-9]{1,18}", told[0]))])
    return 1


def _explained(error: duckdb.Error) -> Exception:
    """DuckDB's error as one for whoever wrote the SQL; what is not about the SQL stays as it is."""
    if isinstance(error, duckdb.InterruptException):
        return error
    trouble = judge(error)
    if trouble == "memory":
        return BadQuery("The query needs more memory than analytics.memory_bytes allows; ask for less at once")
    return BadQuery(str(error).strip()) if trouble == "failed" else error
