"""The statements that bring one table up to date, all in the transaction of its checkpoint.

In this order (model.NetChanges): every row goes at a truncate; values that the source did not send
are read from the rows that hold them; deletes; upserts. An upsert writes no row that would not
change: rows are compared by their binary images (`*<>`), exactly, whatever their types; a rewrite
of equal rows would cost locks, WAL and index entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.staging import Pace, StagedColumn, Staging, send
from headrace.connectors.postgres.target_session import Cursor
from headrace.connectors.postgres.target_types import arrival
from headrace.errors import DivergedError
from headrace.model import DELETED_AT, Fill, OnDelete, TableId

ORDINAL: Final = "headrace row"  # of an upsert among its batch, where fills refer to it


@dataclass(frozen=True)
class WrittenColumn(StagedColumn):
    """A column that is written. `cast` is the type that staged values are cast to where assigning
    them does not do; `base` the one they are compared as."""

    base: str
    cast: str | None = None


@dataclass(frozen=True)
class WritePlan:
    """How rows get into one table. `arbiter` says whether ON CONFLICT can find the key's index."""

    table: TableId
    columns: tuple[WrittenColumn, ...]
    key: tuple[str, ...]
    arbiter: bool = True
    on_delete: OnDelete = OnDelete.DELETE
    only_ours: bool = True  # the table has no columns beside these

    @property
    def relation(self) -> sql.Identifier:
        return sql.Identifier(self.table.schema, self.table.name)

    @property
    def keys(self) -> tuple[WrittenColumn, ...]:
        return tuple(column for column in self.columns if column.name in self.key)

    @property
    def marks(self) -> bool:
        return self.on_delete is OnDelete.MARK

    @property
    def identifying(self) -> tuple[WrittenColumn, ...]:
        """What a delete names: the key, or the whole row where there is none."""
        return self.keys if self.key else self.columns


_ROW_NUMBER: Final = StagedColumn(ORDINAL, arrival(pa.int64()))


def upsert_staging(plan: WritePlan, *, numbered: bool = False) -> Staging:
    columns: tuple[StagedColumn, ...] = plan.columns
    return Staging.of("upserts", (*columns, _ROW_NUMBER) if numbered else columns)


def delete_staging(plan: WritePlan) -> Staging:
    return Staging.of("deletes", plan.identifying)


def fill_staging(plan: WritePlan) -> Staging:
    return Staging.of("fills", (*plan.keys, _ROW_NUMBER))


class Landing:
    """Applies rows of one batch; one transaction long. `upsert`, `delete` and `vacate` may be
    called on any slices, inside savepoints."""

    def __init__(
        self, cursor: Cursor, plan: WritePlan, pace: Pace, commit_ts: datetime | None = None
    ) -> None:
        self._cursor = cursor
        self._plan = plan
        self._pace = pace
        # A literal, not a parameter: with parameters, a % in a name would be read as one too.
        self._now = sql.SQL("now()") if commit_ts is None else sql.Literal(commit_ts)
        self._fills: list[tuple[sql.Identifier, tuple[str, ...]]] = []
        self._used: set[str] = set()

    def truncate(self) -> None:
        """Every row goes. TRUNCATE would show readers of an older snapshot an empty table."""
        plan = self._plan
        if plan.on_delete is OnDelete.DELETE:
            self._cursor.execute(sql.SQL("DELETE FROM {}").format(plan.relation))
        elif plan.marks:
            mark = sql.SQL("UPDATE {} SET {d} = {now} WHERE {d} IS NULL")
            deleted = sql.Identifier(DELETED_AT)
            self._cursor.execute(mark.format(plan.relation, d=deleted, now=self._now))

    def read_fills(self, fills: Sequence[Fill]) -> None:
        """Take what the source did not send from the rows that hold it, before they change.

        Raises:
            DivergedError: there is no such row.
        """
        for number, fill in enumerate(fills):
            keys = fill.keys.append_column(ORDINAL, pa.array(fill.rows))
            staging = fill_staging(self._plan)
            self._stage(staging, keys)
            kept = f"headrace_fill_{number}"
            self._cursor.execute(fill_statement(self._plan, staging, kept, fill.columns))
            if self._cursor.rowcount != len(fill.rows):
                missing = len(fill.rows) - self._cursor.rowcount
                raise diverged(self._plan.table, f"{missing} rows that were updated")
            self._fills.append((sql.Identifier("pg_temp", kept), fill.columns))

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
        exact = self._as_typed(staging)
        self._cursor.execute(delete_equal_statement(plan, exact, self._now))
        if self._cursor.rowcount != rows.num_rows:
            missing = rows.num_rows - self._cursor.rowcount
            raise diverged(plan.table, f"{missing} rows that were deleted")

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
            exact = self._as_typed(staging)
            for statement in update_and_insert(plan, exact):
                self._cursor.execute(statement)

    def _stage(self, staging: Staging, rows: pa.Table) -> None:
        if staging.name in self._used:
            self._cursor.execute(sql.SQL("TRUNCATE {}").format(staging.table))
        self._used.add(staging.name)
        send(self._cursor, staging, rows, self._pace)

    def _as_typed(self, staging: Staging) -> sql.Identifier:
        """The staged rows once more, in the very types of the table: assigned as they would be."""
        typed = sql.Identifier("pg_temp", f"{staging.name}_typed")
        columns = self._plan.columns
        self._cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(typed))
        self._cursor.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WHERE false"
            ).format(sql.Identifier(f"{staging.name}_typed"), _names(columns), self._plan.relation)
        )
        insert = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} s {}").format(
            typed,
            _names(columns),
            _values(columns, self._fills),
            staging.table,
            _fill_joins(self._fills),
        )
        self._cursor.execute(insert)
        return typed


