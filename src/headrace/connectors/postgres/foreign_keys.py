"""Which rows a foreign key stands against, asked of the server for all of them in one statement.

A row whose foreign key points nowhere waits for the row that it points to; a delete of a row that
others point to waits until none does. Trying each would cost a statement a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.identifiers import relation
from headrace.connectors.postgres.refusals import Refusal
from headrace.connectors.postgres.target_session import Connection
from headrace.model import TableId

# Of a partition's constraint, the tables at the top of the tree: those that rows are written to.
_FOREIGN_KEY: Final = """
SELECT cn.nspname, c.relname, pn.nspname, p.relname,
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
  JOIN pg_catalog.pg_class r ON r.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
  JOIN pg_catalog.pg_class c ON c.oid = coalesce(pg_catalog.pg_partition_root(r.oid), r.oid)
  JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_catalog.pg_class p
    ON p.oid = coalesce(pg_catalog.pg_partition_root(k.confrelid), k.confrelid)
  JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
 WHERE k.contype = 'f' AND (n.nspname, r.relname, k.conname) = (%s, %s, %s)
"""

_PARENTS: Final = """
SELECT DISTINCT pn.nspname, p.relname
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class p
    ON p.oid = coalesce(pg_catalog.pg_partition_root(k.confrelid), k.confrelid)
  JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
 WHERE k.contype = 'f' AND (n.nspname, c.relname) = (%s, %s) AND p.oid <> c.oid
 ORDER BY 1, 2
"""

# Places, from 1, of the values that stand in the other table.
_FOUND: Final = """
SELECT w.place::int FROM ROWS FROM ({values}) WITH ORDINALITY AS w ({names}, place)
 WHERE EXISTS (SELECT FROM {other} AS o WHERE {equal})
"""


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key of `child`; `types` are those of the parent's columns, as SQL spells them."""

    child: TableId
    parent: TableId
    child_columns: tuple[str, ...]
    parent_columns: tuple[str, ...]
    types: tuple[str, ...]


def parents(connection: Connection, child: TableId) -> list[TableId]:
    """The other tables that a table's foreign keys point to; none where it is missing."""
    found = connection.execute(_PARENTS, [child.schema, child.name])
    return [TableId(schema, name) for schema, name in found]


def foreign_key(connection: Connection, refusal: Refusal) -> ForeignKey | None:
    """The one that refused a row; None if it is gone."""
    name = [refusal.schema, refusal.table, refusal.constraint]
    found = connection.execute(_FOREIGN_KEY, name).fetchone()
    if found is None:
        return None
    schema, child, parent_schema, parent, *columns = found
    return ForeignKey(TableId(schema, child), TableId(parent_schema, parent), *map(tuple, columns))


def against(connection: Connection, refused: Refusal, rows: pa.Table) -> set[int] | None:
    """Which of the rows the foreign key that refused one of them stands against.

    Rows that hold the child's columns are those to be written, others are to be deleted. None where
    it cannot be asked: of a column that the rows lack, or a table that points to itself and is
    deleted from. Empty where the foreign key is gone.
    """
    key = foreign_key(connection, refused)
    if key is None:
        return set()
    names = set(rows.column_names)
    if names.issuperset(key.child_columns):
        return _pointing_nowhere(connection, key, rows)
    if names.issuperset(key.parent_columns) and key.child != key.parent:
        return _found(connection, key, rows, key.parent_columns, key.child, key.child_columns)
    return None


def _pointing_nowhere(connection: Connection, key: ForeignKey, rows: pa.Table) -> set[int] | None:
    """Rows that point to no row of the parent, nor to one of these that may stand itself."""
    own = key.child_columns
    found = _found(connection, key, rows, own, key.parent, key.parent_columns)
    if found is None:
        return None
    pointers = list(zip(*(rows.column(name).to_pylist() for name in own), strict=True))
    absent = {i for i, value in enumerate(pointers) if i not in found and None not in value}
    if key.child != key.parent or not set(key.parent_columns) <= set(rows.column_names):
        return absent
    targets = list(zip(*(rows.column(n).to_pylist() for n in key.parent_columns), strict=True))
    nowhere: set[int] = set()
    while True:  # a row that points to one that cannot stand cannot, either
        standing = {target for i, target in enumerate(targets) if i not in nowhere}
        more = {i for i in absent - nowhere if pointers[i] not in standing}
        if not more:
            return nowhere
        nowhere |= more


def _found(
    connection: Connection,
    key: ForeignKey,
    rows: pa.Table,
    own: Sequence[str],
    other: TableId,
    theirs: Sequence[str],
) -> set[int] | None:
    values = [rows.column(name).to_pylist() for name in own]
    try:
        with connection.transaction():
            return {
                place - 1 for (place,) in connection.execute(_query(key, other, theirs), values)
            }
    except psycopg.DataError:  # values that the columns of now cannot hold
        return None


def _query(key: ForeignKey, other: TableId, theirs: Sequence[str]) -> sql.Composed:
    names = [sql.Identifier(f"value{i}") for i in range(len(theirs))]
    equal = [
        sql.SQL("o.{} = w.{}").format(sql.Identifier(column), name)
        for column, name in zip(theirs, names, strict=True)
    ]
    arrays = [sql.SQL("pg_catalog.unnest(%s::{}[])").format(sql.SQL(t)) for t in key.types]
    return sql.SQL(_FOUND).format(
        values=sql.SQL(", ").join(arrays),
        names=sql.SQL(", ").join(names),
        other=relation(other),
        equal=sql.SQL(" AND ").join(equal),
    )
