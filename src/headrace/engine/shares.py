"""A transaction's changes divided by their keys, in a file: what memory does not hold together.

What a transaction leaves under a key is one version of its row (mode scd2), whatever came in
between; so its changes cannot be taken up to some moment and then on, but a key at a time they can.
They are written once, in shares of the keys, and read once. After a crash the log still has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.engine.gather import take
from headrace.engine.lineage import Ints
from headrace.engine.ordered import DELETE, TRUNCATE, UPDATE, in_order, joined
from headrace.log.storage import temporary_errors, temporary_file
from headrace.model import ChangeBatch, Lsn, TableSchema
from headrace.model.fingerprint import Hasher

SHARES: Final = 256  # of 33 million changes each is a part as large as others; of more it is larger
_CODEC: Final = "lz4"
_NUMBER: Final = "\0number"  # of a change in its transaction; no column of Postgres has the name


@dataclass(frozen=True)
class _Place:
    """Of some changes in the file, and the number of bytes that they unpack to."""

    schema: TableSchema
    layout: pa.Schema
    offset: int
    length: int
    plain: int


@dataclass
class _Share:
    """The changes of some keys, in order."""

    places: list[_Place] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0


class Shares:
    """The changes of one transaction; `divisible` says whether keys can be apart.

    A key that moved takes the values that were not sent from another one, and a truncate ends rows
    of keys that nobody names: what such a transaction changed is held together after all, and so is
    what it changed before and after it changed the table's columns.
    """

    def __init__(self, schema: TableSchema) -> None:
        self._schema = schema
        keys = pa.schema([schema.arrow().field(name) for name in schema.key])
        self._hasher = Hasher.of(keys, exact=False)
        self._shares = [_Share() for _ in range(SHARES)]
        self._count = 0
        self.divisible = True
        self._file = temporary_file()

    def close(self) -> None:
        self._file.close()

    def put(self, batch: ChangeBatch) -> None:
        """Add changes that follow those before. Raises LogFullError: there is no room."""
        share = self._share_of(batch)
        order = np.argsort(share, kind="stable")
        numbers = pa.array(np.arange(self._count, self._count + batch.num_rows))
        numbered = pa.Table.from_batches([batch.data]).append_column(_NUMBER, numbers)
        self._count += batch.num_rows
        (data,) = take(numbered, order).combine_chunks().to_batches()
        ends = np.searchsorted(share[order], np.arange(SHARES), "right")
        for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            if end > start:
                self._write(self._shares[number], batch.schema, data.slice(start, end - start))

    def _share_of(self, batch: ChangeBatch) -> Ints:
        """By change, the number of its key's share; all the same where it does not matter."""
        self.divisible &= batch.schema == self._schema
        if not self.divisible:
            return np.zeros(batch.num_rows, np.int64)
        changes = in_order(self._schema, joined(self._schema, [batch], Lsn(0)))
        new = self._hasher.hash(changes.rows.select(self._schema.key)).high
        old = self._hasher.hash(changes.before.select(self._schema.key)).high
        moved = (changes.ops == UPDATE) & changes.has_before & (old != new)
        self.divisible = not (moved | (changes.ops == TRUNCATE)).any()
        words = np.where(changes.ops == DELETE, old, new)
        return (words % np.uint64(SHARES)).astype(np.int64)

    def _write(self, share: _Share, schema: TableSchema, data: pa.RecordBatch) -> None:
        plain = data.serialize()
        packed = pa.compress(plain, _CODEC, asbytes=True)
        with temporary_errors():
            place = _Place(schema, data.schema, self._file.tell(), len(packed), plain.size)
            self._file.write(packed)
        share.places.append(place)
        share.rows += data.num_rows
        share.bytes += plain.size

    def parts(self, rows: int, size: int) -> Iterator[list[ChangeBatch]]:
        """All changes, those of a key in one part and in order; parts of at most so many rows and
        bytes, if no share has more. One part, where keys cannot be apart."""
        held: list[_Share] = []
        for share in filter(lambda share: share.rows, self._shares):
            over = sum(s.rows for s in held) + share.rows > rows
            over |= sum(s.bytes for s in held) + share.bytes > size
            if held and over and self.divisible:
                yield self._read(held)
                held = []
            held.append(share)
        yield self._read(held)

    def _read(self, shares: Sequence[_Share]) -> list[ChangeBatch]:
        """In the order that the transaction made them; no batch of two schemas."""
        by_schema: dict[int, list[_Place]] = {}
        for place in (place for share in shares for place in share.places):
            by_schema.setdefault(place.schema.version, []).append(place)
        ordered = [places for _, places in sorted(by_schema.items())]
        return [batch for places in ordered for batch in self._batches(places)]

    def _batches(self, places: Sequence[_Place]) -> Iterator[ChangeBatch]:
        data = pa.Table.from_batches(map(self._unpacked, places), places[0].layout)
        order = np.argsort(data[_NUMBER].to_numpy(), kind="stable")
        rows = take(data.drop_columns([_NUMBER]), order).combine_chunks()
        return (ChangeBatch(places[0].schema, part) for part in rows.to_batches())

    def _unpacked(self, place: _Place) -> pa.RecordBatch:
        with temporary_errors():
            self._file.seek(place.offset)
            packed = self._file.read(place.length)
        plain = pa.decompress(packed, place.plain, _CODEC)
        return pa.ipc.read_record_batch(plain, place.layout)
