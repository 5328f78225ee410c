"""Rows that look different, judged by the server: are they what a merge would have written?

A column whose type the user chose may give a value back in another spelling (see `comparable`). So
rows that a table seems to lack are staged, assigned to its types as a merge does, and compared with
the rows that it seems to have too much. Nothing is written but temporary tables, in a transaction
that sees the moment of the reading and is never committed.

Images are texts, which every type has and which are exact in a session of ours, as their digests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.bisection import Operation, Part, land
from headrace.connectors.postgres.reading import PART, PLACE, Reading
from headrace.connectors.postgres.staging import StagedColumn, Staging, at_once, copy_rows, send
from headrace.connectors.postgres.statements import WritePlan, WrittenColumn, typed_statements
from headrace.connectors.postgres.target_session import Cursor, only_row
from headrace.connectors.postgres.target_table import read_target
from headrace.connectors.postgres.target_types import arrival
from headrace.connectors.postgres.writing import write_plan
from headrace.model import Delivery, OnDelete, TableSchema

Keys = Sequence[tuple[str | None, ...]]  # as texts, by the columns that identify a row

_FOUND: Final = sql.Identifier("pg_temp", "headrace_found")
_FOUND_COLUMNS: Final = (
    StagedColumn(PART, arrival(pa.int64())),
    StagedColumn(PLACE, arrival(pa.string())),
)
_DIFFERING: Final = sql.Identifier("pg_temp", "headrace_differing")

_MAKE_FOUND: Final = "CREATE TEMPORARY TABLE headrace_found (part int8, place text) ON COMMIT DROP"

# Rows of both sides whose image the other side has not, or has less often.
_COMPARE: Final = """
CREATE TEMPORARY TABLE headrace_differing ON COMMIT DROP AS
WITH images AS (
    SELECT true AS "headrace wanted", {image} AS "headrace image", {identity} FROM {wanted} t
     UNION ALL
    SELECT false, {image}, {identity}
      FROM {relation} t JOIN {found} f ON t.ctid = f.place::tid AND t.tableoid = f.part::oid
), copies AS (
    SELECT *, row_number() OVER (PARTITION BY "headrace wanted", "headrace image")
           AS "headrace copy"
      FROM images
)
SELECT one.*
  FROM copies one LEFT JOIN copies other
    ON one."headrace image" = other."headrace image" AND one."headrace copy" = other."headrace copy"
   AND one."headrace wanted" <> other."headrace wanted"
 WHERE other."headrace copy" IS NULL
"""

_IMAGE: Final = "pg_catalog.sha256(pg_catalog.convert_to(ROW({columns})::text, 'UTF8'))"

# A row of a key that is parked is the former one, and known not to be the source's.
_EXCUSE: Final = """
DELETE FROM {differing} t USING {excused} s WHERE NOT t."headrace wanted" AND {same_key}
"""

# Where deletes are ignored, a row of a key that the source has not is one that it lost.
_EXCUSE_LOST: Final = """
DELETE FROM {differing} t WHERE NOT t."headrace wanted"
   AND NOT EXISTS (SELECT FROM {differing} s WHERE s."headrace wanted" AND {same_key})
"""

_COUNT: Final = """
SELECT count(*) FILTER (WHERE "headrace wanted"), count(*) FILTER (WHERE NOT "headrace wanted")
  FROM {differing}
