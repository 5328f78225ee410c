"""What Headrace remembers at a Postgres destination: the schema `headrace`.

Checkpoints are written in the transaction that writes the rows, so that data and position are
never apart (DESIGN.md §10). User tables themselves get no technical columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg.types.json import Jsonb

from headrace.connectors.postgres import quarantine
from headrace.connectors.postgres.target_session import (
    Cursor,
    only_row,
)
from headrace.model import Checkpoint, Lsn, TableId, TableSchema

# Two processes that create it at once wait for one another: IF NOT EXISTS alone races.
_LOCK: Final = "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('headrace', 0))"

_IS_THERE: Final = """
SELECT pg_catalog.to_regclass('headrace.checkpoints') IS NOT NULL
   AND pg_catalog.to_regclass('headrace.quarantine') IS NOT NULL
"""

_DDL: Final = """
CREATE SCHEMA IF NOT EXISTS headrace;
COMMENT ON SCHEMA headrace IS 'What Headrace remembers about the tables that it writes';
CREATE TABLE IF NOT EXISTS headrace.checkpoints (
    table_schema text NOT NULL,
    table_name   text NOT NULL,
    pipeline     text NOT NULL,
    log_id       text,            -- null until rows were taken
    commit       bigint,          -- of that log, all applied; a Delta table's version
    lsn          numeric(20),
    commit_ts    timestamptz,     -- when the source committed the newest change applied
    applied_at   timestamptz,
    schema       jsonb,           -- of what was applied last
    held         text,            -- why the table is to be left alone
    previous     text,            -- the table's former generation, in schema headrace_previous
    loaded       bigint,          -- the commit as of which the whole table was loaded last
    rules        text,            -- a digest of those that made the rows
    PRIMARY KEY (table_schema, table_name)
)
"""

_READ: Final = """
SELECT pipeline, log_id, commit, lsn, commit_ts, schema, held, previous, loaded, rules
  FROM headrace.checkpoints
 WHERE table_schema = %s AND table_name = %s
"""

_WITH_FORMER: Final = """
SELECT table_schema, table_name FROM headrace.checkpoints
 WHERE pipeline = %s AND previous IS NOT NULL
 ORDER BY table_schema, table_name
"""

_TABLES_OF: Final = """
SELECT table_schema, table_name FROM headrace.checkpoints WHERE pipeline = %s ORDER BY 1, 2
"""

_FORGET: Final = "DELETE FROM headrace.checkpoints WHERE table_schema = %s AND table_name = %s"

# Whose the table is; where it stands is left as it is.
_OWN: Final = """
INSERT INTO headrace.checkpoints AS c (table_schema, table_name, pipeline, schema)
VALUES (%s, %s, %s, %s)
ON CONFLICT (table_schema, table_name)
DO UPDATE SET pipeline = excluded.pipeline, schema = excluded.schema
"""

_WRITE: Final = """
INSERT INTO headrace.checkpoints AS c
       (table_schema, table_name, pipeline, log_id, commit, lsn, commit_ts, applied_at, schema,
        loaded, rules)
VALUES (%(table_schema)s, %(table_name)s, %(pipeline)s, %(log_id)s, %(commit)s, %(lsn)s,
        %(commit_ts)s, pg_catalog.clock_timestamp(), %(schema)s, %(loaded)s, %(rules)s)
ON CONFLICT (table_schema, table_name)
DO UPDATE SET pipeline = excluded.pipeline, log_id = excluded.log_id, commit = excluded.commit,
              lsn = excluded.lsn, commit_ts = coalesce(excluded.commit_ts, c.commit_ts),
              applied_at = excluded.applied_at, schema = coalesce(excluded.schema, c.schema),
              loaded = coalesce(excluded.loaded, c.loaded), held = NULL,
              rules = coalesce(excluded.rules, c.rules)
"""

_FORGET_POSITION: Final = """
UPDATE headrace.checkpoints SET log_id = NULL, commit = NULL, lsn = NULL, commit_ts = NULL,
       loaded = NULL, rules = NULL
 WHERE table_schema = %s AND table_name = %s
