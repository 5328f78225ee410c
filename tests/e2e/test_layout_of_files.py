"""A table that its user wants partitioned and ordered, through a whole pipeline."""

from __future__ import annotations

from deltalake import DeltaTable
from harness import Shop

from tables import READERS, difference, source_rows


def test_a_table_is_partitioned_and_ordered_as_declared(shop: Shop) -> None:
    """Invariant 4, with rows that move from one partition to another."""
    shop.sql("create table sales (id int primary key, country text, paid date, n int)")
    shop.sql(
        "insert into sales select i, (array['DE', 'a/b', null])[1 + i % 3], '2026-01-01', -i "
        "from generate_series(1, 90) i"
    )
    shop.carry({"source": "public.sales", "partition_by": ["country", "paid"], "cluster_by": ["n"]})
    with shop.running() as run:
        run.catch_up()
        shop.sql("update sales set country = 'FR' where id % 6 = 0")
        shop.sql("update sales set paid = null, n = 7 where id % 10 = 0")
        shop.sql("delete from sales where id % 7 = 0")
        run.catch_up()
    columns = ("id", "country", "paid", "n")
    expected = source_rows(shop.database.dsn, "sales", columns)
    for reader, read in READERS.items():
        wrong = difference(expected, read(shop.location("public.sales"), columns, {}))
        assert not wrong, f"{reader}: {wrong}"
    table = DeltaTable(shop.location("public.sales"))
    assert table.metadata().partition_columns == ["country", "paid"]
