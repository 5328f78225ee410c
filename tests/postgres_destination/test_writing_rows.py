"""What a batch does to the rows of a table, and what it leaves alone."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from target_place import LOG, Place, at, net, schema_of

from headrace.errors import DestinationError, DivergedError, QuarantineFullError
from headrace.model import DELETED_AT, Column, Delivery, Fill, NetChanges, OnDelete, Rejected

SCHEMA = schema_of({"id": pa.int64(), "v": pa.string()})
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
VERSIONS = "select xmin::text, id from shop.customers order by id"

EVERY = {
    "id": pa.int64(), "i": pa.int32(), "t": pa.string(), "n": pa.decimal128(10, 2),
    "f": pa.float64(), "j": pa.struct([("a", pa.int64())]), "b": pa.binary(),
    "l": pa.list_(pa.string()), "at": pa.timestamp("us", "UTC"),
}  # fmt: skip
FULL = {
    "id": 1, "i": 1, "t": "a", "n": Decimal("1.50"), "f": float("nan"), "j": {"a": 1}, "b": b"x",
    "l": ["a", None], "at": NOON,
}  # fmt: skip


def test_equal_rows_are_not_written_again(place: Place) -> None:
    """Conformance: no-op MERGE. Bug 9: neither does a row get a sync time that would change it."""
    schema = schema_of(EVERY)
    table = place.prepared(schema)
    nulls = {"id": 2}
    table.apply(net(schema, [FULL, nulls]), at(1))
    before = place.rows(VERSIONS)
    table.apply(net(schema, [FULL, nulls]), at(2))
    assert place.rows(VERSIONS) == before
    assert table.standing() == at(2)
    table.apply(net(schema, [{**FULL, "f": 0.0}, nulls]), at(3))
    after = place.rows(VERSIONS)
    assert after[0] != before[0]
    assert after[1] == before[1]


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("text", "a", "A"),
        ("citext", "a", "A"),
        ("json", '{"a":1}', '{"a": 1}'),
        ("numeric", "1.0", "1.00"),
        ("double precision", 0.0, -0.0),
        ("point", "(1,2)", "(1,3)"),
        ("xml", "<a/>", "<b/>"),
    ],
)
def test_a_row_that_differs_in_the_least_is_written(
    place: Place, kind: str, one: Any, other: Any
) -> None:
    """Values that their type calls equal (citext, numeric, -0) are not the same to a reader."""
    _make_type(place, kind)
    arrow = pa.float64() if isinstance(one, float) else pa.string()
    schema = schema_of([Column("id", pa.int64(), "bigint", 1), Column("v", arrow, kind, 2)])
    table = place.prepared(schema, Delivery(native_types=True))
    table.apply(net(schema, [{"id": 1, "v": one}]), at(1))
    table.apply(net(schema, [{"id": 1, "v": other}]), at(2))
    assert place.rows("select v::text from shop.customers") == [(_printed(other),)]


def _make_type(place: Place, kind: str) -> None:
    if kind == "citext":
        names = "select name from pg_available_extensions where name = 'citext'"
        if not place.rows(names):
            pytest.skip("this build of Postgres has no citext")
        place.database.execute("create extension citext")
    if kind == "xml":
        try:
            place.database.execute("select '<a/>'::xml")
        except Exception:
            pytest.skip("this build of Postgres has no xml")


def _printed(value: Any) -> str:
    return "-0" if value == 0 and isinstance(value, float) else str(value)


def test_the_last_of_delete_and_insert_of_one_key_decides(place: Place) -> None:
    """Bug 4: the order is the source's; the row that was deleted and came back is there."""
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [{"id": 1, "v": "first"}]), at(1))
    table.apply(net(SCHEMA, [{"id": 1, "v": "again"}]), at(2))
    assert place.rows() == [(1, "again")]


def test_a_moved_key_leaves_no_stale_row(place: Place) -> None:
    """Bug 5: the row under the old key goes in the same commit."""
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [{"id": 1, "v": "x"}]), at(1))
    table.apply(net(SCHEMA, [{"id": 2, "v": "x"}], [{"id": 1}]), at(2))
    assert place.rows() == [(2, "x")]


def test_a_table_gets_no_columns_that_the_source_lacks(place: Place) -> None:
    """Bug 6: nothing depends on technical columns, because there are none."""
    place.prepared(SCHEMA)
    columns = "select attname from pg_attribute where attrelid = 'shop.customers'::regclass"
    assert place.rows(f"{columns} and attnum > 0 order by attnum") == [("id",), ("v",)]


