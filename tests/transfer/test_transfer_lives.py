"""Random transactions, schema changes, runs, resyncs and lost connections: both sides end equal.

A failure prints the shortest such life and a blob that replays it. HEADRACE_LIVES=200 looks longer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mirror import Mirror

from headrace.testing.database import temporary_database
from lives import COLUMNS, TABLES, Transaction, create_tables, names, small, transact, transactions

# Every session of the run at the destination ends, in whatever it just does.
CUT = """
select pg_terminate_backend(pid) from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid()
"""

steps = st.one_of(
    st.tuples(st.just("transact"), transactions),
    st.tuples(st.just("transact"), transactions),
    st.tuples(st.just("run")),
    st.tuples(st.just("live"), st.lists(transactions, max_size=4), st.booleans(), st.booleans()),
    st.tuples(st.just("add_column"), names, st.sampled_from(COLUMNS), small, small),
    st.tuples(st.just("resync"), names),
    st.tuples(st.just("forge"), names),
)


class Life:
    """Two databases, from before the first run."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.columns = 0
        create_tables(mirror.source)
        mirror.carry(*(f"public.{name}" for name in TABLES))

    def transact(self, transaction: Transaction) -> None:
        transact(self.mirror.source, transaction)

    def run(self) -> None:
        self.mirror.catch_up()

    def live(self, changes: Sequence[Transaction], catches_up: bool, cut: bool) -> None:
        """Change the source beside a run, which may be stopped wherever it has come to."""
        with self.mirror.running() as running:
            for transaction in changes:
                self.transact(transaction)
                if cut:
                    self.mirror.at_target(CUT)
            if catches_up:
                running.catch_up()

    def add_column(self, name: str, kind: str, a: int, b: int) -> None:
        self.columns += 1
        self.mirror.sql(f"alter table {name} add x{self.columns} {kind.format(a=a, b=b)}")

    def resync(self, name: str) -> None:
        assert not self.mirror.project.resync([f"public.{name}"])

    def forge(self, name: str) -> None:
        """Rows change behind our back; a resync brings them back."""
        self.mirror.catch_up()
        self.mirror.at_target(f"update {name} set n = 1000 + id; delete from {name} where id = 2")
        self.resync(name)

    def end(self) -> None:
        """A last row in each table, since the stream tells of a new column with a row only."""
        for number, name in enumerate(TABLES):
            self.mirror.sql(f"insert into {name} (id, code) values ({1000 + number}, 'last')")
        self.mirror.catch_up()
        self.mirror.assert_equal(*TABLES)
        assert self.mirror.project.quarantine() == []
        assert all(verified.equal for verified in self.mirror.project.verify())


@pytest.mark.slow
@settings(
    max_examples=int(os.environ.get("HEADRACE_LIVES", "6")),
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(steps, min_size=4, max_size=12))
def test_3_4_6_and_8_any_life_ends_with_two_databases_that_are_equal(server_dsn, steps):
    """Invariants 3, 4, 6 and 8 together."""
    with (
        temporary_database(server_dsn) as source,
        temporary_database(server_dsn) as target,
        tempfile.TemporaryDirectory() as folder,
    ):
        life = Life(Mirror(source, target, Path(folder)))
        for kind, *arguments in steps:
            getattr(life, kind)(*arguments)
        life.end()
