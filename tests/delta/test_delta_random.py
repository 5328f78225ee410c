"""Random lives of tables, against a model, read back by three independent readers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from delta_samples import (
    KEY_KINDS,
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

from headrace.connectors.delta.table import MergeOnReadTable

_keys = st.integers(0, 15)
_values = st.integers(0, 30)
_batches = st.tuples(
    st.dictionaries(_keys, _values, max_size=6), st.sets(_keys, max_size=4), st.booleans()
)
_steps = st.one_of(
    st.tuples(st.just("apply"), _batches),
    st.tuples(st.just("apply"), _batches),
    st.tuples(st.just("fill"), st.tuples(_keys, _keys, _values)),
    st.tuples(st.just("truncate"), st.dictionaries(_keys, _values, max_size=3)),
    st.tuples(st.just("load"), st.lists(st.dictionaries(_keys, _values), max_size=2)),
    st.tuples(st.sampled_from(["reopen", "compact", "comment", "again", "checkpoint"]), st.none()),
)


class Life:
    """Runs the steps on a table and on its model."""

    def __init__(self, lake: Lake, kind: str) -> None:
        self.lake, self.kind = lake, kind
        self.schema = schema_of(kind)
        self.model = Model(self.schema)
        self.commit = 0
        self.last: Any = None
        self.table: MergeOnReadTable = lake.open()
        self.load([{0: 1, 1: 2, 2: 3}, {9: 4}])

    def rows(self, keyed: dict[int, int]) -> list[Row]:
        return [row_of(self.kind, key, value) for key, value in keyed.items()]

    def load(self, parts: list[dict[int, int]]) -> None:
        seen: set[int] = set()
        files = []
        for part in parts:
            files.append(self.rows({k: v for k, v in part.items() if k not in seen}))
            seen |= part.keys()
        self.commit += 1
        self.table.load(self.schema, self.lake.snapshot(self.schema, *files), at(self.commit))
        self.model = Model(self.schema)
        self.model.apply([row for rows in files for row in rows], [])
        self.last = None

    def _send(self, upserts: list[Row], deletes: list[Row], **more: Any) -> None:
        self.commit += 1
        self.last = changes(self.schema, upserts, deletes, **more)
        self.table.apply(self.last, at(self.commit))

    def apply(self, batch: tuple[dict[int, int], set[int], bool]) -> None:
        keyed, gone, _ = batch
        upserts = self.rows(keyed)
        if self.schema.key:
            deletes = self.rows(dict.fromkeys(gone - keyed.keys(), 1))
        else:
            held = sorted(self.model.rows.elements(), key=repr)
            deletes = [held[i] for i in sorted(gone) if i < len(held)]
        self._send(upserts, deletes)
        self.model.apply(upserts, deletes)

    def fill(self, chosen: tuple[int, int, int]) -> None:
        """An update whose long text was not sent, of a row that may get another key as well."""
        held = sorted(self.model.rows, key=repr)
        if not (self.schema.key and held):
            return
        old = held[chosen[0] % len(held)]
        new = row_of(self.kind, chosen[1], chosen[2])
        taken = {self.model.key(row) for row in held} - {self.model.key(old)}
        if self.model.key(new) in taken:
            new = self.model.key(old) + new[len(self.schema.key) :]
        at_text, at_tags = self.schema.names.index("txt"), self.schema.names.index("tags")
        sent = list(new)
        sent[at_text] = sent[at_tags] = None
        moved = [old] if self.model.key(new) != self.model.key(old) else []
        self._send([tuple(sent)], moved, fills=[(("txt", "tags"), 0, old)])
        whole = list(new)
        whole[at_text], whole[at_tags] = old[at_text], old[at_tags]
        self.model.apply([tuple(whole)], [old])

    def truncate(self, keyed: dict[int, int]) -> None:
        self._send(self.rows(keyed), [], truncate=True)
        self.model = Model(self.schema)
        self.model.apply(self.rows(keyed), [])

    def reopen(self, _: None) -> None:
        self.table = self.lake.open()
        assert self.table.checkpoint(at(0).log_id) == at(self.commit)

    def compact(self, _: None) -> None:
        DeltaTable(self.lake.path).optimize.compact()

    def comment(self, _: None) -> None:
        DeltaTable(self.lake.path).alter.set_table_description(f"at {self.commit}")

    def checkpoint(self, _: None) -> None:
        DeltaTable(self.lake.path).create_checkpoint()

    def again(self, _: None) -> None:
        if self.last is not None:
            self.table.apply(self.last, at(self.commit))


@pytest.mark.parametrize("kind", KEY_KINDS)
@settings(max_examples=8, deadline=None)
@given(script=st.lists(_steps, min_size=2, max_size=10))
def test_any_life_leaves_the_table_equal_to_its_model(kind: str, script: list[Any]) -> None:
    """Invariants 4, 6 and 11: exact rows as a multiset, TOAST values kept, for every reader."""
    with tempfile.TemporaryDirectory() as folder:
        life = Life(Lake(Path(folder)), kind)
        for name, argument in script:
            getattr(life, name)(argument)
            assert_holds(life.lake.path, life.model, ["deltalake"])
        assert_holds(life.lake.path, life.model)
