"""Unchanged TOAST values, which the stream does not send: never lost, in whatever order."""

from __future__ import annotations

import re

import pytest
from harness import big

ORDERS = {
    "update of a row in the lake": [[("update {t} set n = 1",)]],
    "insert and update in one transaction": [
        [("insert into {t} values (9, 0, %s, %s)", (big(9), big(-9))), ("update {t} set n = 1",)]
    ],
    "insert and update in one commit of the log": [
        [("insert into {t} values (9, 0, %s, %s)", (big(9), big(-9)))],
        [("update {t} set n = 1 where id = 9",)],
        [("update {t} set n = 2 where id = 9",)],
    ],
    "one column sent, the other not, and the other way round": [
        [("update {t} set a = %s where id = 1", (big(100),))],
        [("update {t} set b = %s where id = 1", (big(101),))],
        [("update {t} set n = 5 where id = 1",)],
    ],
    "after a change of key": [
        [("update {t} set id = 50 where id = 1",)],
        [("update {t} set n = 7 where id = 50",)],
    ],
    "through two keys and back": [
        [("update {t} set id = -1 where id = 1",), ("update {t} set id = 1 where id = 2",)],
        [("update {t} set id = 2 where id = -1",), ("update {t} set n = n + 1",)],
    ],
    "a key that another row left": [
        [("delete from {t} where id = 1",), ("update {t} set id = 1, n = 3 where id = 2",)]
    ],
    "deleted and inserted anew": [
        [("update {t} set n = 1 where id = 1",), ("delete from {t} where id = 1",)],
        [("insert into {t} values (1, 0, %s, null)", (big(200),)), ("update {t} set n = 8",)],
    ],
    "set to null, then another column": [
        [("update {t} set a = null where id = 1",)],
        [("update {t} set n = 4 where id = 1",)],
    ],
    "after a truncate": [
        [("truncate {t}",), ("insert into {t} values (1, 0, %s, %s)", (big(7), big(8)))],
        [("update {t} set c = 'x'",)],
    ],
}


@pytest.fixture(params=["default", "full"])
def shop_of_orders(request, shop):
    """Per order one table with columns out of line, and three rows of it in the lake."""
    for table in names().values():
        shop.sql(f"create table {table} (id int primary key, n int, a text, b text, c text)")
        shop.sql(f"alter table {table} replica identity {request.param}")
        for id_ in (1, 2, 3):
            shop.sql(f"insert into {table} values (%s, 0, %s, %s)", (id_, big(id_), big(-id_)))
    shop.carry("public.*")
    shop.catch_up()
    return shop


def names() -> dict[str, str]:
    return {order: re.sub(r"\W", "_", order) for order in ORDERS}


def change(shop, step: int) -> None:
    """The transaction at this place of each order that has one."""
    for order, table in names().items():
        with shop.database.connect(autocommit=False) as connection:
            for statement in ORDERS[order][step : step + 1]:
                for query, *parameters in statement:
                    connection.execute(query.format(t=table), *parameters)


STEPS = max(len(transactions) for transactions in ORDERS.values())


def test_6_unsent_values_are_kept_in_one_commit(shop_of_orders):
    """Invariant 6: all transactions arrive in one run, most of them in one stretch."""
    for step in range(STEPS):
        change(shop_of_orders, step)
    shop_of_orders.catch_up()
    for table in names().values():
        shop_of_orders.assert_equal(f"public.{table}")


def test_6_unsent_values_are_kept_across_restarts(shop_of_orders):
    """Invariant 6: each transaction is applied by a run of its own, which knows only the disk."""
    for step in range(STEPS):
        change(shop_of_orders, step)
        shop_of_orders.catch_up()
    for table in names().values():
        shop_of_orders.assert_equal(f"public.{table}")


def test_6_unsent_values_are_kept_while_running(shop_of_orders):
    """Invariant 6: one commit after the other in one process."""
    with shop_of_orders.running() as running:
        for step in range(STEPS):
            change(shop_of_orders, step)
            running.catch_up()
    for table in names().values():
        shop_of_orders.assert_equal(f"public.{table}")
