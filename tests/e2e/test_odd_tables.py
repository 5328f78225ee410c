"""Rows, keys and shapes that others have replicated wrong: every case beside all others."""

from __future__ import annotations

from odd_tables import ODD, steps


def test_4_and_6_odd_tables_equal_their_source(shop):
    """Invariants 4 and 6: the first transactions come by a run of their own, the rest by one."""
    for odd in ODD.values():
        shop.sql(odd.create)
    shop.carry("public.*", "apart.*")
    shop.catch_up()
    for number, step in enumerate(steps()):
        for transaction in step:
            with shop.database.connect(autocommit=False) as connection:
                for statement in transaction:
                    connection.execute(statement.encode())
        if number == 0:
            shop.catch_up()
    shop.catch_up()
    for table in (table for odd in ODD.values() for table in odd.tables):
        plain = table.removeprefix("only ")
        target = plain if "." in plain else f"public.{plain}"
        shop.assert_equal(table, target, readers=["deltalake"])