def test_unsent_values_come_from_the_row_that_holds_them_6(place: Place) -> None:
    """Invariant 6: also when rows swap their keys, which no order of single rows could do."""
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [{"id": 1, "v": "one"}, {"id": 2, "v": "two"}]), at(1))
    fill = Fill(("v",), np.array([0, 1]), pa.table({"id": [2, 1]}))
    table.apply(net(SCHEMA, [{"id": 1}, {"id": 2}], fills=[fill]), at(2))
    assert place.rows() == [(1, "two"), (2, "one")]


def test_unsent_values_of_a_row_that_is_not_there_are_not_invented_6(place: Place) -> None:
    """Invariant 6."""
    table = place.prepared(SCHEMA)
    fill = Fill(("v",), np.array([0]), pa.table({"id": [7]}))
    with pytest.raises(DivergedError, match="lacks 1 rows that were updated"):
        table.apply(net(SCHEMA, [{"id": 7}], fills=[fill]), at(1))
    assert table.standing() is None


def test_a_refused_row_with_unsent_values_is_parked_whole_6_12(place: Place) -> None:
    """Invariants 6 and 12: what was not sent stands in the payload, exactly."""
    kinds = {
        "id": pa.int64(), "v": pa.string(), "n": pa.int32(), "b": pa.binary(),
        "d": pa.decimal128(9, 2), "l": pa.list_(pa.string()), "f": pa.bool_(),
    }  # fmt: skip
    schema = schema_of(kinds)
    table = place.prepared(schema)
    row = {"id": 1, "v": "long", "n": 1, "b": b"\x00", "d": Decimal("1.50"), "l": ["a"], "f": True}
    table.apply(net(schema, [row]), at(1))
    place.database.execute("alter table shop.customers add check (n < 10)")
    fill = Fill(("v", "b", "d", "l", "f"), np.array([1]), pa.table({"id": [1]}))
    changes = net(schema, [{**row, "id": 2, "n": 3}, {"id": 1, "n": 99}], fills=[fill])
    table.apply(changes, at(2))
    (parked,) = place.destination.parked()
    assert parked.row.to_pylist() == [{**row, "n": 99}]
    assert [r[0] for r in place.rows()] == [1, 2]


def test_unsent_values_of_a_parked_row_come_from_its_parked_version_6_12(place: Place) -> None:
    """Invariants 6 and 12: a row that was refused and is then cured arrives whole."""
    schema = schema_of({"id": pa.int64(), "v": pa.string(), "n": pa.int32()})
    table = place.prepared(schema)
    place.database.execute("alter table shop.customers add check (n < 10)")
    rows = [{"id": 1, "v": "one", "n": 99}, {"id": 2, "v": "two", "n": 2}]
    table.apply(net(schema, rows), at(1))
    fill = Fill(("v",), np.array([0, 1]), pa.table({"id": [2, 1]}))
    table.apply(net(schema, [{"id": 2, "n": 3}, {"id": 1, "n": 5}], fills=[fill]), at(2))
    assert place.rows() == [(1, "one", 5), (2, "two", 3)]
    assert place.destination.parked() == []


def test_a_parked_row_is_newer_than_the_one_that_the_table_holds_6_12(place: Place) -> None:
    """Invariants 6 and 12: what was not sent is what the refused version said, not the table's."""
    schema = schema_of({"id": pa.int64(), "v": pa.string(), "n": pa.int32()})
    table = place.prepared(schema)
    place.database.execute("alter table shop.customers add check (n < 10)")
    table.apply(net(schema, [{"id": 1, "v": "old", "n": 1}]), at(1))
    table.apply(net(schema, [{"id": 1, "v": "new", "n": 99}]), at(2))
    fill = Fill(("v",), np.array([0]), pa.table({"id": [1]}))
    table.apply(net(schema, [{"id": 1, "n": 5}], fills=[fill]), at(3))
    assert place.rows() == [(1, "new", 5)]
    assert place.destination.parked() == []


