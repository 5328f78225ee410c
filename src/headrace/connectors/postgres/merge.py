"""Applying one batch to a table, in the transaction of its checkpoint.

In this order (model.NetChanges): every row goes at a truncate; values that the source did not send
are read from the rows that hold them; deletes; upserts. Each step takes any slice of its rows, so
that a batch which the server refuses can be halved (bisection).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.catalog import TypeCatalog
from headrace.connectors.postgres.fills import ORDINAL, Kept, completed
from headrace.connectors.postgres.staging import Pace, StagedColumn, Staging, send
from headrace.connectors.postgres.statements import (
    WritePlan,
    delete_equal_statement,
    delete_statement,
    fill_statement,
    insert_statement,
    removal_statement,
    truncate_statement,
    typed_statements,
    update_and_insert,
    upsert_statement,
)
from headrace.connectors.postgres.target_session import Cursor
from headrace.connectors.postgres.target_types import arrival
from headrace.errors import DivergedError
from headrace.model import Fill, OnDelete

__all__ = ["Landing", "WritePlan", "delete_staging", "fill_staging", "upsert_staging"]

_ROW_NUMBER: Final = StagedColumn(ORDINAL, arrival(pa.int64()))


def upsert_staging(plan: WritePlan, *, numbered: bool = False) -> Staging:
    columns: tuple[StagedColumn, ...] = plan.columns
    return Staging.of("upserts", (*columns, _ROW_NUMBER) if numbered else columns)


def delete_staging(plan: WritePlan) -> Staging:
    return Staging.of("deletes", plan.identifying)


def fill_staging(plan: WritePlan) -> Staging:
    return Staging.of("fills", (*plan.keys, _ROW_NUMBER))


class Landing:
    """Applies rows of one batch, part by part; one transaction long. `upsert`, `delete` and
    `vacate` may be called on any slices of a part, inside savepoints."""

    def __init__(self, cursor: Cursor, plan: WritePlan, pace: Pace) -> None:
        self._cursor = cursor
        self._plan = plan
        self._pace = pace
        self._now: sql.Composable = sql.SQL("now()")
        self._fills: list[Kept] = []
        self._used: set[str] = set()
        self._types: TypeCatalog | None = None

    def begin(self, commit_ts: datetime | None) -> None:
        """Another part: what was kept for the one before is done with."""
        self._now = sql.SQL("now()") if commit_ts is None else sql.Literal(commit_ts)
        for kept in self._fills:
            self._cursor.execute(sql.SQL("DROP TABLE {}").format(kept.table))
        self._fills = []

    def truncate(self) -> None:
        """Every row goes, or is marked."""
        if self._plan.on_delete is not OnDelete.IGNORE:
            self._cursor.execute(truncate_statement(self._plan, self._now))

    def read_fills(self, fills: Sequence[Fill]) -> None:
        """Take what the source did not send from the rows that hold it, before they change.

        Raises:
            DivergedError: there is no such row.
        """
        for number, fill in enumerate(fills):
            keys = fill.keys.append_column(ORDINAL, pa.array(fill.rows, pa.int64()))
            staging = fill_staging(self._plan)
            self._stage(staging, keys)
            kept = Kept(f"headrace_fill_{number}", fill.columns)
            self._cursor.execute(fill_statement(self._plan, staging, kept))
            self._expect(len(fill.rows), "rows that were updated")
            self._fills.append(kept)

    def completed(self, row: pa.Table) -> pa.Table:
        """One refused row as it was to be written: with what fills bring, without its number."""
        if ORDINAL not in row.column_names:
            return row
        if self._types is None:
            self._types = TypeCatalog.read(self._cursor.connection)
        return completed(self._cursor, self._types, row, self._fills)

    def delete(self, rows: pa.Table) -> None:
        """Take away the rows under these keys (equal to these rows, without a key)."""
        plan = self._plan
        if plan.on_delete is OnDelete.IGNORE or not rows.num_rows:
            return
        staging = delete_staging(plan)
        self._stage(staging, rows)
        if plan.key:
            self._cursor.execute(delete_statement(plan, staging, self._now))
            return
        exact = self._typed(staging, ())
        self._cursor.execute(delete_equal_statement(plan, exact, self._now))
        self._expect(rows.num_rows, "rows that were deleted")

    def vacate(self, rows: pa.Table) -> None:
        """Remove the rows under the keys of these, that `upsert` brings back."""
        staging = delete_staging(self._plan)
        self._stage(staging, rows)
        self._cursor.execute(removal_statement(self._plan, staging))

    def upsert(self, rows: pa.Table) -> None:
        """Write rows with all columns; `ORDINAL` among them where fills were read."""
        if not rows.num_rows:
            return
        plan = self._plan
        staging = upsert_staging(plan, numbered=bool(self._fills))
        self._stage(staging, rows)
        if not plan.key:
            self._cursor.execute(insert_statement(plan, staging))
        elif plan.arbiter:
            self._cursor.execute(upsert_statement(plan, staging, self._fills))
        else:
            exact = self._typed(staging, self._fills)
            for statement in update_and_insert(plan, exact):
                self._cursor.execute(statement)

    def _stage(self, staging: Staging, rows: pa.Table) -> None:
        if staging.name in self._used:
            self._cursor.execute(sql.SQL("TRUNCATE {}").format(staging.table))
        self._used.add(staging.name)
        send(self._cursor, staging, rows, self._pace)

    def _typed(self, staging: Staging, fills: Sequence[Kept]) -> sql.Identifier:
        typed, statements = typed_statements(self._plan, staging, fills)
        for statement in statements:
            self._cursor.execute(statement)
        return typed

    def _expect(self, rows: int, what: str) -> None:
        """Raise DivergedError where the last statement found fewer."""
        missing = rows - self._cursor.rowcount
        if missing:
            table = self._plan.table
            raise DivergedError(
                f"{table} lacks {missing} {what} at the source: somebody else writes to it",
                hint=f"headrace resync {table}",
                table=str(table),
            )
