"""Columns that change at the source, in any way, in one run and across restarts, by each policy."""

from __future__ import annotations

import random

import pytest

from headrace.errors import HeadraceError

NAMES = ["a", "b", "c", "d"]
TYPES = ["smallint", "integer", "real", "numeric(9,2)", "varchar(20)", "text"]
WIDER = {
    "smallint": "integer",
    "integer": "bigint",
    "real": "double precision",
    "numeric(9,2)": "numeric(12,3)",
    "varchar(20)": "text",
}


class Goods:
    """A table of Postgres that random statements change; `columns` are their types by name."""

    def __init__(self, shop, seed: int) -> None:
        self.shop, self.random = shop, random.Random(seed)
        self.columns: dict[str, str] = {"a": "integer", "b": "text"}
        shop.sql("create table goods (id int primary key, a integer, b text)")
        shop.sql("insert into goods select g, g, 'text ' || g from generate_series(1, 12) g")

    def change_rows(self) -> list[str]:
        pick = self.random
        key = pick.randint(1, 15)
        given = {n: self._value(t) for n, t in self.columns.items() if pick.random() < 0.7}
        names = "".join(f", {name}" for name in given)
        values = "".join(f", {value}" for value in given.values())
        sets = "".join(f", {name} = {value}" for name, value in given.items())
        return [
            f"delete from goods where id = {pick.randint(1, 15)}",
            f"insert into goods (id{names}) values ({key}{values})"
            f" on conflict (id) do update set id = excluded.id{sets}",
        ][pick.randint(0, 1) :]

    def _value(self, kind: str) -> str:
        number = self.random.randint(-9, 9)
        return f"'text {number}'" if kind in ("text", "varchar(20)") else str(number)

    def change_columns(self) -> list[str]:
        pick, free = self.random, [name for name in NAMES if name not in self.columns]
        what = pick.choice(["add", "drop", "rename", "widen", "exchange"])
        if what == "add" and free:
            name, kind = pick.choice(free), pick.choice(TYPES)
            self.columns[name] = kind
            default = f" default {self._value(kind)}" if pick.random() < 0.5 else ""
            return [f"alter table goods add {name} {kind}{default}"]
        if not self.columns:
            return []
        name = pick.choice([*self.columns])
        if what == "drop":
            del self.columns[name]
            return [f"alter table goods drop {name}"]
        if what == "rename" and free:
            other = pick.choice(free)
            self.columns[other] = self.columns.pop(name)
            return [f"alter table goods rename {name} to {other}"]
        if what == "widen" and self.columns[name] in WIDER:
            self.columns[name] = WIDER[self.columns[name]]
            return [f"alter table goods alter {name} type {self.columns[name]}"]
        other = pick.choice([*self.columns])
        if what == "exchange" and other != name:
            one, two = self.columns[name], self.columns[other]
            self.columns[name], self.columns[other] = two, one
            return [
                f"alter table goods rename {name} to aside",
                f"alter table goods rename {other} to {name}",
                f"alter table goods rename aside to {other}",
            ]
        return []

    def do(self) -> None:
        """A few changes of rows and columns, each alone or in one transaction."""
        statements = [
            statement
            for _ in range(self.random.randint(1, 5))
            for statement in (
                self.change_columns() if self.random.random() < 0.4 else self.change_rows()
            )
        ]
        alone = self.random.random() < 0.6
        with self.shop.database.connect(autocommit=alone) as connection:
            for statement in statements:
                connection.execute(statement)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "drop_columns"), [(0, False), (1, True), (2, False)])
def test_8_random_changes_of_columns_misplace_no_value(shop, seed, drop_columns):
    """Invariants 4 and 8: a table that cannot tell what became of its columns says so, and a
    resync brings it back."""
    goods = Goods(shop, seed)
    shop.carry("public.goods", drop_columns=drop_columns)
    shop.catch_up()
    stops = 0
    for _ in range(3):
        for _ in range(4):
            goods.do()
        stops += compared(shop)
        with shop.running() as running:
            for _ in range(4):
                goods.do()
                goods.do()
                running.catch_up()
        stops += compared(shop)
    assert stops < 6


def compared(shop) -> bool:
    """Whether the table had to stop; it must be its source's like after that."""
    # Postgres tells of columns with the next row.
    shop.sql("insert into goods (id) select max(id) + 100 from goods")
    failures = shop.run()
    for failure in failures:
        assert isinstance(failure.error, HeadraceError)
        assert "headrace resync public.goods" in str(failure.error)
        assert not shop.project.resync(["public.goods"])
    shop.assert_equal("public.goods")
    return bool(failures)
