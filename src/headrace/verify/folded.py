"""The current rows of a table that keeps every change as a row: its changes, followed in order.

Two readings: the first follows keys only, some 50 bytes a change since the last truncate; the
second gives the rows that stand. In memory are only those whose newest change left values unsent,
with the rows that have these values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.delta.standing import stored_columns
from headrace.connectors.delta.types import to_stored
from headrace.engine.compare import ReadRows
from headrace.engine.lineage import Bools, Ints, KeyEvents, origins
from headrace.model import BEFORE, OP, ORDINAL, UNCHANGED, Metadata, TableSchema
from headrace.model.fingerprint import Hasher, Words

_PUTS: Final = pa.array(["r", "i", "u"])
_SPREAD: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))  # odd: bijective


@dataclass(frozen=True)
class _Standing:
    """By the numbers of their changes: rows that stand whole; and rows that stand with values of
    others, for each column the numbers of those (its own where the value was sent)."""

    whole: Words
    partial: Words
    sources: Mapping[str, Words]


@dataclass
class _Changes:
    """What the first reading tells of each change, in no order."""

    hasher: Hasher
    key: pa.Schema
    parts: list[dict[str, npt.NDArray[np.generic]]] = field(default_factory=list)
    unsent: dict[str, list[Words]] = field(default_factory=dict)

    def add(self, rows: pa.Table) -> None:
        numbers = self.numbers(rows)
        before = rows.column(BEFORE)
        old = [pc.struct_field(before, name) for name in self.key.names]
        old_keys = to_stored(pa.table(old, names=self.key.names), self.key)
        self.parts.append(
            {
                "lsn": rows.column(Metadata.LSN.column).to_numpy(),
                "ordinal": rows.column(ORDINAL).to_numpy(),
                "puts": pc.is_in(rows.column(OP), _PUTS).to_numpy(),
                "updates": pc.equal(rows.column(OP), "u").to_numpy(),
                "truncates": pc.equal(rows.column(OP), "t").to_numpy(),
                "removes": before.is_valid().to_numpy(),
                "put": self.keys(rows),
                "removed": self.hasher.hash(old_keys).high,
                "number": numbers,
            }
        )
        self._note_unsent(rows.column(UNCHANGED).combine_chunks(), numbers)

    def _note_unsent(self, names: pa.Array, numbers: Words) -> None:
        parents = pc.list_parent_indices(names).to_numpy()
        flat = pc.list_flatten(names)
        for name in pc.unique(flat).to_pylist():
            rows = parents[pc.equal(flat, name).to_numpy(zero_copy_only=False)]
            self.unsent.setdefault(name, []).append(numbers[rows])

    def keys(self, rows: pa.Table) -> Words:
        return self.hasher.hash(to_stored(rows, self.key)).high

    def numbers(self, rows: pa.Table) -> Words:
        """A number for each change. A snapshot's rows share a position, and differ by their key."""
        words = [
            rows.column(name).to_numpy().astype(np.uint64) * by
            for name, by in zip((Metadata.LSN.column, ORDINAL), _SPREAD, strict=True)
        ]
        numbers: Words = (words[0] + words[1]) ^ self.keys(rows)
        return numbers

    def standing(self) -> _Standing:
        told = {n: np.concatenate([p[n] for p in self.parts]) for n in self.parts[0]}
        order = np.lexsort((told["ordinal"], told["lsn"]))
        truncates = np.flatnonzero(told["truncates"][order])
        order = order[truncates[-1] + 1 if len(truncates) else 0 :]
        told = {name: values[order] for name, values in told.items()}
        numbers: Words = told["number"].astype(np.uint64)
        events, keys = _events(told)
        stands, _ = events.last(keys)
        predecessors = events.predecessors(told["updates"].astype(np.bool_))
        sources: dict[str, Words] = {}
        partial = np.zeros(len(stands), np.bool_)
        for name, parts in self.unsent.items():
            unsent: Bools = np.isin(numbers, np.concatenate(parts))
            sources[name] = numbers[origins(unsent, predecessors)[stands]]
            partial |= unsent[stands]
        known = {name: words[partial] for name, words in sources.items()}
        return _Standing(np.sort(numbers[stands[~partial]]), numbers[stands[partial]], known)


def _events(told: Mapping[str, npt.NDArray[np.generic]]) -> tuple[KeyEvents, int]:
    both = np.concatenate([told["put"], told["removed"]])
    distinct, codes = np.unique(both, return_inverse=True)
    put, removed = np.split(codes.astype(np.int64), 2)
    put = np.where(told["puts"], put, -1)
    removed = np.where(told["removes"] & (removed != put), removed, -1)
    return KeyEvents(removed, put), len(distinct)


def _plain(rows: pa.Table) -> pa.Table:
    """The rows; texts that tell of changes as such: a reader may give them as views."""
    for name, kind in ((OP, pa.string()), (UNCHANGED, pa.list_(pa.string()))):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, name, rows.column(place).cast(kind))
    return rows


class FoldedChanges:
    """The rows that the changes of a table leave, as columns of the source; it has a key."""

    def __init__(self, read: ReadRows, schema: TableSchema) -> None:
        self._read: ReadRows = lambda: map(_plain, read())
        self._stored = stored_columns(schema).arrow()
        key = pa.schema([self._stored.field(name) for name in schema.key])
        self._changes = _Changes(Hasher.of(key, exact=False), key)
        self._standing: _Standing | None = None

    def rows(self) -> Iterator[pa.Table]:
        """The rows, in pieces."""
        if self._standing is None:
            for part in self._read():
                self._changes.add(part)
            none = np.empty(0, np.uint64)
            parts = self._changes.parts
            self._standing = self._changes.standing() if parts else _Standing(none, none, {})
            parts.clear()
        yield from self._second_reading(self._standing)

    def _second_reading(self, standing: _Standing) -> Iterator[pa.Table]:
        needed = np.unique(np.concatenate([standing.partial, *standing.sources.values()]))
        held = [self._stored.empty_table()]
        numbers = [needed[:0]]
        for part in self._read():
            mine, rows = self._changes.numbers(part), to_stored(part, self._stored)
            puts = pc.is_in(part.column(OP), _PUTS).to_numpy()
            yield rows.filter(pa.array(puts & _among(mine, standing.whole)))
            lends = puts & _among(mine, needed)
            held.append(rows.filter(pa.array(lends)))
            numbers.append(mine[lends])
        yield _completed(standing, pa.concat_tables(held), np.concatenate(numbers))


def _completed(standing: _Standing, held: pa.Table, numbers: Words) -> pa.Table:
    """The rows that stand with values of others."""
    order = np.argsort(numbers)
    ordered = numbers[order]

    def places(wanted: Words) -> Ints:
        return order[np.searchsorted(ordered, wanted)]

    columns = [
        held.column(name).take(pa.array(places(standing.sources.get(name, standing.partial))))
        for name in held.column_names
    ]
    return pa.table(columns, schema=held.schema)


def _among(words: Words, wanted: Words) -> Bools:
    """Which of `words` are among `wanted`, which is sorted."""
    if not len(wanted):
        return np.zeros(len(words), np.bool_)
    places = np.minimum(np.searchsorted(wanted, words), len(wanted) - 1)
    found: Bools = wanted[places] == words
    return found
