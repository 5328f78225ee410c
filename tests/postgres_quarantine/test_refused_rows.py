"""Rows that a destination refuses, for every reason there is: the others of their batch stand."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from parking_lot import Kept, Maker

from headrace.testing.database import Database


@dataclass(frozen=True)
class Case:
    """A column, values that it takes and one that it refuses, and what makes it take that one."""

    column: str
    arrow: pa.DataType
    good: tuple[Any, ...]
    bad: Any
    code: str
    sqlstate: str
    cure: str = ""
    before: str = ""
    after: str = ""
    reason: str = ""
    constraint: str = ""
    stands: Any = None  # what a reader then finds, where it is not `bad`


LONG = secrets.token_hex(10_000)  # does not compress into an index entry
RAISES = """
create function judge() returns trigger language plpgsql as $$
begin if new.v = 'evil' then raise exception 'we want no %', new.v; end if; return new; end $$;
create trigger judge before insert or update on t for each row execute function judge()
"""

CASES = {
    "numeric overflow": Case(
        "numeric(4,2)", pa.decimal128(12, 2), (Decimal("1.50"),), Decimal("123456.78"),
        "numeric_value_out_of_range", "22003", "alter table t alter v type numeric(12,2)",
        reason="numeric field overflow (A field with precision 4, scale 2 must round to",
    ),
    "integer overflow": Case(
        "smallint", pa.int64(), (1, -32768), 70_000,
        "numeric_value_out_of_range", "22003", "alter table t alter v type bigint",
        reason="smallint out of range",
    ),
    "over-long varchar": Case(
        "varchar(3)", pa.string(), ("abc", ""), "abcd",
        "string_data_right_truncation", "22001", "alter table t alter v type varchar(4)",
        reason="value too long for type character varying(3)",
    ),
    "invalid enum value": Case(
        "mood", pa.string(), ("sad", "ok"), "happy",
        "invalid_text_representation", "22P02", "alter type mood add value 'happy'",
        before="create type mood as enum ('sad', 'ok')", reason='enum mood: "happy"',
    ),
    "duplicate unique value": Case(
        "text unique", pa.string(), ("a", "b"), "taken",
        "unique_violation", "23505", "delete from t where id = 0",
        after="insert into t values (0, 'taken')", reason="(Key (v)=(taken) already exists.)",
        constraint="t_v_key",
    ),
    "failed CHECK": Case(
        "int constraint positive check (v > 0)", pa.int32(), (1, 2), -1,
        "check_violation", "23514", "alter table t drop constraint positive",
        reason='violates check constraint "positive"', constraint="positive",
    ),
    "failed foreign key": Case(
        "int references parent", pa.int32(), (1, 2), 3,
        "foreign_key_violation", "23503", "insert into parent values (3)",
        before="create table parent (id int primary key); insert into parent values (1), (2)",
        reason='(Key (v)=(3) is not present in table "parent".)', constraint="t_v_fkey",
    ),
    "failed foreign key that is deferred": Case(
        "int references parent deferrable initially deferred", pa.int32(), (1, 2), 3,
        "foreign_key_violation", "23503", "insert into parent values (3)",
        before="create table parent (id int primary key); insert into parent values (1), (2)",
        constraint="t_v_fkey",
    ),
    "NOT NULL": Case(
        "int not null", pa.int32(), (1, 2), None,
        "not_null_violation", "23502", "alter table t alter v drop not null",
        reason='null value in column "v"',
    ),
    "exclusion constraint": Case(
        "int4range, exclude using gist (v with &&)", pa.string(), ("[1,5)", "[5,7)"), "[20,30)",
        "exclusion_violation", "23P01", "delete from t where id = 0",
        after="insert into t values (0, '[25,26)')", constraint="t_v_excl",
        stands=psycopg.types.range.Range(20, 30),
    ),
    "invalid uuid": Case(
        "uuid", pa.string(), ("6f7f6a0e-0000-4000-8000-000000000000",), "no uuid",
        "invalid_text_representation", "22P02", "alter table t alter v type text",
        reason='invalid input syntax for type uuid: "no uuid"',
    ),
    "invalid jsonb": Case(
        "jsonb", pa.string(), ('{"a": 1}',), "{a}",
        "invalid_text_representation", "22P02", "alter table t alter v type text",
    ),
    "null character in jsonb": Case(
        "jsonb", pa.string(), ('"a"',), '"\\u0000"',
        "untranslatable_character", "22P05", "alter table t alter v type text",
    ),
    "invalid inet": Case(
        "inet", pa.string(), ("10.0.0.1",), "10.0.0.256",
        "invalid_text_representation", "22P02", "alter table t alter v type text",
    ),
    "date that no calendar has": Case(
        "date", pa.string(), ("2024-02-29",), "2023-02-29",
        "datetime_field_overflow", "22008", "alter table t alter v type text",
    ),
    "domain constraint": Case(
        "even", pa.int32(), (2, 4), 5,
        "check_violation", "23514", "alter domain even drop constraint by_two",
        before="create domain even as int constraint by_two check (value % 2 = 0)",
        constraint="by_two",
    ),
    "trigger that raises": Case(
        "text", pa.string(), ("good",), "evil",
        "raise_exception", "P0001", "drop trigger judge on t",
        after=RAISES, reason="we want no evil",
    ),
    "value too long for its index": Case(
        "text", pa.string(), ("a", "b"), LONG,
        "program_limit_exceeded", "54000", "drop index wide",
        after="create index wide on t (v)",
    ),
}  # fmt: skip


def made(database: Database, case: Case) -> Kept:
    ddl = f"{case.before}; create table t (id int8 primary key, v {case.column}); {case.after}"
    return Kept.make(database, ddl, {"id": pa.int64(), "v": case.arrow})


def batch(case: Case) -> list[dict[str, Any]]:
    values = [*case.good, case.bad, *([] if "unique" in case.column else case.good)]
    if "exclude" in case.column:
        values = [*case.good, case.bad]
    return [{"id": number, "v": value} for number, value in enumerate(values, 1)]


@pytest.mark.parametrize("name", CASES)
def test_a_refused_row_is_parked_with_its_reason_and_the_others_stand(
    database: Database, name: str
) -> None:
    """DESIGN §13, invariant 12."""
    case = CASES[name]
    kept = made(database, case)
    rows = batch(case)
    bad = len(case.good) + 1
    assert kept.apply(rows, version=42) == 1
    there = {number for (number,) in database.execute("select id from t where id > 0")}
    assert there == {row["id"] for row in rows} - {bad}
    (parked,) = kept.parked()
    assert (parked.code, parked.sqlstate, parked.version) == (case.code, case.sqlstate, 42)
    assert (parked.key, parked.attempts) == ((str(bad),), 1)
    assert case.reason in parked.reason
    assert parked.constraint == case.constraint
    assert parked.row.to_pylist() == [{"id": bad, "v": case.bad}]


@pytest.mark.parametrize("name", CASES)
def test_a_parked_row_is_applied_when_its_cause_is_cured(database: Database, name: str) -> None:
    case = CASES[name]
    kept = made(database, case)
    kept.apply(batch(case))
    (parked,) = kept.parked()
    failed = kept.retry()
    assert (failed.applied, list(failed.left)) == (0, [parked.id])
    assert [row.attempts for row in kept.parked()] == [2]
    database.execute(case.cure)
    assert kept.retry([parked.id]).applied == 1
    found = database.execute("select v from t where id = %s", [len(case.good) + 1])
    assert found == [(case.bad if case.stands is None else case.stands,)]
    assert kept.parked() == []


def test_a_null_byte_is_parked_exactly_until_a_later_version_mends_it(database: Database) -> None:
    ddl = "create table t (id int8 primary key, v text)"
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.string()})
    assert kept.apply([{"id": 1, "v": "a"}, {"id": 2, "v": "b\0c"}, {"id": 3, "v": "d"}]) == 1
    (parked,) = kept.parked()
    assert (parked.sqlstate, parked.column) == ("22021", "v")
    assert parked.row.column("v").to_pylist() == ["b\0c"]
    assert kept.retry().applied == 0
    kept.apply([{"id": 2, "v": "bc"}])
    assert kept.rows() == [(1, "a"), (2, "bc"), (3, "d")]
    assert kept.parked() == []


def test_a_null_byte_in_a_key_is_parked_and_superseded(database: Database) -> None:
    ddl = "create table t (id text primary key, v text)"
    kept = Kept.make(database, ddl, {"id": pa.string(), "v": pa.string()})
    assert kept.apply([{"id": "a\0", "v": "1"}, {"id": "b", "v": "2"}]) == 1
    assert kept.apply(deletes=[{"id": "a\0"}]) == 1  # a delete with such a key is refused as well
    assert [row.operation.value for row in kept.parked()] == ["delete"]


@pytest.mark.parametrize(
    ("arrow", "column", "number"),
    [
        (pa.date32(), "date", (1 << 31) - 1),  # in the year 5881580
        (pa.date32(), "date", -(1 << 31)),
        (pa.timestamp("us"), "timestamp", -(10**18)),  # 29719 BC
        (pa.timestamp("us", "UTC"), "timestamptz", -(1 << 63)),
    ],
)
def test_a_time_that_postgres_has_not_is_parked_exactly(
    database: Database, arrow: pa.DataType, column: str, number: int
) -> None:
    value = pa.scalar(number, pa.int32() if column == "date" else pa.int64()).cast(arrow)
    good = pa.scalar(19_753, pa.int32()).cast(pa.date32()).cast(arrow).as_py()
    ddl = f"create table t (id int8 primary key, v {column})"
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": arrow})
    values = pa.chunked_array([pa.array([good], arrow), pa.array([value])])
    assert kept.apply(pa.table({"id": [1, 2], "v": values})) == 1
    assert kept.rows() == [(1, good)]
    (parked,) = kept.parked()
    assert parked.sqlstate == "22008"
    assert parked.row.column("v")[0].equals(value)


def test_a_broken_trigger_stops_the_table_and_parks_nothing(database: Database) -> None:
    ddl = """
    create table t (id int8 primary key, v text);
    create function broken() returns trigger language plpgsql as $$
    begin new.nonesuch = 1; return new; end $$;
    create trigger broken before insert on t for each row execute function broken()
    """
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.string()})
    with pytest.raises(psycopg.errors.UndefinedColumn):
        kept.apply([{"id": 1, "v": "a"}])
    assert kept.parked() == []


@pytest.mark.parametrize("state", ["40001", "40P01", "53100", "57014", "55P03", "42501", "XX000"])
def test_what_is_no_rows_fault_is_raised_and_parks_nothing(database: Database, state: str) -> None:
    ddl = f"""
    create table t (id int8 primary key, v text);
    create function judge() returns trigger language plpgsql as $$
    begin if new.id = 2 then raise exception 'no' using errcode = '{state}'; end if;
    return new; end $$;
    create trigger judge before insert on t for each row execute function judge()
    """
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.string()})
    with pytest.raises(psycopg.Error) as raised:
        kept.apply([{"id": 1, "v": "a"}, {"id": 2, "v": "b"}])
    assert raised.value.sqlstate == state
    assert (kept.rows(), kept.parked()) == ([], [])


def test_a_serialization_failure_is_not_quarantined(database: Database) -> None:
    ddl = "create table t (id int8 primary key, v text); insert into t values (1, 'old')"
    kept = Kept.make(database, ddl, {"id": pa.int64(), "v": pa.string()})
    with database.connect() as connection:
        maker = Maker(connection, kept)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.autocommit = False
        connection.execute("select from t")
        database.execute("update t set v = 'other' where id = 1")
        changes = kept.changes([{"id": 1, "v": "new"}, {"id": 2, "v": "b"}])
        with pytest.raises(psycopg.errors.SerializationFailure):
            maker.apply(changes)
        connection.rollback()
    assert (kept.rows(), kept.parked()) == ([(1, "other")], [])
