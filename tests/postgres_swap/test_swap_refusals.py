"""What cannot be swapped without losing something is not: the reason names the object."""

from __future__ import annotations

import re

import pytest
from rebuilding import Rebuilding, temporary_role
from table_features import BASE

from headrace.connectors.postgres import generations
from headrace.connectors.postgres.building import Build
from headrace.connectors.postgres.target_session import Connection
from headrace.errors import UnsuitableTableError, UnswappableError
from headrace.model import TableId
from headrace.testing.database import Database

# What is done to shop.orders, and what the reason must say.
OBSTACLES = {
    "a partitioned table": (
        "alter table shop.orders rename to o; create table shop.orders (id bigint primary key) "
        "partition by range (id)",
        "partitioned",
    ),
    "a partition": (
        "alter table shop.orders rename to o; create table shop.whole (id bigint) partition by "
        "list (id); create table shop.orders partition of shop.whole default",
        "partition",
    ),
    "a parent": ("create table shop.child () inherits (shop.orders)", r"shop\.child inherits"),
    "a child": (
        "create table shop.parent (id bigint not null); alter table shop.orders inherit "
        "shop.parent",
        r"inherits from shop\.parent",
    ),
    "a typed table": (
        "alter table shop.orders rename to o; create type shop.kind as (id bigint); "
        "create table shop.orders of shop.kind",
        "of a type",
    ),
    "a column of the user's own": (
        "alter table shop.orders add column remark text",
        "column remark is none of the source's",
    ),
    "a function that returns its rows": (
        "create function shop.f() returns setof shop.orders language sql as "
        "'select * from shop.orders'",
        r"function shop\.f\(\) depends on type shop\.orders",
    ),
    "a function that takes its rows": (
        "create function shop.f(shop.orders) returns int language sql as 'select 1'",
        r"function shop\.f\(shop\.orders\) depends on type shop\.orders",
    ),
    "a column of its row type": (
        "create table shop.archive (was shop.orders)",
        r"column was of table shop\.archive depends on type shop\.orders",
    ),
    "an array of its row type": (
        "create table shop.archive (were shop.orders[])",
        r"column were of table shop\.archive depends on type shop\.orders\[\]",
    ),
    "a view of whole rows": (
        "create view shop.whole as select o from shop.orders o",
        r"view shop\.whole depends on type shop\.orders",
    ),
    "a materialized view": (
        "create materialized view shop.sums as select count(*) from shop.orders",
        r"materialized view shop\.sums depends on table shop\.orders",
    ),
    "another table's use of its sequence": (
        "alter table shop.orders alter id add generated always as identity; "
        "create table shop.other (id bigint default nextval('shop.orders_id_seq'))",
        r"default value for column id of table shop\.other depends on sequence shop\.orders_id_seq",
    ),
    "an exclusion constraint": (
        "alter table shop.orders add constraint once exclude using btree (code with =)",
        "constraint once",
    ),
    "a partitioned table that refers to it": (
        "create table shop.lines (id bigint references shop.orders) partition by list (id)",
        r"shop\.lines is partitioned",
    ),
    "a foreign key whose triggers are off": (
        "create table shop.lines (id bigint references shop.orders); "
        "alter table shop.lines disable trigger all",
        "trigger of foreign key lines_id_fkey",
    ),
    "a check of the whole row": (
        "alter table shop.orders add constraint whole check (orders is distinct from null)",
        "constraint whole",
    ),
    "an index on the whole row": (
        "create index whole on shop.orders ((orders is null))",
        "index whole",
    ),
    "a publication": ("create publication p for table shop.orders", "publication p publishes it"),
    "a publication of everything": ("create publication p for all tables", "publication p"),
    "an extension's table": (
        "create extension hstore; alter extension hstore add table shop.orders",
        "belongs to extension hstore",
    ),
    "a trigger that an extension needs": (
        "create extension hstore; create trigger t before insert on shop.orders for each row "
        "execute function shop.noop(); alter trigger t on shop.orders depends on extension hstore",
        "trigger t on table shop.orders belongs to extension hstore",
    ),
    "a subscription's table": (
        "create subscription s connection 'dbname=none' publication p with (connect = false); "
        "insert into pg_subscription_rel select oid, 'shop.orders'::regclass, 'r', null "
        "from pg_subscription where subname = 's'",
        "a subscription writes it",
    ),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_a_swap_would_break_is_named(database: Database, obstacle: str) -> None:
    script, reason = OBSTACLES[obstacle]
    table = Rebuilding(database)
    database.execute(BASE)
    with database.connect() as connection:
        columns = table.columns(connection)
    database.execute(f"set allow_system_table_mods = on; {script}")
    try:
        assert re.search(reason, str(table.swappable(columns)))
    finally:
        if "create subscription" in script:
            database.execute(
                "alter subscription s disable; "
                "alter subscription s set (slot_name = none); drop subscription s"
            )


def test_a_view_of_another_temporary_session_is_named(database: Database) -> None:
    database.execute(BASE)
    with database.connect() as session:
        session.execute("create temporary view mine as select id from shop.orders")
        assert "depends on table shop.orders" in str(Rebuilding(database).swappable())


def test_others_objects_are_named(database: Database) -> None:
    """Who may not replace a view cannot keep it."""
    database.execute(BASE + "create view shop.theirs as select id from shop.orders")
    with temporary_role(database, "login password 'x'") as role:
        database.execute(
            f"grant all on schema shop to {role}; alter table shop.orders owner to {role}"
        )
        with database.connect(user=role, password="x") as connection:
            reason = generations.swappable(
                connection, TableId("shop", "orders"), Rebuilding(database).columns(connection)
            )
        assert reason == "view shop.theirs belongs to postgres"


def test_a_table_that_is_gone_is_told(database: Database) -> None:
    with (
        database.connect() as connection,
        pytest.raises(UnsuitableTableError, match=r"shop\.gone does not exist"),
    ):
        generations.swappable(connection, TableId("shop", "gone"), [])


def test_rows_that_others_refer_to_are_not_orphaned(database: Database) -> None:
    """ON DELETE decides what becomes of them, where the rows are changed in place."""
    database.execute(
        BASE + "create table shop.lines (order_id bigint references shop.orders on delete cascade);"
        "insert into shop.lines values (7)"
    )
    table = Rebuilding(database)
    assert table.swappable() is None
    with pytest.raises(UnswappableError, match=r"rows of shop\.lines refer to rows"):
        table.rebuild(lambda connection, build: table.copy(connection, build, "id <> 7"))
    assert database.execute("select count(*) from shop.orders where id = 7") == [(1,)]


def no_quantity(connection: Connection, build: Build) -> None:
    connection.execute(
        f"insert into headrace_work.{build.table.name} (id, code, qty) values (101, 'x', 0)"
    )


def test_a_row_that_no_index_takes_leaves_the_table_as_it_is(database: Database) -> None:
    database.execute(BASE + "create index on shop.orders ((100 / qty)) where id > 100")
    with pytest.raises(UnswappableError, match="division by zero"):
        Rebuilding(database).rebuild(no_quantity)
    assert database.execute("select count(*) from shop.orders") == [(40,)]
