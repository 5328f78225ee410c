"""A transaction that memory does not hold, from Postgres to Delta: whole, or not there."""

from __future__ import annotations

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder

from headrace.connectors.delta import applying
from headrace.engine import parting, table_state

# Values that Postgres keeps out of line: an update of other columns does not send them.
LONG = "(select string_agg(md5((g * h)::text), '') from generate_series(1, 100) h)"


@pytest.fixture
def shop_in_parts(shop, monkeypatch):
    monkeypatch.setattr(table_state, "STRETCH_ROWS", 50)
    monkeypatch.setattr(parting, "PART_ROWS", 40)
    shop.sql("create table orders (id int primary key, n int, long text)")
    shop.sql("create table emptied (id int primary key, n int)")
    shop.sql(f"insert into orders select g, 0, {LONG} from generate_series(1, 60) g")
    shop.sql("insert into emptied select g, 0 from generate_series(1, 30) g")
    return shop


def change_much(session) -> None:
    """Rows from before and rows of its own, under keys that move and swap, with values unsent."""
    session.execute(f"insert into orders select g, 1, {LONG} from generate_series(101, 200) g")
    session.execute("update orders set n = 2 where id % 3 = 0")
    session.execute("update orders set id = -id where id between 20 and 120")
    session.execute("insert into emptied select g, 1 from generate_series(101, 160) g")
    session.execute("delete from orders where id % 7 = 0")
    session.execute("update orders set id = 5000 where id = 1")
    session.execute(
        "update orders set id = 1 where id = 2; update orders set id = 2 where id = 5000"
    )
    session.execute("truncate emptied; insert into emptied values (1, 7), (150, 8)")
    session.execute("alter table orders add column extra int default 3")
    session.execute("update orders set extra = id where id % 2 = 0")
    session.execute("insert into emptied select g, 9 from generate_series(201, 290) g")
    session.execute("update orders set n = n + 1")
    session.execute("delete from emptied where id between 150 and 210")


def test_10_11_a_transaction_in_parts_arrives_whole(shop_in_parts, monkeypatch):
    """Invariants 4, 6, 10 and 11."""
    shop, parts = shop_in_parts, []
    monkeypatch.setattr(applying, "hit", parts.append)
    shop.carry("public.*")
    shop.catch_up()
    before = shop.version("public.emptied")
    with shop.database.connect(autocommit=False) as session:
        change_much(session)
        session.commit()
    shop.catch_up()
    shop.assert_equal("public.orders")
    shop.assert_equal("public.emptied")
    assert parts.count("delta.part_written") >= 10
    assert shop.version("public.emptied") == before + 1


def test_5_a_large_transaction_makes_one_version_of_a_row(shop_in_parts):
    """Invariant 5: what a row was in between, no transaction left."""
    shop = shop_in_parts
    shop.carry({"source": "public.orders", "mode": "scd2"})
    shop.catch_up()
    with shop.database.connect(autocommit=False) as session:
        session.execute("update orders set n = 1")
        session.execute("update orders set n = 2")
        session.commit()
    shop.catch_up()
    kept = pa.table(
        QueryBuilder()
        .register("orders", DeltaTable(shop.location("public.orders")))
        .execute('select count(*), count(distinct id), count("__END_AT"), sum(n) from orders')
    )
    assert [column[0].as_py() for column in kept.columns] == [120, 60, 60, 120]
