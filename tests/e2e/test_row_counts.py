"""What a run upserted and deleted, per table, in status and in the table's own history."""

from __future__ import annotations

import pytest
from deltalake import DeltaTable
from harness import Shop


@pytest.mark.parametrize("more", [{}, {"deletion_vectors": False}], ids=["vectors", "rewritten"])
def test_a_run_counts_the_rows_that_it_upserted_and_deleted(shop: Shop, more: dict[str, bool]):
    shop.sql("create table orders (id int primary key, v text)")
    shop.sql("create table quiet (id int primary key)")
    shop.sql("insert into orders select g, 'o' from generate_series(1, 10) g")
    shop.carry("public.*", **more)
    shop.catch_up()
    loaded = shop.status("public.orders")
    assert (loaded.upserted, loaded.deleted) == (10, 0)
    shop.sql("""
        update orders set v = v || '.' where id <= 3;
        update orders set v = v || '!' where id <= 2;
        delete from orders where id > 8;
        insert into orders values (11, 'new');
    """)
    shop.catch_up()
    changed, quiet = shop.status("public.orders"), shop.status("public.quiet")
    assert (changed.upserted, changed.deleted) == (4, 2)
    assert (quiet.upserted, quiet.deleted) == (0, 0)
    (newest, *_) = DeltaTable(shop.location("public.orders")).history()
    told = {name: int(value) for name, value in newest["operationMetrics"].items()}
    assert told["numUpsertedRows"] == 4