"""

_SAMPLES: Final = "SELECT DISTINCT {texts} FROM {differing} t LIMIT {limit}"


@dataclass(frozen=True)
class Confirmed:
    """How many rows are missing and how many there are too much, with some of their keys."""

    missing: int
    extra: int
    keys: Keys


@contextmanager
def confirming(reading: Reading, schema: TableSchema, delivery: Delivery) -> Iterator[Confirmation]:
    """Judge rows of `schema`, which bears the table's own name, as a merge would write them; once
    per reading.

    Raises:
        UnsuitableTableError: the table lacks a column, or the index over its key.
        DestinationError: the server refuses a statement.
    """
    with reading.errors():
        target = read_target(reading.cursor, schema.table)
        assert target is not None  # the reading holds a lock on it
        yield Confirmation(reading.cursor, write_plan(schema, target, delivery))


class Confirmation:
    """Gathers what looks different, then judges it."""

    def __init__(self, cursor: Cursor, plan: WritePlan) -> None:
        self._cursor = cursor
        self._plan = plan
        self._wanted = _Typed(self._cursor, plan, "rows", plan.columns)
        self._excused: _Typed | None = None
        self._refused: list[pa.Table] = []
        self._cursor.execute(_MAKE_FOUND.encode())

    def want(self, rows: pa.Table) -> None:
        """Rows that the table seems to lack."""
        self._refused += self._wanted.add(rows)

    def find(self, places: pa.Table) -> None:
        """Where rows stand that the table seems to have too much."""
        if places.num_rows:
            copy_rows(self._cursor, _FOUND, _FOUND_COLUMNS, places, at_once)

    def excuse(self, keys: pa.Table) -> None:
        """Keys under which the table may hold what it likes."""
        if self._excused is None:
            self._excused = _Typed(self._cursor, self._plan, "keys", self._plan.keys)
        self._excused.add(keys)

    def judge(self, samples: int) -> Confirmed:
        """What really differs, with up to so many keys."""
        execute = self._cursor.execute
        execute(self._compare())
        if self._plan.on_delete is OnDelete.IGNORE:
            execute(self._excuse_lost())
        if self._excused is not None:
            execute(self._with_keys(_EXCUSE, excused=self._excused.table))
        missing, extra = only_row(execute(sql.SQL(_COUNT).format(differing=_DIFFERING)))
        return Confirmed(
            missing + sum(row.num_rows for row in self._refused), extra, self._keys(samples)
        )

    def _compare(self) -> sql.Composed:
        columns = sql.SQL(", ").join(sql.Identifier("t", c.name) for c in self._plan.columns)
        identity = sql.SQL(", ").join(sql.Identifier("t", c.name) for c in self._plan.identifying)
        return sql.SQL(_COMPARE).format(
            image=sql.SQL(_IMAGE).format(columns=columns),
            identity=identity,
            wanted=self._wanted.table,
            relation=self._plan.relation,
            found=_FOUND,
        )

    def _excuse_lost(self) -> sql.Composed:
        if self._plan.key:
            return self._with_keys(_EXCUSE_LOST)
        return sql.SQL('DELETE FROM {} WHERE NOT "headrace wanted"').format(_DIFFERING)

    def _with_keys(self, statement: str, **names: sql.Composable) -> sql.Composed:
        same = sql.SQL(" AND ").join(
            sql.SQL("{} = {}").format(sql.Identifier("t", c.name), sql.Identifier("s", c.name))
            for c in self._plan.keys
        )
        return sql.SQL(statement).format(differing=_DIFFERING, same_key=same, **names)

    def _keys(self, limit: int) -> Keys:
        texts = sql.SQL(", ").join(
            sql.SQL("{}::text").format(sql.Identifier("t", c.name)) for c in self._plan.identifying
        )
        query = sql.SQL(_SAMPLES).format(
            texts=texts, differing=_DIFFERING, limit=sql.Literal(limit)
        )
        return [*self._cursor.execute(query).fetchall(), *self._refused_keys()][:limit]

    def _refused_keys(self) -> Iterator[tuple[str | None, ...]]:
        names = [column.name for column in self._plan.identifying]
        for row in self._refused:
            for values in row.select(names).to_pylist():
                yield tuple(None if v is None else str(v) for v in values.values())


class _Typed:
    """A temporary table in the types of a table's own columns, filled as a merge fills that."""

    def __init__(
        self, cursor: Cursor, plan: WritePlan, role: str, columns: Sequence[WrittenColumn]
    ) -> None:
        self._cursor = cursor
        self._staging = Staging.of(f"verified_{role}", columns)
        narrowed = replace(plan, columns=tuple(columns))
        self.table, (_, create, self._insert) = typed_statements(narrowed, self._staging, ())
        cursor.execute(self._staging.ddl())
        cursor.execute(create)

    def add(self, rows: pa.Table) -> list[pa.Table]:
        """Add rows; gives those that the types refuse."""
        names = [column.name for column in self._staging.columns]
        part = Part(Operation.UPSERT, rows.select(names), self._land)
        refused = land(self._cursor.connection, [part], rows.num_rows)
        return [row.row for row in refused]

    def _land(self, rows: pa.Table) -> None:
        self._cursor.execute(sql.SQL("TRUNCATE {}").format(self._staging.table))
        send(self._cursor, self._staging, rows, at_once)
        self._cursor.execute(self._insert)