"""


@dataclass(frozen=True)
class Record:
    """One row of headrace.checkpoints; `at` is None until rows were taken."""

    pipeline: str
    at: Checkpoint | None
    commit_ts: datetime | None
    schema: TableSchema | None
    held: str | None
    previous: str | None
    loaded: int | None = None
    rules: str | None = None


def ensure(cursor: Cursor, *ddl: str) -> None:
    """Make the schema and its tables where they are missing, inside a transaction.

    It waits for another process that does the same. Where all is there nothing needs be allowed
    but to write. `ddl` makes what else is needed, and must be harmless where that stands.
    """
    if are_there(cursor) and not ddl:
        return
    one_at_a_time(cursor)
    for statement in (_DDL, *quarantine.DDL, *ddl):
        cursor.execute(statement.encode())


def one_at_a_time(cursor: Cursor) -> None:
    """Until the transaction ends, make schemas and what is in ours alone."""
    cursor.execute(_LOCK)


def are_there(cursor: Cursor) -> bool:
    """Whether anything was recorded in this database yet."""
    return bool(only_row(cursor.execute(_IS_THERE))[0])


def read(cursor: Cursor, name: TableId, *, lock: bool = False) -> Record | None:
    """A table's record; `lock` keeps other writers of it out until the transaction ends."""
    query = _READ + (" FOR UPDATE" if lock else "")
    row = cursor.execute(query.encode(), [name.schema, name.name]).fetchone()
    if row is None:
        return None
    pipeline, log_id, commit, lsn, commit_ts, schema, held, previous, loaded, rules = row
    at = None if log_id is None else Checkpoint(log_id, commit, Lsn(int(lsn)))
    known = None if schema is None else TableSchema.from_json(schema)
    return Record(pipeline, at, commit_ts, known, held, previous, loaded, rules)


def with_former(cursor: Cursor, pipeline: str) -> list[TableId]:
    """A pipeline's tables of which a former generation, or what a swap left to do, is kept."""
    found = cursor.execute(_WITH_FORMER, [pipeline])
    return [TableId(schema, name) for schema, name in found]


def tables_of(cursor: Cursor, pipeline: str) -> list[TableId]:
    """Every table that a pipeline writes."""
    found = cursor.execute(_TABLES_OF, [pipeline])
    return [TableId(schema, name) for schema, name in found]


def forget(cursor: Cursor, name: TableId) -> None:
    """A table is nobody's any more."""
    cursor.execute(_FORGET, [name.schema, name.name])


def own(cursor: Cursor, name: TableId, pipeline: str, schema: TableSchema) -> None:
    """Note whose table this is and what it was made for; its position stays."""
    cursor.execute(_OWN, [name.schema, name.name, pipeline, Jsonb(schema.to_json())])


def write(
    cursor: Cursor,
    name: TableId,
    pipeline: str,
    at: Checkpoint,
    *,
    commit_ts: datetime | None = None,
    schema: TableSchema | None = None,
    loaded: bool = False,
    rules: str | None = None,
) -> None:
    """Set a table's position; `schema` only where it is another one than before.

    `loaded` says that the whole content is new, as of `at`; `rules` are those that made all rows.
    """
    values: dict[str, Any] = {
        "table_schema": name.schema,
        "table_name": name.name,
        "pipeline": pipeline,
        "log_id": at.log_id,
        "commit": at.commit,
        "lsn": int(at.lsn),
        "commit_ts": commit_ts,
        "schema": None if schema is None else Jsonb(schema.to_json()),
        "loaded": at.commit if loaded else None,
        "rules": rules,
    }
    cursor.execute(_WRITE, values)


def forget_position(cursor: Cursor, name: TableId) -> None:
    """The table is gone or empty: where it stood says nothing any more."""
    cursor.execute(_FORGET_POSITION, [name.schema, name.name])
