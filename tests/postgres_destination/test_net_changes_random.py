"""Random net changes leave the table as plain SQL, statement by statement, would (invariant 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from target_place import at, place_in, schema_of

from headrace.connectors.postgres.synced_table import PostgresTable
from headrace.model import Delivery, Fill, NetChanges, OnDelete, TableSchema
from headrace.testing.database import Database, temporary_database

COLUMNS = {
    "a": pa.int32(), "b": pa.string(), "t": pa.string(), "n": pa.decimal128(9, 2),
    "f": pa.float64(), "j": pa.struct([("x", pa.int32())]), "l": pa.list_(pa.string()),
}  # fmt: skip
KEYED = schema_of(COLUMNS, ["a", "b"])
KEYLESS = schema_of(COLUMNS, [])

_EMPTY = pa.Table.from_pylist([], KEYED.arrow())

VALUES = {
    "t": st.sampled_from(["", "x", "X", "ä", None]),
    "n": st.sampled_from([Decimal("0.00"), Decimal("1.50"), None]),
    "f": st.sampled_from([0.0, -0.0, float("nan"), 1.5, None]),
    "j": st.sampled_from([{"x": 1}, {"x": None}, None]),
    "l": st.sampled_from([[], ["a", None], None]),
}
KEYS = st.tuples(st.integers(0, 3), st.sampled_from(["", "k", "K"]))
ROWS = st.fixed_dictionaries(VALUES)
FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@dataclass
class Oracle:
    """A twin of the table, changed row by row by statements that nobody could get wrong."""

    connection: psycopg.Connection[Any]
    columns: tuple[str, ...] = tuple(COLUMNS)
    commits: int = 0

    def reset(self) -> None:
        self.connection.execute("truncate twin")

    def keys(self) -> list[tuple[int, str]]:
        return [(a, b) for a, b in self.connection.execute("select a, b from twin")]

    def value(self, key: tuple[int, str], column: str) -> Any:
        where = "where a = %s and b = %s"
        row = self.connection.execute(f"select {column} from twin {where}", key).fetchone()
        assert row is not None
        return row[0]

    def delete(self, key: tuple[int, str]) -> None:
        self.connection.execute("delete from twin where a = %s and b = %s", key)

    def insert(self, row: dict[str, Any]) -> None:
        values = [psycopg.types.json.Jsonb(v) if isinstance(v, dict) else v for v in row.values()]
        names = ", ".join(row)
        marks = ", ".join(["%s"] * len(row))
        self.connection.execute(f"insert into twin ({names}) values ({marks})", values)

    def delete_one(self, row: dict[str, Any]) -> None:
        """One row that is equal in every column, as its text shows it."""
        values = [
            psycopg.types.json.Jsonb(v) if isinstance(v, dict) else v for v in map(row.get, TYPES)
        ]
        casts = ", ".join(f"%s::{kind}" for kind in TYPES.values())
        self.connection.execute(
            "delete from twin where ctid = (select ctid from twin t where row(t.*)::text ="
            f" row({casts})::text limit 1)",
            values,
        )

    def differences(self, table: str = "shop.customers") -> list[Any]:
        names = ", ".join(self.columns)
        one, other = (
            f"select row({names})::text, count(*) from {t} group by 1" for t in ("twin", table)
        )
        return self.connection.execute(
            f"(({one}) except ({other})) union all (({other}) except ({one}))"
        ).fetchall()


TYPES = {
    "a": "int", "b": "text", "t": "text", "n": "numeric(9,2)", "f": "float8", "j": "jsonb",
    "l": "text[]",
}  # fmt: skip


@contextmanager
def twins(
    server_dsn: str, schema: TableSchema, delivery: Delivery | None = None
) -> Iterator[tuple[PostgresTable, Oracle, Database]]:
    with temporary_database(server_dsn) as database, place_in(database) as place:
        table = place.prepared(schema, delivery)
        with database.connect() as connection:
            columns = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
            connection.execute(f"create table twin ({columns})")
            yield table, Oracle(connection), database


@pytest.fixture(scope="module")
def keyed(server_dsn: str) -> Iterator[tuple[PostgresTable, Oracle, Database]]:
    with twins(server_dsn, KEYED) as made:
        yield made


@pytest.fixture(scope="module")
def deferrable(server_dsn: str) -> Iterator[tuple[PostgresTable, Oracle, Database]]:
    with twins(server_dsn, KEYED) as (table, oracle, database):
        database.execute(
            "alter table shop.customers drop constraint customers_pkey,"
            " add primary key (a, b) deferrable initially deferred"
        )
        yield table, oracle, database


@pytest.fixture(scope="module")
def keyless(server_dsn: str) -> Iterator[tuple[PostgresTable, Oracle, Database]]:
    with twins(server_dsn, KEYLESS) as made:
        yield made


def _begin(
    made: tuple[PostgresTable, Oracle, Database], schema: TableSchema = KEYED
) -> tuple[PostgresTable, Oracle]:
    """Both empty; that is a commit too."""
    table, oracle, _ = made
    oracle.reset()
    oracle.commits += 1
    none = pa.Table.from_pylist([], KEYED.arrow())
    empty = NetChanges(schema, none, none.select(list(schema.key) or list(COLUMNS)), truncate=True)
    table.apply(empty, at(oracle.commits))
    return table, oracle


def _keyed_change(data: st.DataObject, oracle: Oracle) -> NetChanges:
    """Upserts, deletes, and moved keys whose unsent columns come from where the row was."""
    wanted = data.draw(st.dictionaries(KEYS, ROWS, max_size=6))
    standing = oracle.keys()
    gone = set(data.draw(st.lists(KEYS, max_size=4))) - set(wanted)
    keys, rows = list(wanted), list(wanted.values())
    movable = [n for n, _ in enumerate(keys)] if standing else []
    filled = data.draw(st.lists(st.sampled_from(movable), unique=True)) if movable else []
    fills, moved = [], set()
    for names, numbers in ((("t", "l"), filled[::2]), (("j",), filled[1::2])):
        olds = [data.draw(st.sampled_from(standing)) for _ in numbers]
        for number, old in zip(numbers, olds, strict=True):
            for name in names:
                rows[number] = {**rows[number], name: oracle.value(old, name)}
            moved.add(old)
        if numbers:
            held = pa.table({"a": pa.array([a for a, _ in olds], pa.int32()),
                             "b": [b for _, b in olds]})  # fmt: skip
            fills.append(Fill(names, np.array(numbers, np.int64), held))
    gone |= {old for old in moved if data.draw(st.booleans())} - set(wanted)
    sent = [dict(row) for row in rows]
    for fill in fills:
        for number in fill.rows:
            for name in fill.columns:
                sent[number][name] = None
    for key in (*gone, *keys):
        oracle.delete(key)
    whole = [{"a": a, "b": b, **row} for (a, b), row in zip(keys, rows, strict=True)]
    for row in whole:
        oracle.insert(row)
    arrow = KEYED.arrow()
    upserts = [{"a": a, "b": b, **row} for (a, b), row in zip(keys, sent, strict=True)]
    deletes = [{"a": a, "b": b} for a, b in gone]
    key = pa.schema([arrow.field("a"), arrow.field("b")])
    return NetChanges(
        KEYED, pa.Table.from_pylist(upserts, arrow), pa.Table.from_pylist(deletes, key),
        tuple(fills),
    )  # fmt: skip


def _check(made: Any, data: st.DataObject, change: Callable[[Any, Oracle], NetChanges]) -> None:
    table, oracle = _begin(made)
    for _ in range(data.draw(st.integers(1, 4))):
        changes = change(data, oracle)
        oracle.commits += 1
        table.apply(changes, at(oracle.commits))
        assert oracle.differences() == []


@given(data=st.data())
@FEW
def test_keyed_changes_moved_keys_and_unsent_values_4_6(
    keyed: tuple[PostgresTable, Oracle, Database], data: st.DataObject
) -> None:
    """Invariants 4 and 6."""
    _check(keyed, data, _keyed_change)


@given(data=st.data())
@settings(FEW, max_examples=20)
def test_a_batch_in_parts_is_one_commit_in_which_later_parts_find_earlier_ones_4_6_11(
    keyed: tuple[PostgresTable, Oracle, Database], data: st.DataObject
) -> None:
    """Invariants 4, 6 and 11; an unsent value may be one that an earlier part brought."""
    table, oracle = _begin(keyed)
    for _ in range(data.draw(st.integers(1, 2))):
        before = oracle.connection.execute("select count(*) from shop.customers").fetchone()

        def parts(count: int, unseen: object = before) -> Iterator[NetChanges]:
            for _ in range(count):
                yield _keyed_change(data, oracle)
                rows = oracle.connection.execute("select count(*) from shop.customers")
                assert rows.fetchone() == unseen

        oracle.commits += 1
        empty = NetChanges(KEYED, _EMPTY, _EMPTY.select(["a", "b"]))
        table.apply(empty, at(oracle.commits), parts(data.draw(st.integers(1, 4))))
        assert oracle.differences() == []


@given(data=st.data())
@FEW
def test_a_key_that_may_be_deferred_serves_as_well(
    deferrable: tuple[PostgresTable, Oracle, Database], data: st.DataObject
) -> None:
    _check(deferrable, data, _keyed_change)


@given(data=st.data())
@FEW
def test_a_table_without_a_key_is_a_multiset(
    keyless: tuple[PostgresTable, Oracle, Database], data: st.DataObject
) -> None:
    """Each delete takes exactly one equal row (conformance: no key, with duplicates)."""
    table, oracle = _begin(keyless, KEYLESS)
    whole = st.tuples(KEYS, ROWS).map(lambda kr: {"a": kr[0][0], "b": kr[0][1], **kr[1]})
    standing: list[dict[str, Any]] = []
    arrow = KEYLESS.arrow()
    for _ in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(0, len(standing)))
        gone = [standing.pop(data.draw(st.integers(0, len(standing) - 1))) for _ in range(count)]
        come = data.draw(st.lists(whole, max_size=5))
        come += come[: data.draw(st.integers(0, 2))]
        for row in gone:
            oracle.delete_one(row)
        for row in come:
            oracle.insert(row)
        standing += come
        oracle.commits += 1
        changes = NetChanges(
            KEYLESS, pa.Table.from_pylist(come, arrow), pa.Table.from_pylist(gone, arrow)
        )
        table.apply(changes, at(oracle.commits))
        assert oracle.differences() == []


@given(data=st.data())
@settings(FEW, max_examples=20)
def test_marked_rows_stay_and_the_others_are_the_source_s(
    marking: tuple[PostgresTable, Oracle, Database], data: st.DataObject
) -> None:
    table, oracle = _begin(marking)
    ever: set[tuple[int, str]] = set()
    for _ in range(data.draw(st.integers(1, 4))):
        changes = _keyed_change(data, oracle)
        ever |= set(oracle.keys())
        oracle.commits += 1
        table.apply(changes, at(oracle.commits))
        live = "(select * from shop.customers where _deleted_at is null) live"
        assert oracle.differences(live) == []
        assert {
            (a, b) for a, b in oracle.connection.execute("select a, b from shop.customers")
        } >= ever


@pytest.fixture(scope="module")
def marking(server_dsn: str) -> Iterator[tuple[PostgresTable, Oracle, Database]]:
    with twins(server_dsn, KEYED, Delivery(on_delete=OnDelete.MARK)) as made:
        yield made
