"""Version 3 of an invented schema: a new table, new columns, changed values, a rebuilt table, a new view."""

from __future__ import annotations

from typing import Any

import duckdb

from fleetproxy.control.analytics.database import bring_up_to_date
from fleetproxy.control.analytics.schema import META, SEGMENTS, Column, Table, View

OLD = Table(name="t", doc="Old.", time="at", columns=(Column("at", "TIMESTAMP", "When."), Column("a", "INTEGER", "A.")))
NEW = Table(
    name="t",
    doc="New.",
    time="at",
    sequence="t_id",
    columns=(*OLD.columns, Column("b", "VARCHAR", "B."), Column("c", "DOUBLE[]", "C.")),
)
FURTHER = Table(name="u", doc="Further.", time="at", columns=(Column("at", "TIMESTAMP", "When."),))
VIEWS = (View("v_t", "View.", "SELECT a, count(*) AS n FROM t GROUP BY a"),)
MIGRATIONS = {
    2: ("UPDATE t SET a = a * 10", "CREATE TABLE kept AS SELECT a FROM t WHERE a > 500"),
    3: ("CREATE TABLE w AS SELECT a + 1 AS a FROM kept", "DROP TABLE kept", "DELETE FROM w WHERE a > 900"),
}


def make_old(connection: duckdb.DuckDBPyConnection) -> None:
    bring_up_to_date(connection, 0, version=1, tables=(OLD, SEGMENTS, META), views=(), migrations={})
    connection.execute("INSERT INTO t SELECT make_timestamp(range), range FROM range(100)")


def migrate(connection: duckdb.DuckDBPyConnection) -> None:
    bring_up_to_date(
        connection, 0, version=3, tables=(NEW, FURTHER, SEGMENTS, META), views=VIEWS, migrations=MIGRATIONS
    )


def state(connection: duckdb.DuckDBPyConnection) -> tuple[Any, ...]:
    """Everything the migration should have done."""
    return (
        connection.execute("SELECT sum(a), count(b), count(c), count(*) FROM t").fetchone(),
        connection.execute("SELECT count(*), max(a) FROM w").fetchone(),
        connection.execute("SELECT count(*) FROM u").fetchone(),
        connection.execute("SELECT count(*) FROM v_t").fetchone(),
        connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall(),
        connection.execute("SELECT nextval('t_id') > 0").fetchone(),
        connection.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'kept'").fetchone(),
    )
