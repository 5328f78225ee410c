"""verify finds what differs and nothing else; preview, query, plan and status tell what is."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pyarrow as pa
import pytest
from busy import TABLES, writing
from deltalake import DeltaTable, write_deltalake

from headrace.errors import HeadraceError, VerificationImpossibleError


@pytest.fixture
def orders(shop):
    shop.sql("create table orders (id int primary key, v text, price numeric(9, 2), f float8)")
    shop.sql("insert into orders select g, 'v' || g, g / 7.0, g from generate_series(1, 500) g")
    shop.sql("create table bag (a int, b text); alter table bag replica identity full")
    shop.sql("insert into bag select g % 5, null from generate_series(1, 50) g")
    shop.carry("public.*")
    shop.catch_up()
    return shop


def delta(shop, table: str = "public.orders") -> DeltaTable:
    return DeltaTable(shop.location(table))


def verify(shop, table: str = "public.orders"):
    (found,) = [v for v in shop.project.verify() if str(v.table) == table]
    return found


def test_verify_says_equal_with_the_number_of_rows(orders):
    orders.sql("delete from orders where id > 450; insert into bag values (1, null)")
    found = verify(orders)  # catches up by itself
    assert (found.equal, found.rows, found.missing, found.extra) == (True, 450, 0, 0)
    assert found.samples == ()
    assert verify(orders, "public.bag").rows == 51


def change(**updates: str) -> Callable[[DeltaTable], object]:
    return lambda table: table.update(predicate="id = 17", updates=updates)


def every_kind(table: DeltaTable) -> None:
    change(v="'x'")(table)
    table.delete("id = 18")
    append(table, [999])


# Each forgery by deltalake, then: rows missing, rows too many, and the key that a sample tells.
FORGERIES = {
    "a changed value": (change(v="'x'"), 1, 1, 17),
    "a value that became null": (change(price="null"), 1, 1, 17),
    "a value that was rounded": (change(f="17.0000000001"), 1, 1, 17),
    "a value of another row": (change(v="'v18'"), 1, 1, 17),
    "a missing row": (lambda table: table.delete("id = 18"), 1, 0, 18),
    "an extra row": (lambda table: append(table, [999]), 0, 1, 999),
    "a row twice": (lambda table: append(table, [1], like=1), 0, 1, 1),
    "all at once": (every_kind, 2, 2, 17),
}


def append(table: DeltaTable, ids: list[int], like: int = 0) -> None:
    """Add rows as the source made them; `like` is a row that is in the table already."""
    price = Decimal(like / 7).quantize(Decimal("0.01"))
    rows = [{"id": i, "v": f"v{like or i}", "price": price, "f": float(like)} for i in ids]
    types = [pa.int32(), pa.string(), pa.decimal128(9, 2), pa.float64()]
    schema = pa.schema(list(zip(rows[0], types, strict=True)))
    write_deltalake(table, pa.Table.from_pylist(rows, schema), mode="append")


@pytest.mark.parametrize("forgery", FORGERIES)
def test_verify_finds_every_row_that_somebody_forged(orders, forgery):
    forge, missing, extra, key = FORGERIES[forgery]
    forge(delta(orders))
    found = verify(orders)
    assert (found.equal, found.missing, found.extra) == (False, missing, extra)
    assert f"id={key}" in found.samples
    assert verify(orders, "public.bag").equal


def test_verify_counts_rows_without_a_key(orders):
    table = delta(orders, "public.bag")
    rows = pa.table({"a": pa.array([1, 1], pa.int32()), "b": pa.array([None, None], pa.string())})
    write_deltalake(table, rows, mode="append")
    found = verify(orders, "public.bag")
    assert (found.equal, found.missing, found.extra) == (False, 0, 2)


def test_verify_tells_a_row_that_only_the_source_lost(orders):
    """A change that the stream never told: with row triggers of logical decoding off."""
    publication = "headrace_shop"
    orders.sql(f"alter publication {publication} set (publish = 'insert, update, truncate')")
    orders.sql("delete from orders where id = 3")
    orders.sql(
        f"alter publication {publication} set (publish = 'insert, update, delete, truncate')"
    )
    found = verify(orders)
    assert (found.equal, found.missing, found.extra) == (False, 0, 1)


def test_verify_says_equal_under_load_while_running(busy_shop):
    """The source is read as of one LSN, the lake as of a later one; the log tells the rest."""
    busy_shop.catch_up()
    with busy_shop.running() as running, writing(busy_shop) as done:
        running.wait(lambda views: bool(done))
        for _ in range(3):
            before = len(done)
            verified = busy_shop.project.verify()
            assert {str(v.table) for v in verified} == set(TABLES)
            assert all(v.equal for v in verified), verified
            assert len(done) > before


def test_verify_before_the_first_run_catches_up_and_after_a_stop_says_why_not(shop):
    shop.sql("create table t (id int primary key, d date); insert into t values (1, 'today')")
    shop.carry("public.t")
    assert verify(shop, "public.t").equal
    shop.sql("insert into t values (2, 'infinity')")
    stopped = verify(shop, "public.t")
    assert isinstance(stopped.problem, VerificationImpossibleError)
    assert "infinity" in stopped.problem.message
    assert not stopped.equal


# -- looking ---------------------------------------------------------------------------------------


def test_preview_shows_the_newest_changes_newest_last(orders):
    orders.sql("update orders set v = 'new' where id = 5")
    orders.sql("update orders set id = 5000 where id = 6")
    orders.sql("delete from orders where id = 7; insert into orders values (8000, 'x', 1.5, 'NaN')")
    orders.catch_up()
    found = orders.project.preview("public.orders", 3).to_pylist()
    changes = [(row["_op"], row["id"], row["_before"]) for row in found]
    assert changes == [("u", 5000, {"id": 6}), ("d", None, {"id": 7}), ("i", 8000, None)]
    with pytest.raises(HeadraceError, match="no change"):
        orders.project.preview("public.nothing")


def test_query_reads_the_lake_by_the_names_of_the_source(orders):
    query = orders.project.query
    sums = query("select count(*) n, sum(price) s from public.orders").to_pylist()
    assert [(row["n"], row["s"]) for row in sums] == orders.sql(
        "select count(*), sum(price) from orders"
    )
    joined = "select count(*) n from public.orders o join bag b on b.a = o.id where o.v = 'v1'"
    assert query(joined)["n"].to_pylist() == [10]
    with pytest.raises(HeadraceError) as caught:
        query("select * from public.nothing")
    assert "public.orders" in caught.value.hint


def test_plan_tells_what_a_run_will_do_and_nothing_after_it(shop):
    shop.sql("create table t (id int primary key)")
    shop.carry({"source": "public.t", "name": "crm.t"})
    steps = {(s.action, s.kind, s.name) for s in shop.project.plan().changes}
    assert ("create", "slot", "headrace_shop") in steps
    assert ("create", "publication", "headrace_shop") in steps
    assert ("copy", "table", "crm.t") in steps
    assert not (shop.root / "lake").exists()  # a plan makes nothing
    assert shop.sql("select count(*) from pg_publication") == [(0,)]
    shop.catch_up()
    assert shop.project.plan().changes == ()


def test_status_tells_how_far_every_table_is_behind(orders):
    assert orders.status("public.orders").lag_bytes is not None
    (capture,) = orders.project.status().captures
    assert capture.running is None
    assert capture.error is None
    assert capture.slot is not None
    assert capture.slot.name == "headrace_shop"
    orders.sql("update orders set v = 'later'")
    before = orders.project.status()
    assert before.captures[0].lag_bytes > 500
    with orders.running() as running:
        running.catch_up()
        (during,) = orders.project.status().captures
        assert "process" in during.running
    table = orders.status("public.orders")
    assert table.phase.value == "streaming"
    assert table.lag_seconds == 0
    assert orders.project.status().captures[0].lag_bytes < before.captures[0].lag_bytes


def test_status_of_an_unreachable_source_is_an_answer(orders):
    orders.declare({"shop_to_lake": ["public.*"]}, source={"database": "gone"})
    (capture,) = orders.project.status().captures
    assert "gone" in (capture.error or "")
    assert orders.status("public.orders").phase.value == "streaming"
