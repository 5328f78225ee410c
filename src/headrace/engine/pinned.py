"""The rows of one version of a source, as its destination is to have them.

A load and a comparison both read them: part by part, transformed, and without rows that have no
whole key. With `newest_by`, rows that share a key are found beforehand, in a reading of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from headrace.engine.netting import as_feed, net, null_keys, without_key
from headrace.engine.transform import Transform
from headrace.errors import QuarantineFullError
from headrace.model import NetChanges, Rejected, RowPart, TableSchema, TableVersion
from headrace.model.feed import tables
from headrace.model.fingerprint import Hasher, Words, concat_hashes, repeated

Pinned = tuple[Sequence[RowPart], Callable[[], Sequence[Rejected]]]


def pinned_rows(
    schema: TableSchema,
    parts: Sequence[RowPart],
    at: TableVersion,
    transform: Transform,
    *,
    newest_by: str | None,
    quarantine_rows: int,
) -> Pinned:
    """The parts as the destination is to have them, and what must not be applied of them.

    The second is called when all parts were read, which may happen side by side, and again.
    `newest_by` costs a reading and 16 bytes of memory a row. Rows that share a key are otherwise
    for the destination to refuse.

    Raises (as the parts are read):
        QuarantineFullError: more than `quarantine_rows` rows lack a part of their key.
        ExpectationFailedError: a row breaks a rule that stops its table.
    """
    if not schema.key:
        return transform.parts(parts)
    keyed = _Keyed(schema, quarantine_rows)
    whole: Sequence[RowPart] = [keyed.part(n, part) for n, part in enumerate(parts)]
    duplicates: tuple[Rejected, ...] = ()
    if newest_by is not None:
        whole, duplicates = _resolved(schema, whole, at, newest_by)
    transformed, parked = transform.parts(whole)

    def rejected() -> Sequence[Rejected]:
        found = (*duplicates, *null_keys(schema, keyed.rejected()))
        return [*_as_delivered(schema, found, transform), *parked()]

    return transformed, rejected


def _as_delivered(
    schema: TableSchema, rejected: Sequence[Rejected], transform: Transform
) -> Sequence[Rejected]:
    """The same, masked and named as at the destination."""
    if not rejected:
        return ()
    none = schema.arrow().empty_table()
    changes = NetChanges(schema, none, none.select(list(schema.key)), rejected=tuple(rejected))
    return transform.changes(changes).rejected


# -- rows without a whole key ----------------------------------------------------------------------


@dataclass
class _Keyed:
    """Leaves out rows that lack a part of their key; of each part the last reading counts."""

    schema: TableSchema
    limit: int
    found: dict[int, list[pa.Table]] = field(default_factory=dict)  # by the part's number

    def part(self, number: int, part: RowPart) -> RowPart:
        return RowPart(lambda: self._read(number, part), part.rows)

    def rejected(self) -> pa.Table:
        found = [rows for _, of_part in sorted(self.found.items()) for rows in of_part]
        return pa.concat_tables([self.schema.arrow().empty_table(), *found])

    def _read(self, number: int, part: RowPart) -> Iterator[pa.RecordBatch]:
        mine = self.found[number] = []
        for batch in part.read():
            lacking = without_key(self.schema, pa.Table.from_batches([batch]))
            if not lacking.any():
                yield batch
                continue
            mine.append(pa.Table.from_batches([batch.filter(pa.array(lacking))]))
            self._stop_if_full()
            yield batch.filter(pa.array(~lacking))

    def _stop_if_full(self) -> None:
        if sum(rows.num_rows for part in [*self.found.values()] for rows in part) > self.limit:
            raise QuarantineFullError(
                f"{self.schema.table}: more than {self.limit} rows lack a value of their key "
                f"({', '.join(self.schema.key)}); nothing was applied",
                hint="correct the rows or key: in headrace.yaml, or raise quarantine: max_rows",
                table=self.schema.table,
            )


# -- rows that share a key -------------------------------------------------------------------------


def _resolved(
    schema: TableSchema, parts: Sequence[RowPart], at: TableVersion, newest_by: str
) -> tuple[Sequence[RowPart], tuple[Rejected, ...]]:
    """The parts with one row per key, and the rows of keys for which nothing decides."""
    key = list(schema.key)
    hasher = Hasher.of(schema.arrow().empty_table().select(key).schema, exact=False)
    shared = _shared(parts, hasher, key)
    if not len(shared):
        return parts, ()

    def split(batch: pa.RecordBatch, *, sharing: bool) -> pa.RecordBatch:
        words = hasher.hash(pa.Table.from_batches([batch.select(key)])).high
        return batch.filter(pa.array(np.isin(words, shared) == sharing))

    contested = [split(b, sharing=True) for part in parts for b in part.read()]
    rows = pa.Table.from_batches(contested, schema.arrow())
    decided = net(schema, as_feed(schema, rows, at), newest_by)

    def alone(part: RowPart) -> RowPart:
        return RowPart(lambda: (split(b, sharing=False) for b in part.read()), part.rows)

    winners = RowPart(lambda: iter(decided.upserts.to_batches()), decided.upserts.num_rows)
    return [*map(alone, parts), winners], decided.rejected


def _shared(parts: Sequence[RowPart], hasher: Hasher, key: list[str]) -> Words:
    """Half the fingerprint of each key that several rows have; others may be among them."""
    hashes = [hasher.hash(rows.select(key)) for rows in tables(parts)]
    return repeated(concat_hashes(hashes).high) if hashes else np.empty(0, np.uint64)
