"""A table's Change Data Feed tells exactly what its source's changes did, to every reader, with
deletion vectors and without."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from delta_history_child import SHAPE, live
from delta_samples import (
    LOG_ID,
    Lake,
    Model,
    Row,
    assert_holds,
    at,
    changes,
    multiset,
    row_of,
    schema_of,
)
from deltalake import DeltaTable, QueryBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.delta import writer
from headrace.connectors.delta.changes import read_changes
from headrace.connectors.delta.columns import Layout
from headrace.connectors.delta.history import TableHistory
from headrace.connectors.delta.state import load_state
from headrace.log.storage import open_storage
from headrace.model import ChangeFeed, Column, TableFormat

NAMES = ["id", "tod", "__START_AT", "__END_AT"]  # of `live`

Told = Counter[Row]  # rows with their change type last

_keyed = st.dictionaries(st.integers(0, 15), st.integers(0, 30), max_size=6)
_steps = st.one_of(
    st.tuples(st.just("apply"), st.tuples(_keyed, st.sets(st.integers(0, 15), max_size=4))),
    st.tuples(st.just("apply"), st.tuples(_keyed, st.sets(st.integers(0, 15), max_size=4))),
    st.tuples(st.sampled_from(["truncate", "load"]), _keyed),
    st.tuples(st.just("switch"), st.booleans()),
    st.tuples(st.just("compact"), st.none()),
)


def told(kind: str, rows: Iterable[Row]) -> Told:
    return multiset((*row, kind) for row in rows)


class ToldLife:
    """Runs the steps on a table with a feed, and notes what each commit must be told as."""

    def __init__(self, lake: Lake, kind: str, layout: TableFormat) -> None:
        self.lake, self.kind, self.layout = lake, kind, layout
        self.schema = schema_of(kind)
        self.model = Model(self.schema)
        self.expected: dict[int, Told] = {}
        self.commit = 0
        self.table = lake.open(layout=layout)
        self.load({key: key + 1 for key in range(9)})

    def rows(self, keyed: dict[int, int]) -> list[Row]:
        return [row_of(self.kind, key, value) for key, value in keyed.items()]

    def load(self, keyed: dict[int, int]) -> None:
        rows, self.commit = self.rows(keyed), self.commit + 1
        files = self.lake.snapshot(self.schema, rows[:2], rows[2:])
        self.table.load(self.schema, files, at(self.commit))
        self._all_new(rows)

    def truncate(self, keyed: dict[int, int]) -> None:
        rows, self.commit = self.rows(keyed), self.commit + 1
        self.table.apply(changes(self.schema, rows, truncate=True), at(self.commit))
        self._all_new(rows)

    def _all_new(self, rows: list[Row]) -> None:
        gone = self.model.rows.elements()
        self.expected[self.commit] = told("delete", gone) + told("insert", rows)
        self.model = Model(self.schema, Counter(rows))

    def apply(self, batch: tuple[dict[int, int], set[int]]) -> None:
        upserts, self.commit = self.rows(batch[0]), self.commit + 1
        held = sorted(self.model.rows.elements(), key=repr)
        if self.schema.key:
            deletes = self.rows(dict.fromkeys(batch[1] - batch[0].keys(), 1))
            keys = {self.model.key(row) for row in [*upserts, *deletes]}
            gone = [row for row in held if self.model.key(row) in keys]
        else:
            gone = deletes = [held[i] for i in sorted(batch[1]) if i < len(held)]
        self.table.apply(changes(self.schema, upserts, deletes), at(self.commit))
        self.model.apply(upserts, deletes)
        self.expected[self.commit] = self._told_of(gone, upserts)

    def _told_of(self, gone: list[Row], come: list[Row]) -> Told:
        if self.layout.change_feed is ChangeFeed.ROWS or not self.schema.key:
            return told("delete", gone) + told("insert", come)
        key = self.model.key
        old, new = set(map(key, gone)), set(map(key, come))
        return (
            told("delete", [row for row in gone if key(row) not in new])
            + told("update_preimage", [row for row in gone if key(row) in new])
            + told("update_postimage", [row for row in come if key(row) in old])
            + told("insert", [row for row in come if key(row) not in old])
        )

    def switch(self, deletion_vectors: bool) -> None:
        """Somebody edits headrace.yaml, and the next run finds the table."""
        self.layout = replace(self.layout, deletion_vectors=deletion_vectors)
        self.table = self.lake.open(layout=self.layout)

    def compact(self, _: None) -> None:
        DeltaTable(self.lake.path).optimize.compact()


def commits(lake: Lake) -> dict[int, int]:
    """The change log's commit of each Delta version that carries one."""
    found = {}
    for path in sorted((lake.path / "_delta_log").glob("*.json")):
        for action in map(json.loads, path.read_text().splitlines()):
            if "headrace" in action.get("commitInfo", {}):
                found[int(path.stem)] = action["commitInfo"]["headrace"]["commit"]
    return found


def by_load_cdf(lake: Lake, names: list[str]) -> pa.Table:
    return pa.table(DeltaTable(lake.path).load_cdf(starting_version=0))


def by_our_reader(lake: Lake, names: list[str]) -> pa.Table:
    storage = open_storage(lake.path)
    state = load_state(storage)
    assert state is not None
    history = TableHistory(lambda: storage)
    found = [commit for commit in history.commits(0, state.version) if commit is not None]
    layout = Layout.of(state.metadata)
    return pa.Table.from_batches(read_changes(storage, layout, found))


