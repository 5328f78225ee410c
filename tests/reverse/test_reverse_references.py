"""Tables of one pipeline that refer to one another by foreign keys, which the user made.

Their sources are written in any order; whatever comes first, all of it must be there at the end of
one run, with nothing left in quarantine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from headrace.engine.references import References
from headrace.errors import QuarantineFullError
from headrace.project import TableFailure
from lakeside import PATIENCE, Lakeside, people

CUSTOMERS, ORDERS, LINES = "crm.x_customers", "crm.b_orders", "crm.a_lines"  # children sort first

TABLES = """
create schema crm;
create table crm.x_customers (id bigint primary key, name text);
create table crm.b_orders (id bigint primary key,
                           customer bigint not null references crm.x_customers);
create table crm.a_lines (id bigint primary key, "order" bigint references crm.b_orders);
"""


def pointing(column: str, rows: dict[int, int | None]) -> pa.Table:
    return pa.table(
        {"id": pa.array(rows.keys(), pa.int64()), column: pa.array(rows.values(), pa.int64())}
    )


def orders(*ids: int) -> pa.Table:
    return pointing("customer", {n: n for n in ids})


@pytest.fixture
def sales(lakeside: Lakeside) -> Lakeside:
    """Five customers, with an order each."""
    lakeside.sql(TABLES)
    lakeside.source(CUSTOMERS).write(people(*range(5)))
    lakeside.source(ORDERS).write(orders(*range(5)))
    lakeside.carry(CUSTOMERS, ORDERS, quarantine={"max_rows": 10})
    return lakeside


def assert_all_there(sales: Lakeside, *tables: str) -> None:
    for name in tables:
        sales.assert_equal(name)
    assert sales.project.quarantine() == []


def test_first_rows_come_after_those_that_they_refer_to(lakeside: Lakeside) -> None:
    """By more rows than the quarantine holds, over three tables."""
    lakeside.sql(TABLES)
    ids = range(3000)
    lakeside.source(LINES).write(pointing("order", {n: n for n in ids}))
    lakeside.source(ORDERS).write(orders(*ids))
    lakeside.source(CUSTOMERS).write(people(*ids))
    lakeside.carry(LINES, ORDERS, CUSTOMERS)
    lakeside.catch_up()
    assert_all_there(lakeside, LINES, ORDERS, CUSTOMERS)


def test_tables_that_refer_to_each_other_in_a_circle_are_loaded(lakeside: Lakeside) -> None:
    lakeside.sql(
        """
        create schema crm;
        create table crm.teams (id bigint primary key, lead bigint);
        create table crm.members (id bigint primary key, team bigint references crm.teams);
        alter table crm.teams add foreign key (lead) references crm.members;
        """
    )
    lakeside.source("crm.teams").write(pointing("lead", {1: None, 2: 10, 3: 20}))
    lakeside.source("crm.members").write(pointing("team", {10: 1, 20: 2, 30: 3, 40: None}))
    lakeside.carry("crm.teams", "crm.members")
    lakeside.catch_up()
    assert_all_there(lakeside, "crm.teams", "crm.members")


def test_a_table_that_refers_to_itself_is_loaded_and_followed(lakeside: Lakeside) -> None:
    lakeside.sql(
        "create schema crm; create table crm.staff"
        " (id bigint primary key, boss bigint references crm.staff)"
    )
    source = lakeside.source("crm.staff")
    source.write(pointing("boss", {1: 2, 2: 3, 3: None}))
    lakeside.carry("crm.staff")
    lakeside.catch_up()
    source.write(pointing("boss", {4: 5, 5: 1}))
    source.update("id = 1", boss="5")
    lakeside.catch_up()
    assert_all_there(lakeside, "crm.staff")


def test_a_table_does_not_wait_for_one_that_has_failed(sales: Lakeside) -> None:
    """It goes as far as it gets, and says what is missing."""
    sales.sql("create view crm.names as select name from crm.x_customers")
    sales.sql("alter table crm.x_customers rename column id to number")
    sales.source(ORDERS).write(orders(*range(10, 30)))
    failures = {str(f.table): f.error for f in sales.run()}
    assert failures.keys() == {CUSTOMERS, ORDERS}
    assert isinstance(failures[ORDERS], QuarantineFullError)
    assert "x_customers" in failures[ORDERS].message
    sales.sql("alter table crm.x_customers rename column number to id")
    sales.source(ORDERS).delete("id >= 10")
    sales.catch_up()
    assert_all_there(sales, CUSTOMERS, ORDERS)


# -- the referring table first ---------------------------------------------------------------------


@contextmanager
def held_up(sales: Lakeside, table: str) -> Iterator[psycopg.Connection[Any]]:
    """Nobody writes a table for the length of the block, or until what it gives ends."""
    with sales.database.connect(autocommit=False) as other:
        other.execute(f"lock table {table} in share mode")
        yield other


@contextmanager
def run_in_background(sales: Lakeside) -> Iterator[Future[list[TableFailure]]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(sales.run)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a table has tried its rows, and waits for others'."""
    event = threading.Event()
    for name in ("settle", "parents_moved"):
        wait = getattr(References, name)

        def telling(self: References, state, *more, _wait=wait, **options):  # type: ignore[no-untyped-def]
            if str(state.target.table) == ORDERS:
                event.set()
            return _wait(self, state, *more, **options)

        monkeypatch.setattr(References, name, telling)
    return event


@pytest.mark.parametrize("rows", [3, 50])
def test_rows_before_those_that_they_refer_to_are_there_at_the_end_of_the_run(
    sales: Lakeside, tried: threading.Event, rows: int
) -> None:
    """Few wait in quarantine; of more than it holds, none is applied before the others are."""
    sales.catch_up()
    tried.clear()
    new = range(100, 100 + rows)
    sales.source(ORDERS).write(orders(*new))
    sales.source(CUSTOMERS).write(people(*new))
    with held_up(sales, CUSTOMERS) as other, run_in_background(sales) as ended:
        assert tried.wait(PATIENCE)
        other.rollback()
        assert ended.result(PATIENCE) == []
    assert_all_there(sales, CUSTOMERS, ORDERS)


def test_rows_that_go_before_those_that_refer_to_them_are_gone_at_the_end_of_the_run(
    sales: Lakeside,
) -> None:
    sales.catch_up()
    sales.source(ORDERS).delete("id < 4")
    sales.source(CUSTOMERS).delete("id < 4")
    with run_in_background(sales) as ended:
        with held_up(sales, ORDERS):
            while sales.project.quarantine() == [] and not ended.done():
                sales.sql("select pg_sleep(0.02)")
        assert ended.result(PATIENCE) == []
    assert_all_there(sales, CUSTOMERS, ORDERS)


def test_a_continuous_run_brings_rows_that_came_too_early(sales: Lakeside) -> None:
    """More than the quarantine holds, long before the rows that they refer to."""
    with sales.running() as running:
        running.reach(ORDERS, 0)
        running.reach(CUSTOMERS, 0)
        new = range(100, 150)
        write_deltalake(sales.source(ORDERS).path, orders(*new), mode="append")
        write_deltalake(sales.source(CUSTOMERS).path, people(*new), mode="append")
        running.reach(CUSTOMERS, 1)
        running.reach(ORDERS, 1)
    assert_all_there(sales, CUSTOMERS, ORDERS)