def test_refused_rows_are_parked_and_the_others_applied_12(place: Place) -> None:
    """Invariant 12. Conformance: null byte in text."""
    schema = schema_of({"id": pa.int64(), "v": pa.string(), "at": pa.timestamp("us")})
    table = place.prepared(schema, Delivery(types={"v": "varchar(3)"}))
    early = pa.scalar(-(2**63) + 1, pa.int64()).cast(pa.timestamp("us"))
    rows = pa.table(
        {
            "id": pa.array(range(6), pa.int64()),
            "v": ["ok", "a\0b", "long", "ok", "öß€", None],
            "at": pa.array([None, None, None, early, None, None], pa.timestamp("us")),
        }
    )
    table.apply(NetChanges(schema, rows, net(schema).deletes), at(1))
    assert [row[:2] for row in place.rows()] == [(0, "ok"), (4, "öß€"), (5, None)]
    codes = {row.key: row.code for row in place.destination.parked()}
    assert codes == {
        ("1",): "character_not_in_repertoire",
        ("2",): "string_data_right_truncation",
        ("3",): "datetime_field_overflow",
    }
    assert place.destination.quarantined_counts() == {table.name: 3}


def test_over_the_budget_nothing_is_applied_12(place: Place) -> None:
    """Invariant 12."""
    table = place.prepared(SCHEMA, Delivery(quarantine_rows=1))
    bad = [{"id": n, "v": "\0"} for n in range(2)]
    with pytest.raises(QuarantineFullError):
        table.apply(net(SCHEMA, [*bad, {"id": 9, "v": "good"}]), at(1))
    assert place.rows() == []
    assert table.standing() is None
    assert place.destination.parked() == []


def test_rejected_rows_are_parked_and_can_be_tried_again(place: Place) -> None:
    table = place.prepared(SCHEMA)
    rows = pa.Table.from_pylist([{"id": 1, "v": "x"}], SCHEMA.arrow())
    rejected = Rejected(rows, "duplicate_key", "two rows have this key")
    changes = net(SCHEMA)
    table.apply(NetChanges(SCHEMA, changes.upserts, changes.deletes, rejected=(rejected,)), at(1))
    (parked,) = place.destination.parked()
    assert (parked.code, parked.version, parked.log_id) == ("duplicate_key", 1, LOG)
    done = table.retry([parked.id])
    assert done.applied == 1
    assert place.rows() == [(1, "x")]
    assert place.destination.parked() == []


def test_a_row_that_waited_for_its_parent_comes_with_the_next_batch(place: Place) -> None:
    """Conformance: failed foreign key."""
    table = place.prepared(SCHEMA)
    place.database.execute(
        "create table shop.parent (id bigint primary key);"
        "alter table shop.customers add foreign key (id) references shop.parent"
        " deferrable initially deferred"
    )
    table.apply(net(SCHEMA, [{"id": 1, "v": "x"}]), at(1))
    assert place.rows() == []
    place.database.execute("insert into shop.parent values (1)")
    table.apply(net(SCHEMA), at(2))
    assert place.rows() == [(1, "x")]


def test_marked_rows_say_when_the_source_lost_them(place: Place) -> None:
    table = place.prepared(SCHEMA, Delivery(on_delete=OnDelete.MARK))
    table.apply(net(SCHEMA, [{"id": 1, "v": "x"}, {"id": 2, "v": "y"}]), at(1))
    table.apply(net(SCHEMA, deletes=[{"id": 1}], commit_ts=NOON), at(2))
    later = NOON.replace(hour=13)
    table.apply(net(SCHEMA, deletes=[{"id": 1}], commit_ts=later), at(3))
    shown = f"select id, v, {DELETED_AT} from shop.customers order by id"
    assert place.rows(shown) == [(1, "x", NOON), (2, "y", None)]
    table.apply(net(SCHEMA, [{"id": 1, "v": "x"}]), at(4))
    assert place.rows(shown) == [(1, "x", None), (2, "y", None)]
    table.apply(net(SCHEMA, [{"id": 3}], truncate=True, commit_ts=later), at(5))
    assert place.rows(shown) == [(1, "x", later), (2, "y", later), (3, None, None)]


def test_marks_reach_one_of_several_equal_rows_without_a_key(place: Place) -> None:
    schema = schema_of({"v": pa.string()}, [])
    table = place.prepared(schema, Delivery(on_delete=OnDelete.MARK))
    table.apply(net(schema, [{"v": "x"}] * 3), at(1))
    table.apply(net(schema, deletes=[{"v": "x"}], commit_ts=NOON), at(2))
    table.apply(net(schema, deletes=[{"v": "x"}], commit_ts=NOON), at(3))
    shown = f"select {DELETED_AT} from shop.customers order by 1 nulls last"
    assert place.rows(shown) == [(NOON,), (NOON,), (None,)]


