"""Publications that send a part of the rows or columns: what comes into it, and what leaves it."""

from __future__ import annotations

import pytest
from deltalake import DeltaTable

from toast_orders import big

pytestmark = pytest.mark.since(15)

SETUP = f"""
create table ranged (id int primary key, v text);
create table whole (id int primary key, n int, t text);
alter table whole replica identity full;
create table listed (id int primary key, v text, secret text, w text);
create table outside (id int primary key, t text);
insert into ranged select g, 'v' || g from generate_series(1, 20) g;
insert into whole select g, g, '{big(1)}' || g from generate_series(1, 20) g;
insert into listed select g, 'v' || g, 's' || g, '{big(2)}' || g from generate_series(1, 5) g;
insert into outside select g, '{big(3)}' || g from generate_series(1, 20) g;
create publication headrace_shop for table
    ranged where (id > 10), whole where (n > 10), listed (id, v, w), outside where (id > 10);
"""
TRANSACTIONS = (
    (
        "update ranged set id = id + 100 where id in (1, 11)",  # one comes in, one stays
        "update ranged set id = -5 where id = 12",  # out
        "update ranged set v = 'unseen' where id = -5",
        "insert into ranged values (-1, 'unseen'), (50, 'seen')",
        "delete from ranged where id in (2, 13)",
        "update whole set n = n + 10 where id in (1, 15)",
        "update whole set n = 0 where id = 16",
        "update whole set n = 99, id = -id where id in (2, 16)",
        "delete from whole where id in (3, 17)",
        "update listed set secret = 'other'",
        "update listed set v = 'w' where id = 2",
    ),
    (
        "update ranged set id = 12 where id = -5",  # in again, with what changed outside
        "alter table listed add more int default 3",
        "alter table listed rename v to x",
        "update listed set x = 'x' where id = 3",
        "alter table listed drop secret",
        "insert into listed (id, x) values (9, 'y')",
    ),
    ("truncate whole", "insert into whole values (1, 1, 'out'), (2, 20, 'in')"),
)
PARTS = {
    "ranged": ("public.ranged where id > 10", ("id", "v")),
    "whole": ("public.whole where n > 10", ("id", "n", "t")),
    "listed": ("public.listed", ("id", "x", "w")),
}


def test_4_rows_that_come_into_a_row_filter_or_leave_it_are_right_and_columns_stay_away(shop):
    """Invariant 4: of what the publication sends, whether the copy or the stream brought it."""
    shop.sql(SETUP)
    shop.carry("public.ranged", "public.whole", "public.listed")
    shop.catch_up()
    for transaction in TRANSACTIONS:
        with shop.database.connect(autocommit=False) as connection:
            for statement in transaction:
                connection.execute(statement.encode())
        shop.catch_up()
    for name, (source, columns) in PARTS.items():
        shop.assert_equal(source, f"public.{name}", columns=columns, readers=["deltalake"])
    listed = DeltaTable(shop.location("public.listed")).schema()
    assert not {"secret", "more"} & {field.name for field in listed.fields}


def test_12_a_row_that_comes_into_a_filter_without_a_value_stops_its_table(shop):
    """Invariant 12: the server sends no TOASTed value that did not change, not even here."""
    shop.sql(SETUP)
    shop.carry("public.ranged", "public.outside")
    shop.catch_up()
    shop.sql("update outside set id = 100 where id = 1; insert into ranged values (70, 'seen')")
    (failure,) = shop.run()
    assert str(failure.table) == "public.outside"
    assert "column t unsent" in failure.error.message
    assert "headrace resync public.outside" in failure.error.hint
    shop.assert_equal("public.ranged where id > 10", "public.ranged", readers=["deltalake"])
    assert not shop.project.resync(["public.outside"])
    shop.assert_equal("public.outside where id > 10", "public.outside", readers=["deltalake"])
