"""`verify --repair` writes what differs and nothing else, beside a run too."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from harness import Shop

from headrace import failpoints
from headrace.verify import TableVerification


@pytest.fixture
def orders(shop: Shop) -> Shop:
    shop.sql("create table orders (id int, part text, v text, at time, primary key (id, part))")
    shop.sql("insert into orders select g, 'p', 'v' || g, '12:30' from generate_series(1, 500) g")
    shop.sql("create table bag (a int, b text); alter table bag replica identity full")
    shop.sql("insert into bag select g % 5, null from generate_series(1, 50) g")
    shop.carry("public.*")
    shop.catch_up()
    return shop


def delta(shop: Shop, table: str = "public.orders") -> DeltaTable:
    return DeltaTable(shop.location(table))


def forge(shop: Shop) -> None:
    """Changed, missing, extra and doubled rows, with a key and without."""
    table = delta(shop)
    table.update(predicate="id = 17", updates={"v": "'forged'"})
    table.delete("id = 18")
    row = {"id": 1, "part": "p", "v": "v1", "at": "12:30:00.000000"}
    rows = pa.Table.from_pylist([row, {**row, "id": None}, {**row, "part": "q"}])
    types = pa.schema([("id", pa.int32()), *((n, pa.string()) for n in ("part", "v", "at"))])
    write_deltalake(delta(shop), rows.cast(types), mode="append")
    bag = pa.table({"a": pa.array([1, 9], pa.int32()), "b": pa.array([None, "x"], pa.string())})
    write_deltalake(delta(shop, "public.bag"), bag, mode="append")


def repaired(shop: Shop) -> dict[str, TableVerification]:
    return {str(found.table): found for found in shop.project.verify(repair=True)}


def assert_all_equal(shop: Shop) -> None:
    assert all(found.equal for found in shop.project.verify())
    for table in ("public.orders", "public.bag"):
        shop.assert_equal(table)


def test_a_repair_writes_what_differs_in_one_commit(orders: Shop) -> None:
    forge(orders)
    before = {table: orders.version(table) for table in ("public.orders", "public.bag")}
    found = repaired(orders)
    assert (found["public.orders"].missing, found["public.orders"].extra) == (2, 4)
    assert all(table.repaired for table in found.values())
    assert {table: orders.version(table) - 1 for table in before} == before
    metrics = delta(orders).history(1)[0]["operationMetrics"]
    assert (metrics["numUpsertedRows"], metrics["numDeletedRows"]) == ("3", "2")
    assert_all_equal(orders)
    orders.sql("update orders set v = 'after' where id < 30; insert into bag values (7, 'new')")
    orders.catch_up()
    assert_all_equal(orders)
    assert repaired(orders)["public.orders"].repaired is False  # nothing was left to do


def test_a_repair_beside_a_run_is_done_by_the_run(orders: Shop) -> None:
    forge(orders)
    with orders.running() as running:
        running.catch_up()
        assert all(table.repaired for table in repaired(orders).values())
        orders.sql("update orders set v = 'after' where id < 30")
        running.catch_up()
    assert_all_equal(orders)


def test_a_table_that_has_stopped_is_repaired_as_well(orders: Shop) -> None:
    orders.sql("alter table bag add column token uuid default gen_random_uuid()")
    orders.sql("insert into bag values (3, 'stops')")
    assert len(orders.run()) == 1
    assert repaired(orders)["public.bag"].repaired
    assert_all_equal(orders)


def test_a_lake_whose_files_are_gone_is_copied_anew(orders: Shop) -> None:
    for path in delta(orders).file_uris():
        duckdb.sql(f"select 1 from '{path}' limit 1")  # it is a data file, and there
        (orders.root / path.removeprefix(str(orders.root) + "/")).unlink()
    failed = orders.project.verify(repair=True)
    assert all(table.repaired or table.equal for table in failed)
    assert_all_equal(orders)


def test_a_repair_whose_commit_fails_leaves_the_table_and_is_done_again(orders: Shop) -> None:
    """Invariant 3: the differences are in one commit or in none."""
    forge(orders)
    version = orders.version("public.orders")
    failpoints.arm("delta.data_written=enospc@1-9")
    with pytest.raises(OSError, match="failpoint"):
        repaired(orders)
    failpoints.arm("")
    assert orders.version("public.orders") == version
    assert repaired(orders)["public.orders"].repaired
    assert_all_equal(orders)