def test_ignored_deletes_take_nothing_away(place: Place) -> None:
    table = place.prepared(SCHEMA, Delivery(on_delete=OnDelete.IGNORE))
    table.apply(net(SCHEMA, [{"id": 1, "v": "x"}]), at(1))
    table.apply(net(SCHEMA, deletes=[{"id": 1}]), at(2))
    table.apply(net(SCHEMA, truncate=True), at(3))
    assert place.rows() == [(1, "x")]


def test_a_table_of_key_columns_only_takes_upserts(place: Place) -> None:
    schema = schema_of({"id": pa.int64()})
    table = place.prepared(schema)
    table.apply(net(schema, [{"id": 1}]), at(1))
    table.apply(net(schema, [{"id": 1}, {"id": 2}], [{"id": 3}]), at(2))
    assert place.rows() == [(1,), (2,)]


def test_a_partitioned_table_takes_rows(place: Place) -> None:
    place.database.execute(
        "create schema shop; create table shop.customers (id bigint primary key, v text)"
        " partition by range (id); create table shop.low partition of shop.customers"
        " for values from (0) to (10); create table shop.high partition of shop.customers"
        " for values from (10) to (20)"
    )
    table = place.prepared(SCHEMA)
    table.apply(
        net(SCHEMA, [{"id": 1, "v": "a"}, {"id": 11, "v": "b"}, {"id": 99, "v": "c"}]), at(1)
    )
    table.apply(net(SCHEMA, [{"id": 12, "v": "b"}], [{"id": 11}]), at(2))
    assert place.rows() == [(1, "a"), (12, "b")]
    assert [row.key for row in place.destination.parked()] == [("99",)]
    assert table.count() > 0


def test_columns_that_a_trigger_or_the_user_fills_stay(place: Place) -> None:
    table = place.prepared(SCHEMA)
    place.database.execute("alter table shop.customers add touched int not null default 0")
    table.apply(net(SCHEMA, [{"id": 1, "v": "x"}]), at(1))
    place.database.execute("update shop.customers set touched = 5")
    table.apply(net(SCHEMA, [{"id": 1, "v": "y"}]), at(2))
    assert place.rows() == [(1, "y", 5)]


def test_every_batch_is_paced_before_it_is_sent(place: Place) -> None:
    sent: list[tuple[int, int]] = []
    place.pace = lambda rows, size: sent.append((rows, size))
    table = place.prepared(SCHEMA)
    rows = [{"id": n, "v": "x" * 100} for n in range(100_000)]
    table.apply(net(SCHEMA, rows, [{"id": -1}]), at(1))
    assert sum(rows for rows, _ in sent) == 100_001
    assert max(size for _, size in sent) < 8 << 20
    assert len(sent) > 2
    assert table.count() == 100_000


def test_rows_are_counted_without_reading_a_large_table(place: Place) -> None:
    table = place.prepared(SCHEMA)
    assert table.count() == 0
    table.apply(net(SCHEMA, [{"id": 1}]), at(1))
    assert table.count() == 1
    place.database.execute(
        "insert into shop.customers select i, repeat('x', 200) from generate_series(2, 100000) i;"
        "analyze shop.customers"
    )
    assert abs(table.count() - 100_000) < 10_000


def test_an_error_names_the_server_and_no_secret_14(place: Place) -> None:
    """Invariant 14."""
    away = Place(place.database, parts={"port": 1, "password": "hunter2"})
    with pytest.raises(DestinationError) as refused:
        away.table().standing()
    assert refused.value.transient
    assert "hunter2" not in str(refused.value)
    assert place.database.name in refused.value.message


def test_a_query_is_answered_exactly_and_can_change_nothing(place: Place) -> None:
    table = place.prepared(SCHEMA)
    table.apply(net(SCHEMA, [{"id": 1, "v": "x"}]), at(1))
    found = place.destination.query(
        "select id, v, 1.10::numeric(5,2) n, '{1,2}'::int[] l, 'infinity'::date d,"
        " '{}'::jsonb j from shop.customers"
    )
    assert found.to_pylist() == [
        {"id": 1, "v": "x", "n": Decimal("1.10"), "l": [1, 2], "d": "infinity", "j": "{}"}
    ]
    with pytest.raises(DestinationError, match="read-only"):
        place.destination.query("delete from shop.customers returning id")
    with pytest.raises(DestinationError):
        place.destination.query("select nonsense")
