"""Rows that only a whole table shows to be wrong are set aside for the quarantine, all of them."""

from __future__ import annotations

from itertools import chain

import pytest
from rebuilding import Rebuilding
from table_features import BASE

from headrace.connectors.postgres.building import Build, SetAside
from headrace.connectors.postgres.target_session import Connection
from headrace.testing.database import Database


def set_aside(
    database: Database, rows: str, columns: str = "id, code"
) -> dict[SetAside, list[object]]:
    """The ids that were set aside, and why; the live table has the others afterwards."""
    table = Rebuilding(database)

    def fill(connection: Connection, build: Build) -> None:
        target = f"headrace_work.{build.table.name}"
        connection.execute(f"insert into {target} ({columns}) {rows}".encode())

    built = table.build(fill)
    found = {
        aside: [row[0] for row in database.execute(f"select id from {aside.table} order by id")]
        for aside in built.set_aside
    }
    table.swap(built)
    assert database.execute(
        "select count(*) from pg_tables where schemaname = 'headrace_work'"
    ) == [(0,)]
    return found


def live(database: Database) -> list[object]:
    return [row[0] for row in database.execute("select id from shop.orders order by id")]


def test_all_rows_of_a_duplicate_key_are_set_aside(database: Database) -> None:
    """Conformance: duplicate key in the source. Nothing tells which of the rows is right."""
    database.execute(BASE)
    rows = "values (1, 'a'), (2, 'b'), (2, 'c'), (3, 'd'), (3, 'd')"
    ((aside, ids),) = set_aside(database, rows).items()
    assert (aside.code, aside.rows, ids) == ("duplicate_key", 4, [2, 2, 3, 3])
    assert "the same id" in aside.reason
    assert live(database) == [1]


@pytest.mark.parametrize(
    ("index", "ids"),
    [
        ("unique index on shop.orders (code)", [2, 3, 5, 6]),
        ("unique index on shop.orders (upper(code))", [1, 2, 3, 5, 6]),
        ("unique index on shop.orders (code) where id > 2", [5, 6]),
        ("unique index on shop.orders (code, (id < 3))", [5, 6]),
    ],
)
def test_rows_that_share_a_unique_value_are_set_aside(
    database: Database, index: str, ids: list[int]
) -> None:
    database.execute(f"{BASE}; create {index}")
    rows = "values (1, 'A'), (2, 'a'), (3, 'a'), (4, 'b'), (5, 'c'), (6, 'c')"
    ((aside, found),) = set_aside(database, rows).items()
    assert (aside.code, found) == ("unique_violation", ids)


@pytest.mark.since(15)
@pytest.mark.parametrize(("nulls", "ids"), [("distinct", [3, 4]), ("not distinct", [1, 2, 3, 4])])
def test_nulls_are_distinct_unless_the_index_says_not(
    database: Database, nulls: str, ids: list[int]
) -> None:
    index = f"create unique index on shop.orders (region) nulls {nulls}"
    database.execute(f"{BASE}; update shop.orders set region = id; {index}")
    rows = "values (1, 'a', null), (2, 'b', null), (3, 'c', 1), (4, 'd', 1)"
    assert list(set_aside(database, rows, "id, code, region").values()) == [ids]


def test_rows_whose_foreign_key_leads_nowhere_are_set_aside(database: Database) -> None:
    database.execute(
        BASE + "alter table shop.orders add foreign key (region) references shop.regions"
    )
    rows = "values (1, 'a', 1), (2, 'b', 3), (3, 'c', null)"
    ((aside, ids),) = set_aside(database, rows, "id, code, region").items()
    assert (aside.code, ids) == ("foreign_key_violation", [2])
    assert "foreign key orders_region_fkey" in aside.reason
    assert live(database) == [1, 3]


def test_rows_that_refer_to_rows_set_aside_go_too(database: Database) -> None:
    database.execute(
        BASE + "alter table shop.orders add foreign key (parent) references shop.orders"
    )
    rows = "values (1, 'a', null), (2, 'b', 1), (3, 'c', 9), (4, 'd', 3), (5, 'e', 4), (6, 'f', 6)"
    found = set_aside(database, rows, "id, code, parent")
    assert sorted(chain.from_iterable(found.values())) == [3, 4, 5]
    assert live(database) == [1, 2, 6]


def test_a_foreign_key_that_was_valid_is_valid_again(database: Database) -> None:
    database.execute(
        BASE
        + "alter table shop.orders add constraint a foreign key (region) references shop.regions,"
        "add constraint b foreign key (region) references shop.regions not valid"
    )
    Rebuilding(database).rebuild()
    valid = "select conname, convalidated from pg_constraint where contype = 'f' order by 1"
    assert database.execute(valid) == [("a", True), ("b", False)]


def test_rows_pass_through_the_triggers_that_shape_them(database: Database) -> None:
    """As they would one by one; triggers that tell of changes see none."""
    database.execute(
        BASE + "create table shop.told (id bigint);"
        "create function shop.shape() returns trigger language plpgsql as "
        "'begin new.code := lower(new.code); return new; end';"
        "create function shop.tell() returns trigger language plpgsql as "
        "'begin insert into shop.told values (new.id); return new; end';"
        'create trigger "a ON b" before insert on shop.orders for each row when (new.id < 3) '
        "execute function shop.shape();"
        "create trigger off before insert on shop.orders for each row execute function "
        "shop.shape(); alter table shop.orders disable trigger off;"
        "create trigger after after insert on shop.orders for each row "
        "execute function shop.tell()"
    )
    assert set_aside(database, "values (1, 'A'), (2, 'B'), (3, 'C')") == {}
    assert database.execute("select code from shop.orders order by id") == [("a",), ("b",), ("C",)]
    assert database.execute("select count(*) from shop.told") == [(0,)]
    database.execute("insert into shop.orders (id, code) values (0, 'D')")
    assert database.execute("select code from shop.orders where id = 0") == [("d",)]
    assert database.execute("select id from shop.told") == [(0,)]
