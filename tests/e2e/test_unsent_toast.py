"""Unchanged TOAST values, which the stream does not send: never lost, in whatever order."""

from __future__ import annotations

import pytest

from toast_orders import ORDERS, STEPS, big, names


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


def change(shop, step: int) -> None:
    """The transaction at this place of each order that has one."""
    for order, table in names().items():
        with shop.database.connect(autocommit=False) as connection:
            for statement in ORDERS[order][step : step + 1]:
                for query, *parameters in statement:
                    connection.execute(query.format(t=table), *parameters)


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
