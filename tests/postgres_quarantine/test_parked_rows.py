"""What becomes of parked rows: newer changes replace them, people look at, retry and drop them."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from parking_lot import LOG, Kept, Maker

from headrace.connectors.postgres import quarantine
from headrace.errors import QuarantineFullError
from headrace.model import Fill, Rejected, TableId
from headrace.testing.database import Database

POSITIVE = "create table t (id int8 primary key, v int check (v > 0))"
COLUMNS = {"id": pa.int64(), "v": pa.int32()}


@pytest.fixture
def kept(database: Database) -> Kept:
    """Rows 1 to 3 stand, 4 and 5 are parked."""
    made = Kept.make(database, POSITIVE, COLUMNS)
    made.apply([{"id": i, "v": 1 if i < 4 else -i} for i in range(1, 6)])
    return made


def keys(kept: Kept) -> list[str | None]:
    return [row.key[0] for row in kept.parked()]


def test_a_later_upsert_of_its_key_supersedes_a_parked_row(kept: Kept) -> None:
    kept.apply([{"id": 4, "v": 40}])
    assert keys(kept) == ["5"]
    assert kept.rows()[-1] == (4, 40)


def test_a_later_upsert_that_is_refused_too_takes_its_place(kept: Kept) -> None:
    kept.apply([{"id": 4, "v": -40}], version=8)
    assert [(r.key, r.version, r.row.column("v")[0].as_py()) for r in kept.parked()] == [
        (("5",), 7, -5),
        (("4",), 8, -40),
    ]


def test_a_later_delete_of_its_key_supersedes_a_parked_row(kept: Kept) -> None:
    kept.apply(deletes=[{"id": 5}])
    assert keys(kept) == ["4"]


def test_a_later_rejected_row_of_its_key_supersedes_a_parked_row(kept: Kept) -> None:
    rejected = Rejected(kept.table([{"id": 4, "v": 0}]), "expect:adult", "not adult")
    kept.apply(rejected=[rejected])
    assert [(r.key[0], r.code) for r in kept.parked()] == [
        ("5", "check_violation"),
        ("4", "expect:adult"),
    ]


def test_a_truncate_supersedes_all_of_its_table_alone(kept: Kept, database: Database) -> None:
    other = Kept.make(database, POSITIVE.replace("table t", "table u"), COLUMNS, table="u")
    other.apply([{"id": 1, "v": -1}])
    kept.apply([{"id": 9, "v": 9}], truncate=True)
    assert (kept.rows(), kept.parked()) == ([(9, 9)], [])
    assert len(other.parked()) == 1


def test_superseding_and_applying_are_one_transaction(kept: Kept) -> None:
    with kept.database.connect() as connection:
        maker = Maker(connection, kept)
        connection.autocommit = False
        maker.apply(kept.changes([{"id": 4, "v": 40}, {"id": 6, "v": -6}]))
        connection.rollback()
    assert keys(kept) == ["4", "5"]
    assert len(kept.rows()) == 3


def test_a_key_of_several_columns_is_superseded_by_the_whole_of_it(database: Database) -> None:
    ddl = "create table t (a text, b date, v int check (v > 0), primary key (a, b))"
    columns = {"a": pa.string(), "b": pa.date32(), "v": pa.int32()}
    kept = Kept.make(database, ddl, columns, key=("a", "b"))
    days = [date(2024, 1, 31), date(2024, 2, 1)]
    kept.apply([{"a": "x", "b": day, "v": 0} for day in days])
    kept.apply([{"a": "x", "b": days[1], "v": 1}, {"a": "2024-01-31", "b": days[0], "v": 1}])
    assert [row.key for row in kept.parked()] == [("x", "2024-01-31")]


def test_of_a_table_without_a_key_a_delete_takes_a_parked_row_before_one_that_stands(
    database: Database,
) -> None:
    kept = Kept.make(database, "create table t (id int8, v int unique)", COLUMNS, key=())
    kept.apply([{"id": 1, "v": 5}, {"id": 2, "v": 6}])
    kept.apply([{"id": 1, "v": 5}, {"id": None, "v": 6}])
    assert len(kept.parked()) == 2
    kept.apply(deletes=[{"id": 1, "v": 5}])
    assert (kept.rows(), len(kept.parked())) == ([(1, 5), (2, 6)], 1)
    kept.apply(deletes=[{"id": 1, "v": 5}, {"id": None, "v": 6}])
    assert (kept.rows(), kept.parked()) == ([(2, 6)], [])


def test_a_value_that_was_not_sent_is_taken_from_the_parked_row(database: Database) -> None:
    """DESIGN §13, invariant 6: the table holds an older value, or none."""
    ddl = "create table t (id int8 primary key, v int check (v > 0), big text)"
    kept = Kept.make(database, ddl, {**COLUMNS, "big": pa.string()})
    kept.apply([{"id": 1, "v": 1, "big": "old"}])
    kept.apply([{"id": 1, "v": 0, "big": "new"}, {"id": 2, "v": 0, "big": "only"}])
    changes = kept.changes([{"id": 3, "v": 3, "big": "x"}, {"id": 2, "v": 2}, {"id": 1, "v": 1}])
    fill = Fill(("big",), np.array([2, 1]), kept.table([{"id": 1}, {"id": 2}], ["id"]))
    with kept.database.connect() as connection, connection.transaction():
        cursor = connection.cursor()
        left = quarantine.supersede(
            cursor,
            kept.place,
            type(changes)(kept.schema, changes.upserts, changes.deletes, (fill,)),
        )
    assert left.upserts.column("big").to_pylist() == ["x", "only", "new"]
    assert left.fills == ()
    assert kept.parked() == []


def test_a_parked_row_keeps_the_exact_values_of_every_type(database: Database) -> None:
    ddl = """create table t (id int8 primary key, v int check (v > 0), a numeric, b bytea,
                             c timestamptz, d text[], e jsonb, f float8)"""
    columns = {
        **COLUMNS,
        "a": pa.decimal128(38, 10),
        "b": pa.binary(),
        "c": pa.timestamp("us", "UTC"),
        "d": pa.list_(pa.string()),
        "e": pa.struct([("x", pa.int64()), ("y", pa.list_(pa.string()))]),
        "f": pa.float64(),
    }
    kept = Kept.make(database, ddl, columns)
    row = {
        "id": 1,
        "v": 0,
        "a": Decimal("1234567890.0987654321"),
        "b": b"\x00\xff",
        "c": datetime(2024, 1, 31, 12, 0, 0, 1, UTC),
        "d": ["a", None, ""],
        "e": {"x": 1 << 60, "y": ["é"]},
        "f": 0.1,
    }
    kept.apply([row])
    (parked,) = kept.parked()
    assert parked.row.to_pylist() == [row]
    assert parked.row.schema == kept.schema.arrow()
    shown = parked.values()
    assert shown["b"] == "\\x00ff"
    assert shown["e"] == '{"x": 1152921504606846976, "y": ["é"]}'
    database.execute("alter table t drop constraint t_v_check")
    assert kept.retry().applied == 1
    found = database.execute("select a, b, c, d, e, f from t")
    assert found == [tuple(row[name] for name in "abcdef")]


def test_rejected_rows_are_parked_and_applied_as_they_are_on_a_persons_word(kept: Kept) -> None:
    reasons = [("expect:adult", 6), ("null_key", None), ("duplicate_key", 7)]
    rejected = [
        Rejected(kept.table([{"id": i, "v": 1}]), code, f"because of {code}") for code, i in reasons
    ]
    assert kept.apply(rejected=rejected) == 3
    parked = {row.code: row for row in kept.parked()}
    assert [parked[code].key for code, _ in reasons] == [("6",), (None,), ("7",)]
    assert parked["null_key"].sqlstate == ""
    done = kept.retry([parked[code].id for code, _ in reasons])
    assert done.applied == 2
    assert "null value" in done.left[parked["null_key"].id]
    assert [row[0] for row in kept.rows()] == [1, 2, 3, 6, 7]


def test_of_rows_with_one_key_a_person_chooses_and_the_others_go(kept: Kept) -> None:
    rows = kept.table([{"id": 6, "v": 60}, {"id": 6, "v": 61}, {"id": 6, "v": 62}])
    kept.apply(rejected=[Rejected(rows, "duplicate_key", "three rows of key 6")])
    ids = [row.id for row in kept.parked() if row.code == "duplicate_key"]
    done = kept.retry()
    assert done.applied == 0
    assert all("several parked rows" in done.left[number] for number in ids)
    assert [row.code for row in kept.parked() if row.id in ids] == ["duplicate_key"] * 3
    assert kept.retry([ids[1]]).applied == 1
    assert kept.rows()[-1] == (6, 61)
    assert keys(kept) == ["4", "5"]


def test_more_rejected_rows_than_the_budget_stop_the_table(database: Database) -> None:
    kept = Kept.make(database, POSITIVE, COLUMNS, max_rows=2)
    rows = kept.table([{"id": i, "v": 1} for i in range(3)])
    with pytest.raises(QuarantineFullError, match="too young"):
        kept.apply([{"id": 9, "v": 9}], rejected=[Rejected(rows, "expect:adult", "too young")])
    assert (kept.rows(), kept.parked()) == ([], [])


def test_a_retry_keeps_the_rest_with_their_new_reasons(kept: Kept, database: Database) -> None:
    database.execute("alter table t drop constraint t_v_check, add constraint u check (v > -5)")
    done = kept.retry()
    assert done.applied == 1
    (left,) = kept.parked()
    assert done.left == {left.id: left.reason}
    assert (left.key, left.constraint, left.attempts) == (("5",), "u", 2)
    assert left.tried_at > left.parked_at
    assert kept.rows()[-1] == (4, -4)


def test_a_retry_takes_the_columns_of_now(kept: Kept, database: Database) -> None:
    database.execute(
        "alter table t drop constraint t_v_check, alter v type int8, add w text default 'd'"
    )
    wider = kept.with_columns({"id": pa.int64(), "v": pa.int64(), "w": pa.string()})
    assert wider.retry().applied == 2
    assert wider.rows()[-2:] == [(4, -4, None), (5, -5, None)]


def test_a_retry_of_a_value_that_no_longer_fits_is_told(kept: Kept, database: Database) -> None:
    database.execute("alter table t drop constraint t_v_check, alter v type date using null")
    changed = kept.with_columns({"id": pa.int64(), "v": pa.timestamp("us")})
    done = changed.retry()
    assert done.applied == 0
    assert {row.code for row in kept.parked()} == {"type_changed"}


def test_rows_are_counted_found_and_dropped_by_table_pipeline_and_id(
    kept: Kept, database: Database
) -> None:
    other = Kept.make(database, POSITIVE.replace("table t", "table u"), COLUMNS, table="u")
    other.apply([{"id": 1, "v": -1}])
    with database.connect() as connection:
        cursor = connection.cursor()
        assert quarantine.counts(cursor) == {TableId("public", "t"): 2, TableId("public", "u"): 1}
        assert quarantine.counts(cursor, "another") == {}
        every = quarantine.find(cursor)
        assert [(r.table.name, r.key, r.log_id) for r in every] == [
            ("t", ("4",), LOG),
            ("t", ("5",), LOG),
            ("u", ("1",), LOG),
        ]
        assert quarantine.find(cursor, limit=1) == every[:1]
        assert quarantine.find(cursor, ids=[every[2].id]) == every[2:]
        assert quarantine.find(cursor, ids=[]) == []
        assert quarantine.find(cursor, pipeline="another") == []
        assert every[0].replay == f"headrace quarantine retry {every[0].id}"
        assert quarantine.forget(cursor, [every[0].id, 1 << 40]) == 1
        quarantine.clear(cursor, TableId("public", "u"))
        assert quarantine.counts(cursor) == {TableId("public", "t"): 1}