def fed(table: pa.Table, names: list[str], lake: Lake) -> dict[int, Told]:
    """What a feed tells of each commit of the change log."""
    known, found = commits(lake), defaultdict[int, Told](Counter)
    columns = [table.column(n).to_pylist() for n in [*names, "_change_type", "_commit_version"]]
    for *row, version in zip(*columns, strict=True):
        assert version in known, f"version {version} changed no row"
        found[known[version]] += multiset([row])
    return found


@pytest.mark.parametrize("feed", [ChangeFeed.ROWS, ChangeFeed.IMAGES])
@pytest.mark.parametrize("kind", ["int64", "composite", "none"])
@settings(max_examples=8, deadline=None)
@given(
    vectors=st.booleans(),
    group_rows=st.sampled_from([2, 1 << 17]),  # deltalake misreads vectors over several row groups
    script=st.lists(_steps, min_size=2, max_size=8),
)
def test_the_feed_of_any_life_is_the_changes_of_its_source(
    kind: str, feed: ChangeFeed, vectors: bool, group_rows: int, script: list[Any]
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(writer, "ROW_GROUP_ROWS", group_rows)
        layout = TableFormat(deletion_vectors=vectors, change_feed=feed)
        life = ToldLife(Lake(Path(folder)), kind, layout)
        for name, argument in script:
            getattr(life, name)(argument)
        expected = {commit: rows for commit, rows in life.expected.items() if rows}
        for read in (by_our_reader, by_load_cdf):
            assert fed(read(life.lake, life.schema.names), life.schema.names, life.lake) == expected
        assert_holds(life.lake.path, life.model)
        assert life.lake.open().checkpoint(LOG_ID) == at(life.commit)


@pytest.mark.parametrize("vectors", [True, False])
def test_versions_that_end_are_told_exactly(
    lake: Lake, vectors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By updates, a truncate and another snapshot, some of a file's rows at a time."""
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 3)
    layout = TableFormat(deletion_vectors=vectors, change_feed=ChangeFeed.ROWS)
    live(lake, lake.open(shape=SHAPE, layout=layout))
    found, before = fed(by_load_cdf(lake, NAMES), NAMES, lake), Counter[Row]()
    assert found == fed(by_our_reader(lake, NAMES), NAMES, lake)
    for version, commit in sorted(commits(lake).items()):
        now = held(lake, version)
        assert found[commit] == told("delete", before - now) + told("insert", now - before)
        before = now


def held(lake: Lake, version: int) -> Told:
    table = DeltaTable(lake.path, version=version)
    query = f"select {', '.join(NAMES)} from held"
    rows = QueryBuilder().register("held", table).execute(query).read_all()
    return multiset(zip(*(rows[name].to_pylist() for name in NAMES), strict=True))


@pytest.mark.parametrize("vectors", [True, False])
def test_rows_that_get_a_constant_with_a_new_column_are_told_once(
    lake: Lake, vectors: bool
) -> None:
    """A reader that follows the feed must not miss what Postgres wrote into its rows."""
    layout = TableFormat(deletion_vectors=vectors, change_feed=ChangeFeed.ROWS)
    life = ToldLife(lake, "int64", layout)
    life.apply(({1: 5}, {0}))
    constant = Column("extra", pa.int32(), "int4", 40)
    schema = replace(
        life.schema,
        version=2,
        columns=(*life.schema.columns, constant),
        missing={"extra": pa.scalar(7, pa.int32())},
    )
    life.table.evolve(schema)
    feed = pa.table(DeltaTable(lake.path).load_cdf(starting_version=2))
    kinds = dict(zip(("delete", "insert"), map(list[Any], ([], [])), strict=True))
    for key, extra, kind in zip(
        *(feed.column(n).to_pylist() for n in ("id", "extra", "_change_type")), strict=True
    ):
        kinds[kind].append((key, extra))
    keys = sorted(row[0] for row in life.model.rows)
    assert sorted(kinds["insert"]) == [(key, 7) for key in keys]
    assert sorted(key for key, _ in kinds["delete"]) == keys


def test_what_the_user_no_longer_wants_leaves_the_table(lake: Lake) -> None:
    """Reader version 1, and no file with a vector: nothing that a reader would have to know."""
    schema = replace(schema_of("int64"), columns=schema_of("int64").columns[:3])
    names = [0, 1, 2]
    rows = [tuple(row_of("int64", key, 1)[i] for i in names) for key in range(9)]
    table = lake.open()
    table.load(schema, lake.snapshot(schema, rows), at(1))
    table.apply(changes(schema, [], rows[:2]), at(2))
    again = lake.open(layout=TableFormat(deletion_vectors=False))
    again.apply(changes(schema, [], rows[2:4]), at(3))
    protocol = DeltaTable(lake.path).protocol()
    assert (protocol.min_reader_version, protocol.reader_features) == (1, None)
    files = DeltaTable(lake.path).to_pyarrow_table()  # which refuses deletion vectors
    assert sorted(files.column("id").to_pylist()) == sorted(row[0] for row in rows[4:])
    assert lake.open().checkpoint(LOG_ID) == at(3)


def test_a_feed_that_somebody_else_switched_on_stays_and_is_told(lake: Lake) -> None:
    life = ToldLife(lake, "int64", TableFormat(deletion_vectors=False))
    DeltaTable(lake.path).alter.set_table_properties({"delta.enableChangeDataFeed": "true"})
    life.apply(({1: 5}, {0}))
    feed = pa.table(DeltaTable(lake.path).load_cdf(starting_version=2))
    kinds = Counter(feed.column("_change_type").to_pylist())
    assert kinds == {"delete": 2, "insert": 1}
