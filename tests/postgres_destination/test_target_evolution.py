"""A table follows its source's schema, in steps that a plan shows; or it stops, and says why."""

from __future__ import annotations

import threading
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from target_place import Place, at, net, schema_of

from headrace.connectors.postgres import synced_table
from headrace.errors import TableBusyError, UnsupportedSchemaChangeError
from headrace.model import Column, Delivery, SchemaPolicy, TableSchema

ID = Column("id", pa.int64(), "long", 1)
NAME = Column("name", pa.string(), "string", 2)
AGE = Column("age", pa.int32(), "integer", 3)
OLD = schema_of([ID, NAME, AGE])
ROW = {"id": 1, "name": "Ann", "age": 7}


def applied(place: Place, delivery: Delivery | None = None, schema: TableSchema = OLD) -> Any:
    table = place.prepared(schema, delivery)
    table.apply(net(schema, [{k: v for k, v in ROW.items() if k in schema.names}]), at(1))
    return table


def evolved(place: Place, *columns: Column, **delivery: Any) -> Any:
    table = applied(place, Delivery(**delivery))
    table.evolve(schema_of(columns))
    return table


def test_an_added_column_is_added_and_filled_from_then_on(place: Place) -> None:
    city = Column("city", pa.string(), "string", 4)
    table = evolved(place, ID, NAME, AGE, city)
    new = schema_of([ID, NAME, AGE, city])
    table.apply(net(new, [{"id": 2, "city": "Ulm"}]), at(2))
    assert place.rows() == [(1, "Ann", 7, None), (2, None, None, "Ulm")]
    assert table.applied_schema() == new


def test_old_rows_get_the_constant_of_an_added_column(place: Place) -> None:
    table = applied(place)
    new = replace(
        schema_of([ID, NAME, AGE, Column("n", pa.decimal128(5, 2), "decimal(5,2)", 4)]),
        missing={"n": pa.scalar(Decimal("1.50"), pa.decimal128(5, 2))},
    )
    table.evolve(new)
    table.apply(net(new, [{"id": 2, "n": None}]), at(2))
    assert place.rows("select id, n from shop.customers order by 1") == [
        (1, Decimal("1.50")),
        (2, None),
    ]


def test_a_renamed_column_keeps_its_values(place: Place) -> None:
    evolved(place, ID, replace(NAME, name="full_name"), AGE)
    assert place.rows("select id, full_name, age from shop.customers") == [(1, "Ann", 7)]


def test_names_that_go_round_keep_their_values(place: Place) -> None:
    town = Column("town", pa.string(), "string", 3)
    schema = schema_of([ID, NAME, town])
    table = place.prepared(schema)
    table.apply(net(schema, [{"id": 1, "name": "Ann", "town": "Ulm"}]), at(1))
    table.evolve(schema_of([ID, replace(NAME, name="town"), replace(town, name="name")]))
    assert place.rows("select id, name, town from shop.customers") == [(1, "Ulm", "Ann")]


def test_a_renamed_key_is_still_the_key(place: Place) -> None:
    table = applied(place)
    new = schema_of([replace(ID, name="number"), NAME, AGE], ["number"])
    table.evolve(new)
    table.apply(net(new, [{"number": 1, "name": "Bea", "age": 8}]), at(2))
    assert place.rows() == [(1, "Bea", 8)]


def test_a_dropped_column_stays_and_is_null_from_then_on(place: Place) -> None:
    place.database.execute(
        "create schema shop; create table shop.customers"
        " (id bigint primary key, name text not null default 'x', age int)"
    )
    table = evolved(place, ID, AGE)
    table.apply(net(schema_of([ID, AGE]), [{"id": 2, "age": 9}]), at(2))
    assert place.rows() == [(1, None, 7), (2, None, 9)]


def test_a_dropped_column_goes_where_the_user_wants_it(place: Place) -> None:
    evolved(place, ID, AGE, drop_columns=True)
    assert place.rows() == [(1, 7)]


@pytest.mark.parametrize(
    ("one", "other", "value", "kind"),
    [
        (pa.int32(), pa.int64(), 7, "bigint"),
        (pa.int8(), pa.int32(), 7, "integer"),
        (pa.float32(), pa.float64(), 0.5, "double precision"),
        (pa.int32(), pa.float64(), 7, "double precision"),
        (pa.int32(), pa.decimal128(12, 2), 7, "numeric(12,2)"),
        (pa.decimal128(5, 2), pa.decimal128(7, 4), Decimal("1.50"), "numeric(7,4)"),
        (pa.date32(), pa.timestamp("us"), None, "timestamp without time zone"),
    ],
    ids=str,
)
def test_a_widened_column_is_widened(
    place: Place, one: pa.DataType, other: pa.DataType, value: Any, kind: str
) -> None:
    column = Column("v", one, str(one), 2)
    schema = schema_of([ID, column])
    table = place.prepared(schema)
    table.apply(net(schema, [{"id": 1, "v": value}]), at(1))
    wider = schema_of([ID, replace(column, type=other)])
    (step,) = table.planned(wider)
    assert step.sentence == f"shop.customers: widens column v to {kind}"
    table.evolve(wider)
    assert place.rows() == [(1, value)]
    described = "select format_type(atttypid, atttypmod) from pg_attribute where attname = 'v'"
    assert place.rows(f"{described} and attrelid = 'shop.customers'::regclass") == [(kind,)]
    assert table.planned(wider) == []


