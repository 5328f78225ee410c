"""What triggers at the source wrote down about each change, and what copies must tell of it.

The notes are rows of the transactions that they are about, so they are there exactly where those
are. Per row, `seq` is the order of changes: whoever changed it next had to wait for its lock.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from psycopg.types.json import set_json_loads
from random_tables import Table, look

from headrace.testing.database import Database
from tables import difference

SCHEMA = """
create schema audit;
create table audit.changes (
    seq bigserial primary key, relation text, xid bigint, op text, old jsonb, new jsonb
);
create table audit.ddl (
    seq bigserial primary key, kind text, relation text, name text, became text, value jsonb
);
create function audit.note() returns trigger language plpgsql as $$
begin
    insert into audit.changes (relation, xid, op, old, new) values (
        tg_argv[0], pg_current_xact_id()::text::bigint % (1::bigint << 32),
        lower(left(tg_op, 1)), to_jsonb(old), to_jsonb(new)
    );
    return null;
end $$;
"""
Row = tuple[Any, ...]


def watch(table: Table) -> str:
    """Statements that have each change of the table noted."""
    call = f"on {table.sql_name} for each {{}} execute function audit.note({_literal(table.name)})"
    return (
        f"create trigger noted after insert or update or delete {call.format('row')};"
        f" create trigger emptied after truncate {call.format('statement')}"
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class Change:
    """A change as it was noted; rows by the names that columns have in the end.

    `known` are the columns that there were: others have, in rows, what they were added with.
    """

    xid: int
    op: str
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None
    known: frozenset[str]


@dataclass(frozen=True)
class Notes:
    """All changes of a table, in order; `columns` and `key` are those that it has in the end."""

    columns: tuple[str, ...]
    key: tuple[str, ...]
    changes: tuple[Change, ...]
    final: Callable[[str], str]  # what a column is called in the end

    def before(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """A row before its change, which has the names of its time."""
        named = sorted(told.items(), key=lambda item: item[1] is not None)
        return {self.final(name): value for name, value in named}

    def row(self, shown: Mapping[str, Any]) -> Row:
        return tuple(plain(shown[name]) for name in self.columns)

    def key_of(self, shown: Mapping[str, Any]) -> Row:
        return tuple(plain(shown[name]) for name in self.key)

    def by_transaction(self) -> dict[int, list[Change]]:
        found: dict[int, list[Change]] = {}
        for change in self.changes:
            found.setdefault(change.xid, []).append(change)
        return found


def read_notes(database: Database, table: Table) -> Notes:
    with database.connect() as session:
        set_json_loads(partial(json.loads, parse_float=Decimal), context=session)
        shown = look(session, table)
        ddl = session.execute(
            "select kind, name, became, value from audit.ddl where relation = %s order by seq",
            [table.name],
        ).fetchall()
        noted = session.execute(
            "select xid, op, old, new from audit.changes where relation = %s order by seq",
            [table.name],
        ).fetchall()
    follow = _Names(ddl)
    names = tuple(column.name for column in shown.columns)
    changes = tuple(
        Change(
            xid,
            op,
            follow.row(old, names),
            follow.row(new, names),
            frozenset(map(follow.final, old or new or ())),
        )
        for xid, op, old, new in noted
    )
    key = tuple(column.name for column in shown.key)
    return Notes(names, key, changes, follow.final)


class _Names:
    """What columns are called in the end, and what rows from before hold in later ones."""

    def __init__(self, ddl: Sequence[tuple[Any, ...]]) -> None:
        self._became = {name: became for kind, name, became, _ in ddl if kind == "rename"}
        self._constants = {self.final(n): v for kind, n, _, v in ddl if kind == "add"}

    def final(self, name: str) -> str:
        while name in self._became:
            name = self._became[name]
        return name

    def row(self, row: Mapping[str, Any] | None, names: Sequence[str]) -> Mapping[str, Any] | None:
        if row is None:
            return None
        known = {self.final(name): value for name, value in row.items()}
        return {name: known.get(name, self._constants.get(name)) for name in names}


def plain(value: Any) -> Any:
    """A value as JSON tells it, hashable."""
    if isinstance(value, list):
        return tuple(plain(item) for item in value)
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return value


def rows_in_lake(location: str) -> list[dict[str, Any]]:
    table = QueryBuilder().register("t", DeltaTable(location)).execute("select * from t")
    return list(pa.table(table).to_pylist())


# -- every change as a row -------------------------------------------------------------------------


def assert_changes_told(notes: Notes, location: str) -> None:
    """Each change that no snapshot holds is there once, whole transactions in their own order."""
    rows = rows_in_lake(location)
    told = _transactions(rows)
    noted = notes.by_transaction()
    assert told.keys() <= noted.keys(), f"made up: {sorted(told.keys() - noted.keys())[:5]}"
    for xid, changes in told.items():
        _assert_same_changes(notes, noted[xid], changes, xid)
    _assert_snapshot(notes, rows, told)


def _transactions(rows: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    changes = [row for row in rows if row["_xid"] is not None]
    changes.sort(key=lambda row: (row["_xid"], row["_lsn"], row["_ordinal"]))
    by_xid = groupby(changes, key=lambda row: row["_xid"])
    return {xid: list(found) for xid, found in by_xid}


def _assert_same_changes(
    notes: Notes, noted: Sequence[Change], told: Sequence[Mapping[str, Any]], xid: int
) -> None:
    ops = "".join(change.op for change in noted), "".join(row["_op"] for row in told)
    assert ops[0] == ops[1], f"transaction {xid}: {ops[0][:200]} became {ops[1][:200]}"
    for change, row in zip(noted, told, strict=True):
        if change.new is not None:
            unsent = set(row["_unchanged"] or ())
            for name in notes.columns:
                expected = plain(change.new[name])
                if name in unsent:
                    assert change.old is not None
                    assert plain(change.old[name]) == expected, (xid, name)
                else:
                    assert plain(row[name]) == expected, (xid, name, expected, row[name])
        elif change.old is not None:
            before = notes.before(row["_before"])
            for name in change.known & before.keys() & set(notes.key or notes.columns):
                assert plain(before[name]) == plain(change.old[name]), (xid, name, before)


def _assert_snapshot(
    notes: Notes, rows: Sequence[Mapping[str, Any]], told: Mapping[int, Any]
) -> None:
    """What the last copy held is what the transactions before it had left."""
    copied = [row for row in rows if row["_op"] == "r"]
    last = max((row["_lsn"] for row in copied), default=0)
    after = {xid for xid, changes in told.items() if changes[0]["_lsn"] > last}
    left: Counter[Row] = Counter()
    for change in notes.changes:
        if change.xid in after:
            continue
        if change.op == "t":
            left.clear()
        if change.old is not None:
            left[notes.row(change.old)] -= 1
        if change.new is not None:
            left[notes.row(change.new)] += 1
    held = Counter(notes.row(row) for row in copied if row["_lsn"] == last)
    assert not difference(+left, held), f"copied at {last}: {difference(+left, held)}"


# -- every version of a row ------------------------------------------------------------------------


@dataclass
class _Timeline:
    """States that transactions left under one key; None where there was no row."""

    states: list[tuple[int, Row | None]] = field(default_factory=list)

    def leave(self, xid: int, row: Row | None) -> None:
        if self.states and self.states[-1][0] == xid:
            self.states.pop()
        self.states.append((xid, row))

    def versions(self) -> list[Row]:
        states = [None, *(row for _, row in self.states)]
        return [b for a, b in pairwise(states) if b is not None and a != b]


def _timelines(notes: Notes) -> dict[Row, _Timeline]:
    found: dict[Row, _Timeline] = {}

    def leave(xid: int, key: Row, row: Row | None) -> None:
        found.setdefault(key, _Timeline()).leave(xid, row)

    for change in notes.changes:
        if change.op == "t":
            for key in found:
                leave(change.xid, key, None)
        if change.old is not None:
            leave(change.xid, notes.key_of(change.old), None)
        if change.new is not None:
            leave(change.xid, notes.key_of(change.new), notes.row(change.new))
    return found


def assert_versions_kept(notes: Notes, location: str, *, copied_anew: bool) -> None:
    """Per key its versions from the snapshot on, each once, none at the same time as another.

    A copy that was taken anew tells only of what it found, so that some may be missing.
    """
    rows = sorted(rows_in_lake(location), key=lambda row: row["__START_AT"])
    kept: dict[Row, list[Mapping[str, Any]]] = {}
    for row in rows:
        kept.setdefault(notes.key_of(row), []).append(row)
    expected = {key: line for key, line in _timelines(notes).items() if line.versions()}
    assert kept.keys() <= expected.keys(), f"made up: {list(kept.keys() - expected.keys())[:5]}"
    for key, line in expected.items():
        _assert_line(notes, key, line, kept.get(key, []), copied_anew=copied_anew)


def _assert_line(
    notes: Notes,
    key: Row,
    line: _Timeline,
    kept: Sequence[Mapping[str, Any]],
    *,
    copied_anew: bool,
) -> None:
    for a, b in pairwise(kept):
        assert a["__START_AT"] < a["__END_AT"] <= b["__START_AT"], (key, a, b)
    current = [notes.row(row) for row in kept if row["__END_AT"] is None]
    last = line.states[-1][1]
    assert current == ([] if last is None else [last]), (key, current, last)
    found = _distinct(notes, kept)
    versions = line.versions()
    if copied_anew:
        rest = iter(versions)
        assert all(version in rest for version in found), (key, found, versions)
    else:
        assert found == versions[len(versions) - len(found) :], (key, found, versions)


def _distinct(notes: Notes, kept: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Without versions that differ in columns only that the source has dropped."""
    rows: list[Row] = []
    end = None
    for row in kept:
        told = notes.row(row)
        if not (rows and rows[-1] == told and end == row["__START_AT"]):
            rows.append(told)
        end = row["__END_AT"]
    return rows
