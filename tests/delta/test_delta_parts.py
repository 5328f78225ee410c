"""A batch applied in parts is the batch: its rows, its feed, and one commit that shows it all."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from delta_samples import Lake, Model, Row, assert_holds, at, changes, row_of, schema_of
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st
from test_delta_feed_out import by_load_cdf, by_our_reader, fed, told

from headrace.model import ChangeFeed, NetChanges, TableFormat

_keys = st.integers(0, 11)
_part = st.tuples(
    st.dictionaries(_keys, st.integers(0, 30), max_size=5),
    st.sets(_keys, max_size=3),
    st.integers(0, 9),  # a truncate, where it is 0; an update with unsent values, where it is 1
)
_batches = st.lists(st.lists(_part, min_size=1, max_size=4), min_size=1, max_size=3)


class PartedLife:
    """Applies batches in parts, and notes what the feed must tell of each as a whole."""

    def __init__(self, lake: Lake, kind: str, layout: TableFormat) -> None:
        self.lake, self.kind, self.layout = lake, kind, layout
        self.schema = schema_of(kind)
        self.model = Model(self.schema)
        self.table = lake.open(layout=layout)
        first = [row_of(kind, key, 1) for key in range(6)]
        self.table.load(self.schema, lake.snapshot(self.schema, first[:3], first[3:]), at(1))
        self.model.apply(first, [])
        self.expected = {1: told("insert", first)}
        self.commit = 1

    def apply(self, parts: list[tuple[dict[int, int], set[int], int]]) -> None:
        self.commit += 1
        before = Counter(self.model.rows)
        made = [self._part(*part) for part in parts]
        last = made.pop()
        self.table.apply(last, at(self.commit), made)
        self._expect(before, truncated=any(part.truncate for part in [*made, last]))

    def _part(self, keyed: dict[int, int], gone: set[int], what: int) -> NetChanges:
        upserts = [row_of(self.kind, key, value) for key, value in keyed.items()]
        if what == 0:
            self.model = Model(self.schema, Counter(upserts))
            return changes(self.schema, upserts, truncate=True)
        held = sorted(self.model.rows.elements(), key=repr)
        if not self.schema.key:
            deletes = [held[i] for i in sorted(gone) if i < len(held)]
        elif what == 1 and held:
            return self._moved(held[len(held) // 2], upserts[:1])
        else:
            deletes = [row_of(self.kind, key, 1) for key in gone - keyed.keys()]
        self.model.apply(upserts, deletes)
        return changes(self.schema, upserts, deletes)

    def _moved(self, old: Row, to: list[Row]) -> NetChanges:
        """The row `old` under another key, its long text unsent."""
        key, place = len(self.schema.key), self.schema.names.index("txt")
        taken = {self.model.key(row) for row in self.model.rows} - {self.model.key(old)}
        new = to[0] if to and self.model.key(to[0]) not in taken else old
        sent, whole = list(new), list(new)
        sent[place], whole[place] = None, old[place]
        moved = [old] if new[:key] != old[:key] else []
        self.model.apply([tuple(whole)], [old])
        return changes(self.schema, [tuple(sent)], moved, [(("txt",), 0, old)])

    def _expect(self, before: Counter[Row], *, truncated: bool) -> None:
        """Rows that a part wrote anew as they were may be told, or not."""
        gone, come = before - self.model.rows, self.model.rows - before
        images = self.layout.change_feed is ChangeFeed.IMAGES and self.schema.key and not truncated
        old = {self.model.key(row) for row in gone} if images else set()
        new = {self.model.key(row) for row in come} if images else set()
        key = self.model.key
        self.expected[self.commit] = (
            told("delete", [row for row in gone.elements() if key(row) not in new])
            + told("update_preimage", [row for row in gone.elements() if key(row) in new])
            + told("update_postimage", [row for row in come.elements() if key(row) in old])
            + told("insert", [row for row in come.elements() if key(row) not in old])
        )


def _without_rewritten(rows: Counter[Row]) -> Counter[Row]:
    """Without pairs of rows that went and came as they were."""
    left = Counter(rows)
    for old, new in (("delete", "insert"), ("update_preimage", "update_postimage")):
        for row in [row for row in rows if row[-1] == old]:
            same = min(left[row], left[(*row[:-1], new)])
            left[row] -= same
            left[(*row[:-1], new)] -= same
    return +left


@pytest.mark.parametrize("feed", list(ChangeFeed))
@pytest.mark.parametrize("kind", ["int64", "composite", "none"])
@settings(max_examples=8, deadline=None)
@given(vectors=st.booleans(), batches=_batches)
def test_10_11_any_batch_in_any_parts_is_what_it_is_in_one(
    kind: str, feed: ChangeFeed, vectors: bool, batches: list[Any]
) -> None:
    """Invariants 10 and 11: later parts find the rows of earlier ones, and the feed tells the whole
    of them, to every reader."""
    with tempfile.TemporaryDirectory() as folder:
        layout = TableFormat(deletion_vectors=vectors, change_feed=feed)
        life = PartedLife(Lake(Path(folder)), kind, layout)
        for parts in batches:
            life.apply(parts)
        assert_holds(life.lake.path, life.model)
        if feed is not ChangeFeed.OFF:
            names = life.schema.names
            expected = {n: _without_rewritten(t) for n, t in life.expected.items()}
            for read in (by_our_reader, by_load_cdf):
                found = fed(read(life.lake, names), names, life.lake)
                stripped = {n: _without_rewritten(found.get(n, Counter())) for n in expected}
                assert stripped == expected
        reopened = life.lake.open(layout=layout)
        reopened.apply(changes(life.schema, [row_of(kind, 3, 77)]), at(life.commit + 1))
        life.model.apply([row_of(kind, 3, 77)], [])
        assert_holds(life.lake.path, life.model, ["deltalake"])


class LostPartError(Exception):
    """What ends a batch between two parts."""


@pytest.mark.parametrize("vectors", [True, False])
def test_11_a_batch_that_fails_between_parts_was_never_there(lake: Lake, vectors: bool) -> None:
    """Invariant 11: neither readers nor the next batch see anything of it."""
    life = PartedLife(lake, "composite", TableFormat(deletion_vectors=vectors))
    life.apply([({3: 5}, set(), 2)])
    version = DeltaTable(lake.path).version()

    def parts() -> Iterator[NetChanges]:
        new = [row_of("composite", key, 20) for key in (0, 1, 8)]
        yield changes(life.schema, new, [row_of("composite", 2, 1)])
        yield changes(life.schema, [row_of("composite", 0, 21)], [row_of("composite", 8, 1)])
        assert DeltaTable(lake.path).version() == version
        raise LostPartError

    with pytest.raises(LostPartError):
        life.table.apply(changes(life.schema), at(9), parts())
    assert_holds(lake.path, life.model)
    life.apply([({1: 9}, {4}, 2), ({2: 9, 4: 9}, {1}, 2)])
    assert_holds(lake.path, life.model)


def test_11_a_batch_that_another_writer_overtook_is_applied_whole(lake: Lake) -> None:
    """Its parts are asked for anew, and made to the table as it then is."""
    life = PartedLife(lake, "int64", TableFormat())
    asked = []

    class Parts:
        def __iter__(self) -> Iterator[NetChanges]:
            asked.append(1)
            yield changes(life.schema, [row_of("int64", 0, 20)], [row_of("int64", 2, 1)])
            if len(asked) == 1:
                DeltaTable(lake.path).optimize.compact()
            yield changes(life.schema, [row_of("int64", 7, 20)], [row_of("int64", 0, 1)])

    life.table.apply(changes(life.schema, [row_of("int64", 7, 21)]), at(2), Parts())
    life.model.apply([row_of("int64", 7, 21)], [row_of("int64", key, 1) for key in (0, 2)])
    assert len(asked) == 2
    assert_holds(lake.path, life.model)
