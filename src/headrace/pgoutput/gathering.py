"""Rows on their way into columns: what the plain decoder gathers, by table and transaction.

The kernel has the same in `_batches.pxi` and its own sections.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.pgoutput import control
from headrace.pgoutput.columns import (
    ROW_BYTES,
    VALUE_BYTES,
    RawBatch,
    RawColumn,
    Streamed,
    TransactionEnd,
    streamed_part,
)
from headrace.pgoutput.messages import Relation, TupleData

_TUPLE_COUNT_AT: Final = 6  # type byte, relation's OID, tuple kind


class Section:
    """Rows that are being gathered, and what their tables look like there."""

    def __init__(self) -> None:
        self.relations: dict[int, Relation] = {}
        self.ordinal = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        self.batches: list[Batch] = []
        self.current: dict[int, Batch] = {}
        self.rows = 0
        self.bytes = 0

    def learn(self, relation: Relation) -> None:
        # Even one that says the same: a column may have gone, and another one have its name.
        self.relations[relation.relation_id] = relation
        self.current.pop(relation.relation_id, None)

    def batch(self, relation_id: int) -> Batch:
        batch = self.current.get(relation_id)
        if batch is None:
            relation = self.relations.get(relation_id)
            if relation is None:
                raise control.unknown_relation(relation_id)
            batch = self.current[relation_id] = Batch(relation)
            self.batches.append(batch)
        return batch

    def add(self, batch: Batch, op: int, xid: int, old_kind: int = 0) -> None:
        batch.add(op, self.ordinal, xid, old_kind)
        self.bytes += ROW_BYTES
        self.rows += 1
        self.ordinal += 1

    def truncate(self, relation_ids: Iterable[int], xid: int) -> None:
        ordinal = self.ordinal
        for relation_id in relation_ids:
            self.ordinal = ordinal
            batch = self.batch(relation_id)
            batch.add_tuples(ord("T"), None, None, 0)
            self.add(batch, ord("t"), xid)
        self.ordinal = ordinal + 1


class Stream(Section):
    """A streamed transaction in progress."""

    def __init__(self, xid: int) -> None:
        super().__init__()
        self.xid = xid
        self.own: dict[int, Relation] = {}  # of `relations`, those that nobody told otherwise since
        self.rolled_back: set[int] = set()  # subtransactions, since the last part
        self.parted = False  # some of it was handed over

    def part(self, end: TransactionEnd | None = None, after: int = 0) -> Streamed:
        """What has come of it since the part before."""
        batches = [batch.finish() for batch in self.batches]
        streamed = streamed_part(self.xid, batches, self.rolled_back, end, after)
        self.begin_anew()
        self.rolled_back, self.parted = set(), True
        return streamed


@dataclass
class Column:
    kinds: bytearray = field(default_factory=bytearray)
    offsets: list[int] = field(default_factory=lambda: [0])
    data: bytearray = field(default_factory=bytearray)

    def add(self, kind: int, value: bytes | None) -> None:
        self.kinds.append(kind)
        self.data += value or b""
        self.offsets.append(len(self.data))

    def finish(self) -> RawColumn:
        kinds, offsets = (
            np.frombuffer(bytes(self.kinds), np.uint8),
            np.array(self.offsets, np.int32),
        )
        return RawColumn(kinds, offsets, pa.py_buffer(bytes(self.data)))


class Batch:
    """Rows of one relation that are still being added."""

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self.complete = 0
        self.ops = bytearray()
        self.old_kind = bytearray()
        self.ordinals: list[int] = []
        self.xids: list[int] = []
        self.ends: list[TransactionEnd] = []  # of the rows up to `complete`
        self.new = [Column() for _ in relation.columns]
        self.old = [Column() for _ in relation.columns]

    def add(self, op: int, ordinal: int, xid: int, old_kind: int) -> None:
        self.ops.append(op)
        self.ordinals.append(ordinal)
        self.xids.append(xid)
        self.old_kind.append(old_kind)

    def add_tuples(
        self, letter: int, old: TupleData | None, new: TupleData | None, limit: int
    ) -> int:
        """Add a row's columns; returns the bytes they need."""
        size = 0
        for columns, row in ((self.old, old), (self.new, new)):
            if row is None:
                for column in columns:
                    column.add(0, None)
                continue
            self._check(letter, row)
            for column, kind, value in zip(columns, row.kinds, row.values, strict=True):
                column.add(kind, value)
                size += VALUE_BYTES + len(value or b"")
            self._check_limit(columns, limit)
        return size

    def _check(self, letter: int, row: TupleData) -> None:
        found, expected = len(row.kinds), len(self.relation.columns)
        if found != expected:
            raise control.wrong_column_count(letter, found, expected, _TUPLE_COUNT_AT)

    def _check_limit(self, columns: list[Column], limit: int) -> None:
        for described, column in zip(self.relation.columns, columns, strict=True):
            if len(column.data) > limit:
                raise control.column_full(described.name, limit)

    def commit(self, end: TransactionEnd) -> None:
        self.ends += [end] * (len(self.ops) - self.complete)
        self.complete = len(self.ops)

    def finish(self) -> RawBatch:
        missing = len(self.ops) - self.complete
        lsns = [end.end_lsn for end in self.ends] + [0] * missing
        times = [end.commit_ts for end in self.ends] + [0] * missing
        return RawBatch(
            self.relation,
            self.complete,
            np.frombuffer(bytes(self.ops), np.uint8),
            np.array(self.ordinals, np.uint64),
            np.array(lsns, np.uint64),
            np.array(times, np.int64),
            np.array(self.xids, np.uint32),
            np.frombuffer(bytes(self.old_kind), np.uint8),
            [column.finish() for column in self.new],
            [column.finish() for column in self.old] if any(self.old_kind) else None,
        )
