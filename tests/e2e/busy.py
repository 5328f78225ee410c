"""Tables that change without pause, by every kind of change."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
from harness import Shop

from toast_orders import big

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


def fill(shop: Shop) -> None:
    """Create the tables, of some hundred pages, and carry them."""
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


@contextmanager
def writing(shop: Shop) -> Iterator[list[int]]:
    """Changes the tables without pause for the length of the block; gives how often, at its end."""
    stop = threading.Event()
    done: list[int] = []

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
