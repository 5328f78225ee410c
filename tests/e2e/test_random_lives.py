"""Random transactions, schema changes, runs and restarts: the lake always equals the source.

A failure prints the shortest such life and a blob that replays it. HEADRACE_LIVES=200 looks longer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from deltalake import DeltaTable
from harness import Shop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from headrace.engine.capture import CommitPolicy
from headrace.testing.database import temporary_database
from lives import COLUMNS, TABLES, Transaction, create_tables, names, small, transact, transactions

AT_ONCE = "debug_logical_replication_streaming"

steps = st.one_of(
    st.tuples(st.just("transact"), transactions),
    st.tuples(st.just("transact"), transactions),
    st.tuples(st.just("run")),
    st.tuples(st.just("live"), st.lists(transactions, max_size=4), st.booleans()),
    st.tuples(st.just("add_column"), names, st.sampled_from(COLUMNS), small, small),
    st.tuples(st.just("compact"), names),
)


class Life:
    """One database and one lake, from before the first run.

    `at_once`: the server (16 and newer) sends each change when it is made, before the commit.
    """

    def __init__(self, shop: Shop, *, at_once: bool) -> None:
        self.shop = shop
        if at_once and shop.sql(f"select 1 from pg_settings where name = '{AT_ONCE}'"):
            shop.sql(f"alter database {shop.database.name} set {AT_ONCE} = 'immediate'")
        self.columns = 0
        create_tables(shop.database)
        shop.carry(*(f"public.{name}" for name in TABLES))

    def transact(self, transaction: Transaction) -> None:
        transact(self.shop.database, transaction)

    def run(self) -> None:
        self.shop.catch_up()

    def live(self, transactions: Sequence[Transaction], catches_up: bool) -> None:
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


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("HEADRACE_LIVES", "6")),
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(steps, min_size=4, max_size=12), st.booleans())
def test_3_4_6_and_8_any_life_ends_with_a_lake_that_equals_its_source(server_dsn, steps, at_once):
    """Invariants 3, 4, 6 and 8 together."""
    with (
        temporary_database(server_dsn) as database,
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        if at_once:  # and is written so, too
            policy = partial(CommitPolicy, max_bytes=4000)
            patch.setattr("headrace.engine.capture.CommitPolicy", policy)
        life = Life(Shop(database, Path(folder)), at_once=at_once)
        for kind, *arguments in steps:
            getattr(life, kind)(*arguments)
        life.end()
