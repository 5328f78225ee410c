"""Random transactions on a simulated table, cut at random, leave the destination equal to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import pytest
from change_samples import Keyed, Multiset, change_batch, table_schema
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_table import Commit, SimulatedTable, Written

from headrace.engine.collapse import collapse
from headrace.model import ChangeBatch, Lsn, ReplicaIdentity, TableSchema

DEFAULT, FULL = ReplicaIdentity.DEFAULT, ReplicaIdentity.FULL
COLUMNS = {"id": "bigint", "b": "text", "f": "double precision", "doc": "text", "img": "bytea"}
TABLES = {
    "integer key": table_schema(COLUMNS, ["id"]),
    "text key": table_schema(COLUMNS, ["b"]),
    "composite key": table_schema(COLUMNS, ["b", "id"]),
    "float key": table_schema(COLUMNS, ["f"]),
    "integer key, full": table_schema(COLUMNS, ["id"], FULL),
    "composite key, full": table_schema(COLUMNS, ["id", "b"], FULL),
    "keyless": table_schema(COLUMNS, [], FULL),
}

# Few values, so that keys meet: moves onto freed keys, swaps and re-inserts are common.
KEYS = {
    "id": st.integers(0, 4),
    "b": st.sampled_from(["", "a", "aa"]),
    "f": st.sampled_from([0.5, float("nan"), -3.0, 1e300]),
}
LONG = {
    "doc": st.none() | st.text("xyz", max_size=2),
    "img": st.none() | st.binary(max_size=1),
}
PICKS = st.integers(0, 5)


def common() -> st.SearchStrategy[tuple[Any, ...]]:
    """Commands that each stream is full of; a new object, since `one_of` drops the same twice."""
    return st.one_of(
        st.tuples(st.just("insert"), st.fixed_dictionaries({**KEYS, **LONG})),
        st.tuples(st.just("update"), PICKS, st.fixed_dictionaries({}, optional=LONG)),
        st.tuples(st.just("update"), PICKS, st.fixed_dictionaries({}, optional={**KEYS, **LONG})),
        st.tuples(st.just("update"), PICKS, st.fixed_dictionaries({}, optional=KEYS)),
        st.tuples(st.just("delete"), PICKS),
        st.tuples(st.just("commit")),
    )


RARE = st.one_of(
    st.tuples(st.just("truncate")),
    st.tuples(st.just("add_column"), st.none() | st.just("constant")),
)
SCRIPTS = st.lists(st.one_of(*[common() for _ in range(6)], RARE), min_size=20, max_size=60)
CUTS = st.lists(st.integers(1, 12), max_size=8)


def run(schema: TableSchema, script: Sequence[tuple[Any, ...]]) -> SimulatedTable:
    table = SimulatedTable(schema)
    for command, *arguments in script:
        getattr(table, command)(*arguments)
    table.commit()
    return table


def cut(items: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    """`items` in parts of the given sizes, the rest as the last part."""
    ends = [0]
    for size in sizes:
        ends.append(min(ends[-1] + size, len(items)))
    return [items[a:b] for a, b in pairwise([*ends, len(items)]) if b > a]


def batches(commits: Sequence[Commit], sizes: Sequence[int]) -> list[ChangeBatch]:
    """The changes in batches of one schema version each, cut anywhere, also inside transactions."""
    made = []
    changes = [written for commit in commits for written in commit.changes]
    for part in cut(changes, sizes):
        for _, run_ in groupby(part, key=lambda w: w.schema.version):
            group: list[Written] = list(run_)
            made.append(change_batch(group[0].schema, [w.change for w in group]))
    return made


class Evolving:
    """A destination that follows added columns before it applies what comes with them."""

    def __init__(self, schema: TableSchema) -> None:
        self.schema = schema
        self.table = Keyed(key=schema.key) if schema.key else Multiset()

    def evolve(self, schema: TableSchema) -> None:
        for name in schema.names[len(self.schema.names) :]:
            constant = schema.missing[name].as_py() if name in schema.missing else None
            if isinstance(self.table, Keyed):
                for row in self.table.rows.values():
                    row[name] = constant
            else:
                rows = self.table.rows.items()
                self.table.rows = type(self.table.rows)(
                    {(*row, (name, constant)): count for row, count in rows}
                )
        self.schema = schema


@pytest.mark.parametrize("name", TABLES)
@settings(max_examples=60, deadline=None)
@given(script=SCRIPTS, stretches=CUTS, pieces=CUTS, overlap=st.integers(0, 3))
def test_invariants_4_and_6_any_stream_cut_anywhere_leaves_the_table_equal(
    name: str,
    script: list[tuple[Any, ...]],
    stretches: list[int],
    pieces: list[int],
    overlap: int,
) -> None:
    source = run(TABLES[name], script)
    destination, done = Evolving(TABLES[name]), 0
    for stretch in cut(source.commits, stretches):
        newest = stretch[-1]
        destination.evolve(newest.schema)
        seen = source.commits[max(0, done - overlap) : done]  # a replay: all at or before `after`
        after = Lsn(seen[-1].lsn if seen else 0)
        changes = collapse(newest.schema, batches([*seen, *stretch], pieces), after)
        if newest.schema.identity is FULL:
            assert changes.fills == ()
        destination.table.apply(changes)
        assert destination.table.content() == newest.after
        done += len(stretch)


def test_the_simulated_table_meets_every_kind_of_change() -> None:
    """The streams above prove nothing unless they hold moves, unsent columns and old rows."""
    table = run(
        TABLES["integer key"],
        [
            ("insert", {"id": 1, "b": "", "f": 0.5, "doc": "long"}),
            ("update", 0, {"id": 2}),
            ("update", 0, {"doc": None}),
            ("truncate",),
        ],
    )
    written = [w.change for w in table.commits[0].changes]
    assert [c.op for c in written] == ["i", "u", "u", "t"]
    assert (written[1].before, written[1].unsent) == ({"id": 1}, ("doc",))
    assert (written[2].before, written[2].unsent) == (None, ())