@pytest.mark.parametrize(
    "columns",
    [
        (ID, NAME, replace(AGE, type=pa.string())),
        (ID, NAME, replace(AGE, type=pa.int16(), attnum=9)),
        (ID, replace(NAME, type=pa.binary()), AGE),
    ],
)
def test_what_cannot_be_followed_stops_with_the_command_that_helps(
    place: Place, columns: tuple[Column, ...]
) -> None:
    table = applied(place)
    with pytest.raises(UnsupportedSchemaChangeError) as stopped:
        table.evolve(schema_of(columns))
    assert "headrace resync shop.customers" in stopped.value.hint
    assert place.rows() == [(1, "Ann", 7)]
    assert table.applied_schema() == OLD


def test_another_key_cannot_be_followed(place: Place) -> None:
    table = applied(place)
    with pytest.raises(UnsupportedSchemaChangeError, match="key was id and is now name"):
        table.evolve(schema_of([ID, NAME, AGE], ["name"]))


def test_frozen_tables_stop(place: Place) -> None:
    table = applied(place, Delivery(schema_policy=SchemaPolicy.FREEZE))
    table.evolve(OLD)
    with pytest.raises(UnsupportedSchemaChangeError, match=r"freeze forbids .* adds column city"):
        table.evolve(schema_of([ID, NAME, AGE, Column("city", pa.string(), "string", 4)]))


def test_a_column_of_the_user_s_own_is_not_overwritten_by_another_type(place: Place) -> None:
    table = applied(place)
    place.database.execute("alter table shop.customers add city int, add town text")
    with pytest.raises(UnsupportedSchemaChangeError, match="one of your own has its name"):
        table.evolve(schema_of([ID, NAME, AGE, Column("city", pa.string(), "string", 4)]))
    table.evolve(schema_of([ID, NAME, AGE, Column("town", pa.string(), "string", 4)]))


def test_a_view_on_a_column_that_must_change_is_named(place: Place) -> None:
    table = applied(place)
    place.database.execute("create view shop.ages as select age from shop.customers")
    with pytest.raises(UnsupportedSchemaChangeError, match=r"shop\.ages"):
        table.evolve(schema_of([ID, NAME, replace(AGE, type=pa.int64())]))
    assert table.applied_schema() == OLD


def test_a_plan_shows_the_making_of_a_table(place: Place) -> None:
    (step,) = place.table().planned(OLD)
    assert step.sentence == "shop.customers: creates the table"
    assert step.sql == (
        'CREATE TABLE "shop"."customers" ("id" bigint, "name" text, "age" integer,'
        ' PRIMARY KEY ("id"))',
    )


def test_a_plan_tells_every_step_in_order(place: Place) -> None:
    table = applied(place, Delivery(drop_columns=True))
    new = [ID, replace(AGE, name="name", type=pa.int64()), Column("city", pa.string(), "string", 4)]
    steps = table.planned(schema_of(new))
    assert [step.sentence.removeprefix("shop.customers: ") for step in steps] == [
        "drops column name",
        "renames column age to name",
        "widens column name to bigint",
        "adds column city text",
    ]
    table.evolve(schema_of(new))
    assert place.rows() == [(1, 7, None)]


def test_a_reader_in_the_way_makes_the_change_wait_and_then_give_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits, others may still read: nobody queues up behind for longer than a second."""
    monkeypatch.setattr(synced_table, "_LOCK_TIMEOUT", "SET LOCAL lock_timeout = '50ms'")
    monkeypatch.setattr(synced_table, "LOCK_ATTEMPTS", 2)
    table = applied(place)
    new = schema_of([ID, NAME, AGE, Column("city", pa.string(), "string", 4)])
    with place.database.connect(autocommit=False) as reader:
        reader.execute("select from shop.customers")
        with pytest.raises(TableBusyError):
            table.evolve(new)
        monkeypatch.setattr(synced_table, "LOCK_ATTEMPTS", 1000)
        waiting = threading.Thread(target=table.evolve, args=(new,))
        waiting.start()
        reader.execute("select from shop.customers")
        reader.rollback()
        waiting.join()
    assert place.rows() == [(1, "Ann", 7, None)]


def test_steps_are_done_once_whatever_happened_in_between(place: Place) -> None:
    new = schema_of([ID, NAME, AGE, Column("city", pa.string(), "string", 4)])
    applied(place).evolve(new)
    again = place.prepared(new)
    again.evolve(new)
    assert again.planned(new) == []


def test_a_table_that_took_nothing_yet_follows_too(place: Place) -> None:
    place.prepared(OLD)
    new = schema_of([ID, NAME, AGE, Column("city", pa.string(), "string", 4)])
    table = place.prepared(new)
    table.apply(net(new, [{"id": 1, "city": "Ulm"}]), at(1))
    assert place.rows() == [(1, None, None, "Ulm")]
