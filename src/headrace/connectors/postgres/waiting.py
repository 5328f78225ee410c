"""Which parked rows wait for another table, and for which of them the wait is over.

A row whose foreign key points nowhere waits for the row that it points to; a delete of a row that
others point to waits until none does. Both are asked of the server for all rows of one foreign key
in one statement, so that a quarantine full of waiting rows costs no more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import psycopg
from psycopg import sql

from headrace.connectors.postgres.bisection import Operation
from headrace.connectors.postgres.parked import ParkedRow
from headrace.connectors.postgres.refusals import FOREIGN_KEY, RESTRICT
from headrace.model import TableId

Cursor = psycopg.Cursor[tuple[Any, ...]]

_FOREIGN_KEY: Final = """
SELECT pn.nspname, p.relname,
       ARRAY (SELECT a.attname::text FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS o (n, i)
                JOIN pg_catalog.pg_attribute a ON (a.attrelid, a.attnum) = (k.conrelid, o.n)
               ORDER BY o.i),
       ARRAY (SELECT a.attname::text FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS o (n, i)
                JOIN pg_catalog.pg_attribute a ON (a.attrelid, a.attnum) = (k.confrelid, o.n)
               ORDER BY o.i),
       ARRAY (SELECT pg_catalog.format_type(a.atttypid, a.atttypmod)
                FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS o (n, i)
                JOIN pg_catalog.pg_attribute a ON (a.attrelid, a.attnum) = (k.confrelid, o.n)
               ORDER BY o.i)
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
  JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
 WHERE k.contype = 'f' AND (n.nspname, c.relname, k.conname) = (%s, %s, %s)
"""

# Places, from 1, of the values for which the other table has (or has no) row.
_READY: Final = """
SELECT w.place::int FROM pg_catalog.unnest({values}) WITH ORDINALITY AS w ({names}, place)
 WHERE {exists} (SELECT FROM {other} AS o WHERE {equal})
"""


@dataclass(frozen=True)
class _ForeignKey:
    child: TableId
    parent: TableId
    child_columns: tuple[str, ...]
    parent_columns: tuple[str, ...]
    types: tuple[str, ...]  # the parent's, as SQL spells them


def waits(row: ParkedRow) -> bool:
    """Whether the row may be cured by what is applied to another table."""
    return row.sqlstate in (FOREIGN_KEY, RESTRICT)


def ready(cursor: Cursor, rows: Sequence[ParkedRow]) -> list[ParkedRow]:
    """The rows that wait no longer. Those of a foreign key that is gone are among them."""
    waiting = sorted(filter(waits, rows), key=_group)
    return [
        row
        for (*name, operation), group in groupby(waiting, key=_group)
        for row in _ready(cursor, name, Operation(operation), list(group))
    ]


def _group(row: ParkedRow) -> tuple[str, str, str, str]:
    return (row.constraint_schema, row.constraint_table, row.constraint, row.operation.value)


def _ready(
    cursor: Cursor, name: Sequence[str], operation: Operation, rows: list[ParkedRow]
) -> list[ParkedRow]:
    found = cursor.execute(_FOREIGN_KEY, name).fetchone()
    if found is None:
        return rows
    parent_schema, parent, *columns = found
    key = _ForeignKey(
        TableId(name[0], name[1]), TableId(parent_schema, parent), *map(tuple, columns)
    )
    if operation is Operation.UPSERT:
        if rows[0].table != key.child:
            return []  # it is pointed to, by what the row was before: only a person can tell
        own, theirs, other = key.child_columns, key.parent_columns, key.parent
    else:
        own, theirs, other = key.parent_columns, key.child_columns, key.child
    if not all(name in row.row.column_names for row in rows for name in own):
        return rows
    values = [[row.row.column(name)[0].as_py() for row in rows] for name in own]
    query = _query(operation, theirs, other, key.types)
    try:
        with cursor.connection.transaction():
            return [rows[place - 1] for (place,) in cursor.execute(query, values)]
    except psycopg.DataError:  # the columns are of other types by now: trying tells
        return rows


def _query(
    operation: Operation, theirs: Sequence[str], other: TableId, types: Sequence[str]
) -> sql.Composed:
    names = [sql.Identifier(f"value{i}") for i in range(len(theirs))]
    equal = [
        sql.SQL("o.{} = w.{}").format(sql.Identifier(column), name)
        for column, name in zip(theirs, names, strict=True)
    ]
    return sql.SQL(_READY).format(
        values=sql.SQL(", ").join(
            sql.SQL("%s::{}[]").format(sql.SQL(spelled)) for spelled in types
        ),
        names=sql.SQL(", ").join(names),
        exists=sql.SQL("EXISTS" if operation is Operation.UPSERT else "NOT EXISTS"),
        other=sql.Identifier(other.schema, other.name),
        equal=sql.SQL(" AND ").join(equal),
    )
