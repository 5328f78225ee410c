"""The key index: exact, compact, and right whatever dies or comes."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from headrace.connectors.delta import index as index_module
from headrace.connectors.delta.index import KeyIndex, LiveFiles, by_file, locations
from headrace.connectors.delta.leaves import Pool, Tier, in_order
from headrace.model.fingerprint import LONG, Hasher, Hashes, NullKeyError


def _numbers(keys: list[int]) -> Hashes:
    return Hashes(np.array(keys, np.int64).view(np.uint64))


_files = st.lists(
    st.tuples(
        st.lists(st.integers(-5, 40), min_size=1, max_size=30),
        st.sets(st.integers(0, 29)),
        st.booleans(),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(_files, st.lists(st.integers(-8, 45), max_size=40, unique=True))
def test_exactly_the_live_rows_are_found(
    files: list[tuple[list[int], set[int], bool]], wanted: list[int]
) -> None:
    live = LiveFiles()
    index = KeyIndex(live)
    expected: Counter[tuple[int, int, int]] = Counter()
    for name, (keys, dead, dropped) in enumerate(files):
        number = live.add(str(name), None, BitMap())
        index.add([(_numbers(keys), locations(number, np.arange(len(keys))))])
        live.delete([(str(name), {"storageType": "i", "pathOrInlineDv": "x"}, BitMap(dead))])
        if dropped:
            live.drop(str(name))
            continue
        expected.update(
            (key, number, row) for row, key in enumerate(keys) if key in wanted and row not in dead
        )
    which, where = index.find(_numbers(wanted))
    keys = np.array(wanted, np.int64)[which]
    found = zip(keys.tolist(), (where >> 32).tolist(), (where & 0xFFFFFFFF).tolist(), strict=True)
    assert Counter(found) == expected


def test_dead_entries_go_when_levels_merge() -> None:
    live = LiveFiles()
    index = KeyIndex(live)
    for name in range(64):  # a queue: rows come and go
        number = live.add(str(name), None, BitMap())
        index.add([(_numbers(list(range(100))), locations(number, np.arange(100)))])
        live.drop(str(name))
    assert index.entries <= 300


def test_many_rows_of_one_file_are_told_dead_from_alive() -> None:
    live = LiveFiles()
    number = live.add("a", None, BitMap(range(0, 200_000, 3)))
    alive = live.live(locations(number, np.arange(200_000)))
    assert np.array_equal(alive, np.arange(200_000) % 3 != 0)


class _Table:
    """Rows of random keys in files, as an index sees them, beside a dictionary that knows."""

    def __init__(self, width: int, memory: int = 1 << 30) -> None:
        self.random = np.random.default_rng(7)
        self.width = width
        self.files = LiveFiles()
        self.index = KeyIndex(self.files, Pool(memory))
        self.rows: dict[int, int] = {}  # key to file << 32 | row

    def hashes(self, keys: np.ndarray) -> Hashes:
        """One word a key, or two, of which the first is nearly the same for many."""
        words = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        if self.width == 1:
            return Hashes(words)
        return Hashes(words >> np.uint64(46), keys.astype(np.uint64) << np.uint64(40))

    def file(self, keys: np.ndarray) -> tuple[Hashes, np.ndarray]:
        number = self.files.add(str(self.files.numbered), None, BitMap())
        where = locations(number, np.arange(len(keys)))
        self.rows |= dict(zip(keys.tolist(), where.tolist(), strict=True))
        return self.hashes(keys), where

    def upsert(self, keys: np.ndarray) -> None:
        self.delete(keys)
        self.index.add([self.file(keys)])

    def delete(self, keys: np.ndarray) -> None:
        known = [self.rows.pop(key) for key in keys.tolist() if key in self.rows]
        for number, _, rows in by_file(np.array(known, np.uint64)):
            deleted = self.files.deleted(number) | BitMap(rows)
            version = {"storageType": "i", "pathOrInlineDv": str(len(deleted))}
            self.files.delete([(self.files.path(number), version, deleted)])

    def assert_finds(self, keys: np.ndarray) -> None:
        which, where = self.index.find(self.hashes(keys))
        found = dict(zip(keys[which].tolist(), where.tolist(), strict=True))
        assert len(found) == len(which)
        assert found == {key: self.rows[key] for key in keys.tolist() if key in self.rows}


@pytest.mark.parametrize(("width", "memory"), [(2, 1 << 30), (1, 1 << 20)])
def test_a_dictionary_of_many_rows_finds_the_same(
    monkeypatch: pytest.MonkeyPatch, width: int, memory: int
) -> None:
    """Through all tiers, in memory and in a mapped file; and no row costs more than 20 bytes."""
    monkeypatch.setattr(index_module, "SMALLEST", 1 << 13)
    table = _Table(width, memory)
    keys = table.random.permutation(400_000)
    table.index.add_many((table.file(part) for part in np.split(keys[:300_000], 3)), 300_000)
    assert table.index.pool.is_mapped == (memory < 16 * len(table.rows))
    for _ in range(100):
        table.upsert(table.random.choice(400_000, 500, replace=False))
    assert len(table.index.tiers) == 3
    assert table.index.nbytes <= 20 * len(table.rows)
    table.upsert(keys[-200_000:])
    assert table.index.waiting
    table.assert_finds(table.random.permutation(400_000))
    table.delete(keys[:80_000])
    while table.index.waiting:
        table.upsert(table.random.choice(400_000, 500, replace=False))
    table.assert_finds(table.random.permutation(400_000))
    assert table.index.entries <= 1.1 * len(table.rows)


def test_what_a_batch_moves_follows_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    absorb = Tier.absorb

    def counted(tier: Tier, *entries: Any) -> int:
        moved.append(absorb(tier, *entries))
        return moved[-1]

    table = _Table(1)
    table.index.add_many([table.file(np.arange(3_000_000))], 3_000_000)
    monkeypatch.setattr(Tier, "absorb", counted)
    for _ in range(50):
        moved.clear()
        table.upsert(table.random.choice(3_000_000, 1_000, replace=False))
        assert sum(moved) < 600_000  # of three million


@pytest.mark.parametrize("apart", [1, 1 << 40])
def test_entries_are_in_order_also_where_keys_differ_in_their_lowest_bits_alone(apart: int) -> None:
    keys = np.random.default_rng(5).permutation(5000).astype(np.uint64) // 2 * np.uint64(apart)
    ordered, rest = in_order(keys, ~keys)
    assert np.array_equal(ordered, np.sort(keys))
    assert np.array_equal(rest, ~ordered)


def test_groups_by_file_keep_every_row() -> None:
    where = np.concatenate([locations(n, np.arange(5)) for n in (70_000, 3, 0)])
    groups = {number: (at.tolist(), rows.tolist()) for number, at, rows in by_file(where)}
    every = list(range(5))
    assert groups == {
        70_000: (every, every),
        3: ([5, 6, 7, 8, 9], every),
        0: ([10, 11, 12, 13, 14], every),
    }


# -- fingerprints ----------------------------------------------------------------------------------


def _pairs(table: pa.Table, hasher: Hasher) -> list[tuple[int, int]]:
    hashes = hasher.hash(table)
    assert hashes.low is not None
    return list(zip(hashes.high.tolist(), hashes.low.tolist(), strict=True))


_DISTINCT: dict[str, tuple[pa.DataType, list[Any]]] = {
    "text": (
        pa.string(),
        [None, "", "\0", "\0\0", "a", "a\0", "a" * 8, "a" * 9, "b" * 8]
        + [c * n for c in "xy" for n in (LONG - 1, LONG, LONG + 1, 5 * LONG)],
    ),
    "bytes": (pa.binary(), [None, b"", b"\0", b"\0" * 8, b"\0" * 9, b"\xff" * 16]),
    "decimal": (
        pa.decimal128(38, 2),
        [None, Decimal(0), Decimal(1), Decimal(-1), Decimal(2**64) / 100, Decimal(10) ** 35],
    ),
    "date": (pa.date32(), [None, dt.date(1970, 1, 1), dt.date(1969, 12, 31), dt.date(1, 1, 1)]),
    "bool": (pa.bool_(), [None, False, True]),
    "double": (pa.float64(), [None, 0.0, 1.0, float("nan"), float("inf"), -float("inf"), 5e-324]),
    "real": (pa.float32(), [None, 0.0, 1.0, float("nan")]),
    "timestamp": (pa.timestamp("us"), [None, 0, -1, -(10**16)]),
    "list": (pa.list_(pa.string()), [None, [], [None], [""], ["a", "b"], ["ab"], ["a", None]]),
    "struct": (pa.struct([("a", pa.int8())]), [None, {"a": None}, {"a": 1}]),
}


@pytest.mark.parametrize("kind", _DISTINCT)
def test_values_that_differ_have_different_fingerprints(kind: str) -> None:
    arrow, values = _DISTINCT[kind]
    table = pa.table({"k": pa.array(values, arrow)})
    hasher = Hasher.of(table.schema)
    pairs = _pairs(table, hasher)
    assert len(set(pairs)) == len(values)
    for start in range(len(values)):  # whatever stands before them, in whatever batches
        assert _pairs(table.slice(start), hasher) == pairs[start:]
    again = pa.concat_tables([table.slice(i, 1) for i in range(len(values))])
    assert _pairs(again, hasher) == pairs


def test_equal_numbers_have_one_fingerprint() -> None:
    table = pa.table({"k": pa.array([0.0, -0.0], pa.float64())})
    assert len(set(_pairs(table, Hasher.of(table.schema)))) == 1


def test_columns_of_a_composite_key_do_not_run_together() -> None:
    rows = [("ab", "c"), ("a", "bc"), ("", "abc"), ("c", "ab"), (None, "abc"), ("", None)]
    table = pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    assert len(set(_pairs(table, Hasher.of(table.schema)))) == len(rows)


@given(st.lists(st.one_of(st.none(), st.text()), unique=True, max_size=50))
def test_random_texts_have_fingerprints_of_their_own(values: list[str | None]) -> None:
    table = pa.table({"k": pa.array(values, pa.string())})
    assert len(set(_pairs(table, Hasher.of(table.schema)))) == len(values)


def test_no_two_indexes_share_a_seed() -> None:
    schema = pa.schema([("k", pa.string())])
    assert Hasher.of(schema).seeds != Hasher.of(schema).seeds


def test_a_null_cannot_be_an_integer_key() -> None:
    table = pa.table({"k": pa.array([1, None], pa.int64())})
    with pytest.raises(NullKeyError):
        Hasher.of(table.schema).hash(table)
    assert len(set(_pairs(table, Hasher.of(table.schema, exact=False)))) == 2
