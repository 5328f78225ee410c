"""Compaction beside the applies: whatever happens to the rows while they are copied."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from delta_samples import (
    NAME,
    PIPELINE,
    Lake,
    Model,
    Row,
    assert_holds,
    at,
    changes,
    row_of,
    schema_of,
)
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.delta import upkeep
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.maintenance import Policy
from headrace.connectors.delta.rows import RowIndex
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.model import TableFormat

EAGER = Policy(together=2, tiny=0, worn=0.01, every=1)
SCHEMA = schema_of("int64")


class Beside(Executor):
    """Does work at once, and keeps what came of it until it is let go: work that took so long."""

    def __init__(self) -> None:
        self.kept: list[tuple[Future[Any], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.kept.append((future, fn(*args, **kwargs)))
        return future

    def let_go(self) -> None:
        for future, result in self.kept:
            future.set_result(result)
        self.kept.clear()


def opened(lake: Lake, beside: Executor, layout: TableFormat | None = None) -> MergeOnReadTable:
    place = DeltaDestination(str(lake.root / "lake"), beside=beside, policy=EAGER)
    return place.table(NAME, PIPELINE, layout=layout)


def rows(keys: range, value: int = 1) -> list[Row]:
    return [row_of("int64", key, value) for key in keys]


def operations(lake: Lake) -> list[str]:
    return [entry["operation"] for entry in reversed(DeltaTable(lake.path).history())]


# -- any life --------------------------------------------------------------------------------------

_keys = st.integers(0, 15)
_batch = st.tuples(
    st.dictionaries(_keys, st.integers(0, 30), max_size=6), st.sets(_keys, max_size=4)
)
_steps = st.one_of(
    st.tuples(st.just("apply"), _batch),
    st.tuples(st.just("apply"), _batch),
    st.tuples(st.just("finish"), st.none()),
    st.tuples(st.sampled_from(["truncate", "load", "reopen", "foreign"]), st.none()),
)
LAYOUTS = {
    "plain": TableFormat(),
    "clustered": TableFormat(cluster_by=("txt", "n")),
    "partitioned": TableFormat(partition_by=("n",), cluster_by=("id",)),
    "by_time": TableFormat(partition_by=("at", "price")),
    "by_key": TableFormat(partition_by=("id",)),
}


class Life:
    """Applies to a table and to its model, while copies of rows grow old."""

    def __init__(self, lake: Lake, kind: str, layout: TableFormat) -> None:
        self.lake, self.kind, self.layout = lake, kind, layout
        self.beside = Beside()
        self.schema = schema_of(kind)
        self.model = Model(self.schema)
        self.commit = 0
        self.table = opened(lake, self.beside, layout)
        self.load(None)

    def rows(self, keyed: dict[int, int]) -> list[Row]:
        return [row_of(self.kind, key, value) for key, value in keyed.items()]

    def apply(self, batch: tuple[dict[int, int], set[int]], *, truncate: bool = False) -> None:
        keyed, gone = batch
        upserts = self.rows(keyed)
        if self.schema.key:
            deletes = self.rows(dict.fromkeys(gone - keyed.keys(), 1))
        else:
            held = sorted(self.model.rows.elements(), key=repr)
            deletes = [held[i] for i in sorted(gone) if i < len(held)]
        self.commit += 1
        self.table.apply(changes(self.schema, upserts, deletes, truncate=truncate), at(self.commit))
        self.model.apply(upserts, deletes)

    def truncate(self, _: None) -> None:
        self.model = Model(self.schema)
        self.apply(({3: 7}, set()), truncate=True)

    def load(self, _: None) -> None:
        first, second = self.rows({0: 1, 1: 2, 2: 5}), self.rows({9: 4})
        self.commit += 1
        files = self.lake.snapshot(self.schema, first, second)
        self.table.load(self.schema, files, at(self.commit))
        self.model = Model(self.schema)
        self.model.apply([*first, *second], [])

    def finish(self, _: None) -> None:
        """What was begun beside is done; the next commit finds it."""
        self.beside.let_go()

    def reopen(self, _: None) -> None:
        """The copies are lost; a sweep finds them."""
        self.table = opened(self.lake, self.beside, self.layout)
        assert self.table.checkpoint(at(0).log_id) == at(self.commit)

    def foreign(self, _: None) -> None:
        DeltaTable(self.lake.path).alter.set_table_description(f"at {self.commit}")


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("none", "plain"),
        ("composite", "clustered"),
        ("int64", "partitioned"),
        ("none", "by_time"),
        ("timestamp", "by_key"),
    ],
)
@settings(max_examples=6, deadline=None)
@given(script=st.lists(_steps, min_size=3, max_size=12))
def test_a_copy_committed_at_any_later_moment_changes_no_row(
    kind: str, layout: str, script: list[Any]
) -> None:
    """Invariants 4 and 11, with compactions that are overtaken by anything."""
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Lake(Path(folder)), kind, LAYOUTS[layout])
        for name, argument in [*script, ("finish", None), ("apply", ({5: 5}, {1}))]:
            getattr(life, name)(argument)
        assert_holds(life.lake.path, life.model, ["deltalake", "duckdb"])


# -- one by one ------------------------------------------------------------------------------------


@pytest.fixture
def aged(lake: Lake) -> Iterator[tuple[MergeOnReadTable, Beside, Model]]:
    """A table of which two files were copied; nothing of that is committed."""
    beside, model = Beside(), Model(SCHEMA)
    table = opened(lake, beside)
    table.load(SCHEMA, lake.snapshot(SCHEMA, rows(range(4)), rows(range(4, 8))), at(1))
    table.apply(changes(SCHEMA, rows(range(8, 9))), at(2))
    model.apply(rows(range(9)), [])
    assert len(beside.kept) == 1
    yield table, beside, model
    assert_holds(lake.path, model)


def test_rows_that_went_while_they_were_copied_go_from_the_copy(
    lake: Lake, aged: tuple[MergeOnReadTable, Beside, Model]
) -> None:
    table, beside, model = aged
    table.apply(changes(SCHEMA, rows(range(1, 2), 3), rows(range(6, 7))), at(3))
    model.apply(rows(range(1, 2), 3), rows(range(6, 7)))
    beside.let_go()
    table.apply(changes(SCHEMA, rows(range(20, 21))), at(4))
    model.apply(rows(range(20, 21)), [])
    assert operations(lake)[-1] == "OPTIMIZE"
    assert_holds(lake.path, model)
    beside.let_go()
    table.apply(changes(SCHEMA, rows(range(1, 9), 9)), at(5))  # by the entries that moved
    model.apply(rows(range(1, 9), 9), [])


def test_no_key_is_read_again_for_the_index(
    aged: tuple[MergeOnReadTable, Beside, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    table, beside, model = aged
    beside.let_go()
    monkeypatch.setattr(RowIndex, "_entries", None)  # would fail
    table.apply(changes(SCHEMA, [], rows(range(1))), at(3))
    table.apply(changes(SCHEMA, [], rows(range(8, 9))), at(4))
    model.apply([], [*rows(range(1)), *rows(range(8, 9))])


def test_a_copy_of_rows_that_all_went_is_not_committed(
    lake: Lake, aged: tuple[MergeOnReadTable, Beside, Model]
) -> None:
    table, beside, model = aged
    table.apply(changes(SCHEMA, rows(range(30, 31)), rows(range(9))), at(3))
    model.apply(rows(range(30, 31)), rows(range(9)))
    beside.let_go()
    before = len(DeltaTable(lake.path).file_uris())
    table.apply(changes(SCHEMA, rows(range(31, 32))), at(4))
    model.apply(rows(range(31, 32)), [])
    assert "OPTIMIZE" not in operations(lake)  # its sources are no part of the table
    assert len(DeltaTable(lake.path).file_uris()) == before + 1


def test_an_end_takes_up_what_was_begun(lake: Lake) -> None:
    model = Model(SCHEMA)
    model.apply(rows(range(9)), [])
    place = DeltaDestination(str(lake.root / "lake"), policy=EAGER)
    table = place.table(NAME, PIPELINE)
    table.load(SCHEMA, lake.snapshot(SCHEMA, rows(range(4)), rows(range(4, 8))), at(1))
    table.apply(changes(SCHEMA, rows(range(8, 9))), at(2))
    table.settle()
    place.close()
    assert operations(lake)[-1] == "OPTIMIZE"
    assert_holds(lake.path, model)


def test_applies_go_on_while_rows_are_copied(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an apply waits for a copy."""
    copying, go_on = threading.Event(), threading.Event()
    copy = upkeep.compact

    def slow(*arguments: Any) -> Any:
        copying.set()
        assert go_on.wait(30)
        return copy(*arguments)

    monkeypatch.setattr(upkeep, "compact", slow)
    model = Model(SCHEMA)
    place = DeltaDestination(str(lake.root / "lake"), policy=EAGER)
    table = place.table(NAME, PIPELINE)
    table.load(SCHEMA, lake.snapshot(SCHEMA, rows(range(4)), rows(range(4, 12))), at(1))
    model.apply(rows(range(12)), [])
    for number in range(2, 6):
        table.apply(changes(SCHEMA, rows(range(number, number + 2), number)), at(number))
        model.apply(rows(range(number, number + 2), number), [])
        assert copying.wait(30)
    assert "OPTIMIZE" not in operations(lake)
    go_on.set()
    table.settle()
    assert operations(lake)[-1] == "OPTIMIZE"
    assert_holds(lake.path, model)
