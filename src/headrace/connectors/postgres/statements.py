"""The statements that bring a table up to date from staged rows, as text of SQL.

An upsert writes no row that would not change: rows are compared by their binary images (`*<>`),
exactly, whatever their types; a rewrite of equal rows would cost locks, WAL and index entries.
Nothing here takes parameters: with them, a % in a name would be read as one more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from psycopg import sql

from headrace.connectors.postgres.fills import ORDINAL, Kept
from headrace.connectors.postgres.identifiers import relation
from headrace.connectors.postgres.staging import StagedColumn, Staging
from headrace.model import DELETED_AT, OnDelete, TableId


@dataclass(frozen=True)
class WrittenColumn(StagedColumn):
    """A column that is written. `cast` is the type that staged values are cast to where assigning
    them does not do; `base` the one they are compared as."""

    base: str
    cast: str | None = None

    @property
    def lands_as_staged(self) -> bool:
        """Whether COPY's bytes for the staging column are good for the column itself: both are of
        one type, or texts, which raise alike for what they do not let in."""
        return self.cast is None and self.arrival.staging in (self.base, "text")


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
        return relation(self.table)

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


def upsert_statement(plan: WritePlan, staging: Staging, fills: Sequence[Kept]) -> sql.Composed:
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


def missing_statement(plan: WritePlan, present: Staging, now: sql.Composable) -> sql.Composed:
    """Of rows whose key is not among those staged."""
    absent = sql.SQL("NOT EXISTS (SELECT FROM {} s WHERE {})").format(
        present.table, _same_key(plan, "s")
    )
    if not plan.marks:
        return sql.SQL("DELETE FROM {} AS t WHERE {}").format(plan.relation, absent)
    return sql.SQL("UPDATE {} AS t SET {d} = {now} WHERE t.{d} IS NULL AND {absent}").format(
        plan.relation, d=sql.Identifier(DELETED_AT), now=now, absent=absent
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


def fill_statement(plan: WritePlan, staging: Staging, kept: Kept) -> sql.Composed:
    return sql.SQL(
        "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT s.{}, {} FROM {} s JOIN {} t ON {}"
    ).format(
        sql.Identifier(kept.name),
        sql.Identifier(ORDINAL),
        _joined(sql.Identifier("t", name) for name in kept.columns),
        staging.table,
        plan.relation,
        _same_key(plan, "s"),
    )


def truncate_statement(plan: WritePlan, now: sql.Composable) -> sql.Composed:
    """Every row goes. TRUNCATE itself would show readers of an older snapshot an empty table."""
    if not plan.marks:
        return sql.SQL("DELETE FROM {}").format(plan.relation)
    return sql.SQL("UPDATE {} SET {d} = {now} WHERE {d} IS NULL").format(
        plan.relation, d=sql.Identifier(DELETED_AT), now=now
    )


def typed_statements(
    plan: WritePlan, staging: Staging, fills: Sequence[Kept]
) -> tuple[sql.Identifier, list[sql.Composed]]:
    """A table that holds the staged rows once more, in the very types of their own table: assigned
    as they would be there. It may stand from rows staged before."""
    name = f"{staging.name}_typed"
    typed = sql.Identifier("pg_temp", name)
    names = _names(plan.columns)
    drop = sql.SQL("DROP TABLE IF EXISTS {}").format(typed)
    create = sql.SQL(
        "CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WHERE false"
    ).format(sql.Identifier(name), names, plan.relation)
    insert = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} s {}").format(
        typed, names, _values(plan.columns, fills), staging.table, _fill_joins(fills)
    )
    return typed, [drop, create, insert]


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


def _values(columns: Sequence[WrittenColumn], fills: Sequence[Kept]) -> sql.Composed:
    return _joined(_value(column, fills) for column in columns)


def _value(column: WrittenColumn, fills: Sequence[Kept]) -> sql.Composable:
    given: sql.Composable = _column("s", column)
    kept = [n for n, fill in enumerate(fills) if column.name in fill.columns]
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


def _fill_joins(fills: Sequence[Kept]) -> sql.Composed:
    return sql.SQL(" ").join(
        sql.SQL("LEFT JOIN {} {} ON {}.{o} = s.{o}").format(
            fill.table, sql.Identifier(f"f{n}"), sql.Identifier(f"f{n}"), o=sql.Identifier(ORDINAL)
        )
        for n, fill in enumerate(fills)
    )