Fills = Sequence[tuple[sql.Identifier, tuple[str, ...]]]


def diverged(table: TableId, what: str) -> DivergedError:
    return DivergedError(
        f"{table} lacks {what} at the source: somebody else writes to it",
        hint=f"headrace resync {table}",
        table=str(table),
    )


# -- the statements --------------------------------------------------------------------------------


def upsert_statement(plan: WritePlan, staging: Staging, fills: Fills) -> sql.Composed:
    """Sorted by key, so that index pages are met once and two writers lock rows in one order."""
    return sql.SQL(
        "INSERT INTO {relation} AS t ({names}) OVERRIDING SYSTEM VALUE "
        "SELECT {values} FROM {staging} s {joins} ORDER BY {order} "
        "ON CONFLICT ({key}) {action}"
    ).format(
        relation=plan.relation,
        names=_names(plan.columns),
        values=_values(plan.columns, fills),
        staging=staging.table,
        joins=_fill_joins(fills),
        order=_joined(_column("s", c) for c in plan.keys),
        key=_names(plan.keys),
        action=_on_conflict(plan),
    )


def _on_conflict(plan: WritePlan) -> sql.Composable:
    changing = [c for c in plan.columns if c.name not in plan.key]
    if not changing and not plan.marks:
        return sql.SQL("DO NOTHING")
    return sql.SQL("DO UPDATE SET {} WHERE {}").format(
        _assignments(plan, changing, "excluded"), _differs(plan, changing, "excluded")
    )


def _assignments(plan: WritePlan, columns: Sequence[StagedColumn], other: str) -> sql.Composable:
    set_to = [sql.SQL("{} = {}").format(sql.Identifier(c.name), _column(other, c)) for c in columns]
    if plan.marks:
        set_to.append(sql.SQL("{} = NULL").format(sql.Identifier(DELETED_AT)))
    return _joined(set_to)


def _differs(plan: WritePlan, columns: Sequence[StagedColumn], other: str) -> sql.Composable:
    """Images are compared, not values: 1.0 and 1.00, or 'A' and 'a' of citext, are not the same."""
    images = sql.SQL("ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record").format(
        _joined(_column("t", c) for c in columns), _joined(_column(other, c) for c in columns)
    )
    if not plan.marks:
        return images
    return sql.SQL("{} OR t.{} IS NOT NULL").format(images, sql.Identifier(DELETED_AT))


def insert_statement(plan: WritePlan, staging: Staging) -> sql.Composed:
    return sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} s").format(
        plan.relation, _names(plan.columns), _values(plan.columns, ()), staging.table
    )


def update_and_insert(plan: WritePlan, typed: sql.Identifier) -> list[sql.Composed]:
    """For a key that may be deferred, which ON CONFLICT does not take."""
    changing = [c for c in plan.columns if c.name not in plan.key]
    update = sql.SQL("UPDATE {} AS t SET {} FROM {} s WHERE {} AND ({})").format(
        plan.relation,
        _assignments(plan, changing, "s"),
        typed,
        _same_key(plan, "s"),
        _differs(plan, changing, "s"),
    )
    insert = sql.SQL(
        "INSERT INTO {relation} ({names}) OVERRIDING SYSTEM VALUE SELECT {names} FROM {typed} s "
        "WHERE NOT EXISTS (SELECT FROM {relation} t WHERE {same}) ORDER BY {key}"
    ).format(
        relation=plan.relation,
        names=_names(plan.columns),
        typed=typed,
        same=_same_key(plan, "s"),
        key=_names(plan.keys),
    )
    return [update, insert] if changing or plan.marks else [insert]


