"""Snapshots that are taken while the source goes on changing."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from harness import big

from headrace.connectors.postgres import snapshot

TABLES = ("public.orders", "public.items", "public.docs")
CHANGES = (
    "insert into orders values (nextval('ids'), 'new', now())",
    "update orders set state = state || '.' where id % 97 = {n} % 97",
    "delete from orders where id % 301 = {n} % 301",
    "update orders set id = -id where id % 501 = {n} % 501",
    "insert into items select {n}, g, g / 7.0 from generate_series(1, 20) g on conflict do nothing",
    "update items set part = part + 10000 * ({n} + 1) where orders = {n} % 500 and part < 10000",
    "delete from items where orders = {n} % 300",
    "update docs set n = n + 1 where id % 5 = {n} % 5",
    "update docs set id = id + 1000 where id = {n} % 40",
    "insert into docs values ({n} + 5000, 0, repeat(md5('{n}'), 400)) on conflict do nothing",
)


@pytest.fixture
def busy_shop(shop, monkeypatch):
    """Tables of many chunks."""
    monkeypatch.setattr(snapshot, "MIN_CHUNK_PAGES", 20)
    monkeypatch.setattr(snapshot, "MAX_CHUNK_PAGES", 20)
    shop.sql("""
        create sequence ids start 1000000;
        create table orders (id bigint primary key, state text, at timestamptz);
        create table items (orders int, part int, price numeric(9, 2), primary key (orders, part));
        create table docs (id int primary key, n int, body text);
        insert into orders select g, 'first', now() from generate_series(1, 40000) g;
        insert into items
            select g, p, g / 3.0 from generate_series(1, 500) g, generate_series(1, 30) p;
    """)
    for i in range(40):
        shop.sql("insert into docs values (%s, 0, %s)", (i, big(i)))
    shop.carry(*TABLES)
    return shop


@contextmanager
def writing(shop):
    """Changes the tables without pause for the length of the block; gives how often, at its end."""
    stop, done = threading.Event(), []

    def write() -> None:
        chance = random.Random(7)
        with psycopg.connect(shop.database.dsn) as connection:
            while not stop.is_set():
                number = len(done)
                for change in chance.sample(CHANGES, 3):
                    connection.execute(change.format(n=number))
                connection.rollback() if number % 5 == 4 else connection.commit()
                done.append(number)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            yield done
        finally:
            stop.set()
            writer.result()


def test_7_a_snapshot_beside_a_busy_stream_equals_the_stream_alone(busy_shop):
    """Invariant 7: several tables of several chunks are copied while all of them change."""
    with writing(busy_shop) as done, busy_shop.running() as running:
        before = len(done)
        running.wait(all_loaded)
        assert len(done) > before
        running.catch_up()
    busy_shop.catch_up()
    for table in TABLES:
        busy_shop.assert_equal(table)
    assert sum(len(snapshots(busy_shop, table)) for table in TABLES) > 10


def all_loaded(views) -> bool:
    states = [s for view in views for m in view.materializations for s in m.tables.values()]
    return all(state.checkpoint is not None for state in states)


def snapshots(shop, table):
    return list((shop.state / "log/shop/snapshots" / table).rglob("*.parquet"))


def test_7_a_table_added_later_is_copied_beside_the_stream_of_the_others(busy_shop):
    """Invariant 7: the log and the slot are old; only the new table is copied."""
    busy_shop.carry(*TABLES[:1])
    busy_shop.catch_up()
    busy_shop.carry(*TABLES)
    with writing(busy_shop), busy_shop.running() as running:
        running.wait(all_loaded)
        running.catch_up()
    busy_shop.catch_up()
    for table in TABLES:
        busy_shop.assert_equal(table)


def test_7_a_copy_that_was_cut_short_is_begun_anew(busy_shop):
    """Invariant 7: the run is stopped in the middle of the copy, while the tables change."""
    with writing(busy_shop):
        with busy_shop.running() as running:
            running.wait(lambda views: any(p.rows for v in views for p in copying(v)))
        with busy_shop.running() as running:
            running.wait(all_loaded)
    busy_shop.catch_up()
    for table in TABLES:
        busy_shop.assert_equal(table)


def copying(view):
    return list(view.copier.progress.values())
