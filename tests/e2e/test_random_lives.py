"""Random transactions, schema changes, runs and restarts: the lake always equals the source.

A failure prints the shortest such life and a blob that replays it. HEADRACE_LIVES=200 looks longer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from deltalake import DeltaTable
from harness import Shop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from headrace.testing.database import temporary_database
from toast_orders import big

# Each table has columns id, code, n and body; what more makes it the kind it is.
TABLES = {
    "plain": "",
    "whole": "alter table whole replica identity full",
    "indexed": "alter table indexed alter code set not null, add unique (code);"
    " alter table indexed replica identity using index indexed_code_key",
    "bag": "alter table bag drop constraint bag_pkey; alter table bag replica identity full",
}
STATEMENTS = (
    "insert into {t} (id, code, n) values ({a}, 'c{a}', {b})",
    "insert into {t} (id, code, n, body) values ({a}, 'c{a}', {b}, '{long}')",
    "insert into {t} (id, code, n) select g, 'c' || g, {b} from generate_series({a}, {a} + 5) g",
    "update {t} set n = n + {b} where id = {a}",
    "update {t} set n = null where id >= {a}",
    "update {t} set body = '{long}' where id = {a}",
    "update {t} set id = {b} where id = {a}",
    "update {t} set id = -id, n = {b} where id > {a}",
    "update {t} set code = code || 'x', n = {b} where id = {a}",
    "update {t} set body = null where id = {b}",
    "delete from {t} where id = {a}",
    "delete from {t} where n = {b}",
    "delete from bag where ctid = (select min(ctid) from bag where n = {b})",
    "truncate {t}",
)
COLUMNS = ("int", "int default {a}", "text default 'd{b}'", "numeric(5,2) default {a}.25")

small = st.integers(1, 12)
names = st.sampled_from(sorted(TABLES))
statements = st.tuples(st.sampled_from(STATEMENTS), names, small, small)
transactions = st.tuples(st.lists(statements, min_size=1, max_size=6), st.booleans())
steps = st.one_of(
    st.tuples(st.just("transact"), transactions),
    st.tuples(st.just("transact"), transactions),
    st.tuples(st.just("run")),
    st.tuples(st.just("live"), st.lists(transactions, max_size=4), st.booleans()),
    st.tuples(st.just("add_column"), names, st.sampled_from(COLUMNS), small, small),
    st.tuples(st.just("compact"), names),
)


class Life:
    """One database and one lake, from before the first run."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.columns = 0
        for name, more in TABLES.items():
            shop.sql(f"create table {name} (id int primary key, code text, n int, body text)")
            shop.sql(f"insert into {name} select g, 'c' || g, g, null from generate_series(1, 6) g")
            if more:
                shop.sql(more)
        shop.carry(*(f"public.{name}" for name in TABLES))

    def transact(self, transaction: tuple[Sequence[tuple[str, str, int, int]], bool]) -> None:
        """One transaction; a statement that violates a key is undone by itself."""
        statements, commits = transaction
        with psycopg.connect(self.shop.database.dsn) as connection:
            connection.execute("select 1")  # begins, so that what follows are savepoints
            for text, name, a, b in statements:
                query = text.format(t=name, a=a, b=b, long=big(a + 100 * b))
                try:
                    with connection.transaction():
                        connection.execute(query.encode())
                except psycopg.IntegrityError:
                    continue
            connection.commit() if commits else connection.rollback()

    def run(self) -> None:
        self.shop.catch_up()

    def live(self, transactions: Sequence[Any], catches_up: bool) -> None:
        """Change the source beside a run, which may be stopped wherever it has come to."""
        with self.shop.running() as running:
            for transaction in transactions:
                self.transact(transaction)
            if catches_up:
                running.catch_up()

    def add_column(self, name: str, kind: str, a: int, b: int) -> None:
        self.columns += 1
        self.shop.sql(f"alter table {name} add x{self.columns} {kind.format(a=a, b=b)}")

    def compact(self, name: str) -> None:
        location = self.shop.location(f"public.{name}")
        if DeltaTable.is_deltatable(location):
            DeltaTable(location).optimize.compact()

    def end(self) -> None:
        """A last row in each table, since the stream tells of a new column with a row only."""
        for number, name in enumerate(TABLES):
            self.shop.sql(f"insert into {name} (id, code) values ({1000 + number}, 'last')")
        self.shop.catch_up()
        for name in TABLES:
            self.shop.assert_equal(f"public.{name}")
        assert all(verified.equal for verified in self.shop.project.verify())


@settings(
    max_examples=int(os.environ.get("HEADRACE_LIVES", "6")),
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(steps, min_size=4, max_size=12))
def test_3_4_6_and_8_any_life_ends_with_a_lake_that_equals_its_source(server_dsn, steps):
    """Invariants 3, 4, 6 and 8 together."""
    with temporary_database(server_dsn) as database, tempfile.TemporaryDirectory() as folder:
        life = Life(Shop(database, Path(folder)))
        for kind, *arguments in steps:
            getattr(life, kind)(*arguments)
        life.end()
