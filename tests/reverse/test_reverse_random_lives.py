"""Random versions of a Delta table, runs, and runs cut short: Postgres always equals the source.

A failure prints the shortest such life and a blob that replays it. HEADRACE_LIVES=200 looks longer.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from headrace import failpoints
from headrace.testing.database import temporary_database
from lakeside import Lakeside, by_deltalake, people

NAME, LOG = "crm.people", "crm.log"

# Where a run is cut: before and after what makes its work durable.
CUTS = (
    "postgres.load",
    "postgres.built",
    "postgres.swap",
    "postgres.swapped",
    "postgres.evolved",
    "postgres.applied",
    "postgres.committed",
    "sync.loaded",
    "sync.applied",
)

keys = st.integers(1, 12)
changes = st.one_of(
    st.tuples(st.just("upsert"), keys, keys),
    st.tuples(st.just("insert"), keys, keys),
    st.tuples(st.just("rename"), keys, keys),
    st.tuples(st.just("blank"), keys, keys),
    st.tuples(st.just("delete"), keys, keys),
    st.tuples(st.just("move"), keys, keys),
    st.tuples(st.just("reverse"), keys, keys),
    st.tuples(st.just("overwrite"), keys, keys),
    st.tuples(st.just("replace_one"), keys, keys),
    st.tuples(st.just("compact"), keys, keys),
    st.tuples(st.just("add_column"), keys, keys),
)
losses = st.one_of(
    st.tuples(st.just("restore"), keys, keys),
    st.tuples(st.just("toggle_feed"), keys, keys),
    st.tuples(st.just("vacuum"), keys, keys),
)
runs = st.one_of(
    st.tuples(st.just("run"), keys, keys),
    st.tuples(st.just("cut"), st.integers(0, len(CUTS) - 1), st.integers(1, 3)),
)

Step = tuple[str, int, int]


class Life:
    """A table of twelve keys at most, and a project that carries it."""

    def __init__(self, lakeside: Lakeside, *, appends: bool) -> None:
        self.lakeside = lakeside
        self.source = lakeside.source(NAME)
        self.columns: list[str] = []
        self.feed = True
        self.oldest = 0  # that can be restored
        self.source.write(people(1, 2, 3))
        pipelines: dict[str, list[str | dict[str, object]]] = {"current": [NAME]}
        if appends:
            pipelines["changes"] = [{"source": NAME, "name": LOG, "mode": "append", "key": ["id"]}]
        self.appends = appends
        lakeside.declare(pipelines)

    # -- versions ----------------------------------------------------------------------------------

    def rows(self, ids: Sequence[int], tag: int) -> pa.Table:
        rows = people(*ids, name=f"{tag}-")
        for column in self.columns:
            rows = rows.append_column(column, pa.array([f"{column}{tag}"] * len(ids), pa.string()))
        return rows

    def upsert(self, a: int, b: int) -> None:
        self.source.merge(self.rows(range(a, min(a + 3, 13)), b))

    def insert(self, a: int, b: int) -> None:
        absent = sorted({a, b} - self._keys())
        if absent:
            self.source.write(self.rows(absent, a))

    def rename(self, a: int, b: int) -> None:
        self.source.update(f"id >= {a}", name=f"'to {b}'")

    def blank(self, a: int, b: int) -> None:
        self.source.update(f"id % {b} = 0", name="null")

    def delete(self, a: int, b: int) -> None:
        self.source.delete(f"id >= {a}" if a > b else f"id = {a}")

    def move(self, a: int, b: int) -> None:
        if b not in self._keys():
            self.source.update(f"id = {a}", id=str(b))

    def reverse(self, a: int, b: int) -> None:
        """Every key takes another's place, in one version."""
        self.source.update("true", id="13 - id")

    def overwrite(self, a: int, b: int) -> None:
        self.source.write(self.rows(range(a, 13), b), mode="overwrite")

    def replace_one(self, a: int, b: int) -> None:
        self.source.write(self.rows([a], b), mode="overwrite", predicate=f"id = {a}")

    def compact(self, a: int, b: int) -> None:
        self.source.delta.optimize.compact()

    def add_column(self, a: int, b: int) -> None:
        absent = sorted(set(range(1, 13)) - self._keys())
        if absent and len(self.columns) < 3:
            self.columns.append(f"x{len(self.columns)}")
            rows = self.rows(absent[:1], b)
            write_deltalake(self.source.path, rows, mode="append", schema_mode="merge")

    def restore(self, a: int, b: int) -> None:
        version = max(self.source.version - a, self.oldest)
        if version < self.source.version:
            self.source.delta.restore(version)
            self.columns = [field.name for field in self.source.delta.schema().fields][2:]

    def toggle_feed(self, a: int, b: int) -> None:
        self.feed = not self.feed
        on = "true" if self.feed else "false"
        self.source.delta.alter.set_table_properties({"delta.enableChangeDataFeed": on})

    def vacuum(self, a: int, b: int) -> None:
        table = self.source.delta
        table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
        self.oldest = self.source.version

    def _keys(self) -> set[int]:
        return set(self.source.delta.to_pyarrow_table(columns=["id"]).column("id").to_pylist())

    # -- runs --------------------------------------------------------------------------------------

    def run(self, a: int = 0, b: int = 0) -> None:
        self.lakeside.catch_up()
        self.lakeside.assert_equal(NAME, readers=(by_deltalake,))
        if self.appends:
            self.lakeside.assert_appended(NAME, LOG)

    def cut(self, point: int, hit: int) -> None:
        """A run that dies where it hits a failpoint, if it gets there."""
        failpoints.arm(f"{CUTS[point]}=enospc@{hit}")
        try:
            self.lakeside.run()
        finally:
            failpoints.arm("")


SETTINGS = settings(
    max_examples=int(os.environ.get("HEADRACE_LIVES", "5")),
    deadline=None,
    database=None,
    print_blob=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def live(server_dsn: str, life: Sequence[Step], *, appends: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, temporary_database(server_dsn) as database:
        lived = Life(Lakeside(database, Path(folder)), appends=appends)
        for name, *arguments in life:
            getattr(lived, name)(*arguments)
        lived.run()


@SETTINGS
@given(life=st.lists(st.one_of(changes, changes, runs), min_size=6, max_size=14))
def test_invariants_3_4_after_any_life_a_table_equals_its_source_and_appended_rows_its_feed(
    server_dsn: str, life: list[Step]
) -> None:
    live(server_dsn, life, appends=True)


@SETTINGS
@given(life=st.lists(st.one_of(changes, losses, runs), min_size=6, max_size=14))
def test_invariants_3_4_after_any_life_a_table_equals_its_source_whatever_its_feed_lost(
    server_dsn: str, life: list[Step]
) -> None:
    live(server_dsn, life, appends=False)