def removal_statement(plan: WritePlan, staging: Staging) -> sql.Composed:
    return sql.SQL("DELETE FROM {} AS t USING {} s WHERE {}").format(
        plan.relation, staging.table, _same_key(plan, "s")
    )


def delete_statement(plan: WritePlan, staging: Staging, now: sql.Composable) -> sql.Composed:
    """Of rows under the staged keys; where deletes only mark, they are marked with `now`."""
    if not plan.marks:
        return removal_statement(plan, staging)
    return sql.SQL("UPDATE {} AS t SET {d} = {now} FROM {} s WHERE {} AND t.{d} IS NULL").format(
        plan.relation,
        staging.table,
        _same_key(plan, "s"),
        d=sql.Identifier(DELETED_AT),
        now=now,
    )


# Rows are told apart by their texts, which are exact in a session of ours and which every type has.
# Of equal rows as many go as are named, whichever.
_EQUAL: Final = """
FROM (SELECT place, part, image, row_number() OVER (PARTITION BY image) AS copy
        FROM (SELECT t.ctid AS place, t.tableoid AS part, ROW({row})::text AS image
                FROM {relation} t WHERE {standing}) whole
       WHERE image IN (SELECT ROW({names})::text FROM {typed})) held
JOIN (SELECT image, row_number() OVER (PARTITION BY image) AS copy
        FROM (SELECT ROW({names})::text AS image FROM {typed}) gone) gone USING (image, copy)
"""


def delete_equal_statement(
    plan: WritePlan, typed: sql.Identifier, now: sql.Composable
) -> sql.Composed:
    deleted = sql.Identifier(DELETED_AT)
    equal = sql.SQL(_EQUAL).format(
        row=_joined(_column("t", c) for c in plan.columns),
        names=_names(plan.columns),
        relation=plan.relation,
        typed=typed,
        standing=sql.SQL("t.{} IS NULL").format(deleted) if plan.marks else sql.SQL("true"),
    )
    change = (
        sql.SQL("UPDATE {} AS t SET {} = {} FROM").format(plan.relation, deleted, now)
        if plan.marks
        else sql.SQL("DELETE FROM {} AS t USING").format(plan.relation)
    )
    return sql.SQL(
        "{} (SELECT place, part {}) gone WHERE t.ctid = gone.place AND t.tableoid = gone.part"
    ).format(change, equal)


def fill_statement(
    plan: WritePlan, staging: Staging, kept: str, columns: Sequence[str]
) -> sql.Composed:
    return sql.SQL(
        "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT s.{}, {} FROM {} s JOIN {} t ON {}"
    ).format(
        sql.Identifier(kept),
        sql.Identifier(ORDINAL),
        _joined(sql.Identifier("t", name) for name in columns),
        staging.table,
        plan.relation,
        _same_key(plan, "s"),
    )


# -- their parts -----------------------------------------------------------------------------------


def _joined(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(list(parts))


def _names(columns: Sequence[StagedColumn]) -> sql.Composed:
    return _joined(sql.Identifier(c.name) for c in columns)


def _column(alias: str, column: StagedColumn) -> sql.Identifier:
    return sql.Identifier(alias, column.name)


def _same_key(plan: WritePlan, alias: str) -> sql.Composed:
    """Compared as the table's own type, so that its index serves."""
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}::{}").format(_column("t", c), _column(alias, c), sql.SQL(c.base))
        for c in plan.keys
    )


def _values(columns: Sequence[WrittenColumn], fills: Fills) -> sql.Composed:
    return _joined(_value(column, fills) for column in columns)


def _value(column: WrittenColumn, fills: Fills) -> sql.Composable:
    given: sql.Composable = _column("s", column)
    kept = [alias for alias, (_, names) in enumerate(fills) if column.name in names]
    if column.cast or kept:
        given = sql.SQL("{}::{}").format(given, sql.SQL(column.cast or column.base))
    if not kept:
        return given
    cases = [
        sql.SQL("WHEN {}.{} IS NOT NULL THEN {}").format(
            sql.Identifier(f"f{n}"),
            sql.Identifier(ORDINAL),
            sql.Identifier(f"f{n}", column.name),
        )
        for n in kept
    ]
    return sql.SQL("CASE {} ELSE {} END").format(sql.SQL(" ").join(cases), given)


def _fill_joins(fills: Fills) -> sql.Composed:
    return sql.SQL(" ").join(
        sql.SQL("LEFT JOIN {} {} ON {}.{o} = s.{o}").format(
            table, sql.Identifier(f"f{n}"), sql.Identifier(f"f{n}"), o=sql.Identifier(ORDINAL)
        )
        for n, (table, _) in enumerate(fills)
    )
