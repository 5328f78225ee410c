"""The decoder in plain Python: the one to read, the fallback, and what the kernel is held against.

A decoder sees the messages of one replication connection in order and sorts their rows into columns
per table, without waiting for commits: a row gets its transaction's end once that has come.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from headrace.pgoutput import control
from headrace.pgoutput.columns import (
    COMMIT_BYTES,
    MAX_COLUMN_BYTES,
    ROW_BYTES,
    VALUE_BYTES,
    Decoded,
    RawBatch,
    RawColumn,
    TransactionEnd,
    Transactions,
)
from headrace.pgoutput.frames import payload_of
from headrace.pgoutput.messages import (
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    PgoutputMessage,
    Relation,
    Truncate,
    TupleData,
    Update,
)

_TUPLE_COUNT_AT = 6  # type byte, relation's OID, tuple kind


class ReferenceDecoder:
    """Accumulates rows from XLogData frames; see `push`, `take` and the properties.

    One thread uses it at a time. After an error it takes nothing more: the caller streams again
    with a new one. `column_limit` bounds each column's bytes between two takes.
    """

    def __init__(self, *, column_limit: int = MAX_COLUMN_BYTES) -> None:
        self._limit = min(column_limit, MAX_COLUMN_BYTES)
        self._relations: dict[int, Relation] = {}
        self._failed = False
        self._open: Begin | None = None
        self._ordinal = 0
        self._split = False  # the open transaction began before the last take
        self._last_commit_lsn = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._batches: list[_Batch] = []
        self._current: dict[int, _Batch] = {}
        self._ends: list[TransactionEnd] = []
        self._finished: TransactionEnd | None = None
        self._messages: list[Message] = []
        self._rows = 0
        self._bytes = 0

    @property
    def in_transaction(self) -> bool:
        """A Begin has come whose Commit has not."""
        return self._open is not None

    @property
    def buffered_rows(self) -> int:
        """Rows since the last take; a truncate counts once per table."""
        return self._rows

    @property
    def buffered_bytes(self) -> int:
        """Memory that those rows need; allocated is up to twice as much."""
        return self._bytes

    @property
    def last_commit_lsn(self) -> int:
        """`end_lsn` of the newest Commit seen, 0 before the first."""
        return self._last_commit_lsn

    def push(self, frames: list[memoryview] | list[bytes]) -> None:
        """Take in a burst of CopyData payloads, each one whole XLogData message.

        Raises:
            ProtocolError: a message is malformed, out of order, or of an option that is off.
        """
        if self._failed:
            raise control.unusable()
        self._failed = True
        for frame in frames:
            self._handle(control.parse_enabled(payload_of(frame)))
        self._failed = False

    def take(self) -> Decoded:
        """Hand over everything gathered and begin anew, keeping relations and an open transaction.

        Raises:
            ProtocolError: an earlier push failed.
        """
        if self._failed:
            raise control.unusable()
        decoded = Decoded(
            [batch.finish() for batch in self._batches],
            _transactions(self._ends),
            self._finished,
            self._last_commit_lsn,
            self._messages,
        )
        self._begin_anew()
        self._split = self.in_transaction
        return decoded

    def _handle(self, message: PgoutputMessage) -> None:
        match message:
            case Insert(relation_id=relation_id, new=new):
                self._add(relation_id, "i", new=new)
            case Update(relation_id=relation_id, old_kind=kind, old=old, new=new):
                self._add(relation_id, "u", new=new, old=old, old_kind=kind)
            case Delete(relation_id=relation_id, old_kind=kind, old=old):
                self._add(relation_id, "d", old=old, old_kind=kind)
            case Truncate(relation_ids=relation_ids):
                self._truncate(relation_ids)
            case Begin():
                self._on_begin(message)
            case Commit():
                self._on_commit(message)
            case Relation():
                self._on_relation(message)
            case Message():
                self._messages.append(message)
                self._bytes += len(message.content)

    def _on_begin(self, begin: Begin) -> None:
        if self._open is not None:
            raise control.already_open()
        self._open, self._ordinal = begin, 0

    def _on_commit(self, commit: Commit) -> None:
        begin = self._require_open("C")
        if begin.final_lsn != commit.commit_lsn:
            raise control.wrong_commit(begin.final_lsn, commit.commit_lsn)
        end = TransactionEnd(int(commit.end_lsn), commit.commit_ts, begin.xid)
        for batch in self._batches:
            batch.commit(end)
        self._ends.append(end)
        self._bytes += COMMIT_BYTES
        if self._split:
            self._finished = end
        self._open, self._split = None, False
        self._last_commit_lsn = end.end_lsn

    def _on_relation(self, relation: Relation) -> None:
        # Even one that says the same: a column may have gone, and another one have its name.
        self._relations[relation.relation_id] = relation
        self._current.pop(relation.relation_id, None)

    def _require_open(self, letter: str) -> Begin:
        if self._open is None:
            raise control.not_open(ord(letter))
        return self._open

    def _truncate(self, relation_ids: Iterable[int]) -> None:
        ordinal = self._ordinal
        self._require_open("T")
        for relation_id in relation_ids:
            self._ordinal = ordinal
            self._add(relation_id, "t")
        self._ordinal = ordinal + 1

    def _add(
        self,
        relation_id: int,
        op: str,
        *,
        new: TupleData | None = None,
        old: TupleData | None = None,
        old_kind: int = 0,
    ) -> None:
        xid = self._require_open(op.upper()).xid
        batch = self._batch(relation_id)
        self._bytes += batch.add_tuples(ord(op.upper()), old, new, self._limit)
        batch.add(ord(op), self._ordinal, xid, old_kind)
        self._bytes += ROW_BYTES
        self._rows += 1
        self._ordinal += 1

    def _batch(self, relation_id: int) -> _Batch:
        batch = self._current.get(relation_id)
        if batch is None:
            relation = self._relations.get(relation_id)
            if relation is None:
                raise control.unknown_relation(relation_id)
            batch = self._current[relation_id] = _Batch(relation)
            self._batches.append(batch)
        return batch


@dataclass
class _Column:
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


class _Batch:
    """Rows of one relation that are still being added."""

    def __init__(self, relation: Relation) -> None:
        self.relation = relation
        self.complete = 0
        self.ops = bytearray()
        self.old_kind = bytearray()
        self.ordinals: list[int] = []
        self.xids: list[int] = []
        self.ends: list[TransactionEnd] = []  # of the rows up to `complete`
        self.new = [_Column() for _ in relation.columns]
        self.old = [_Column() for _ in relation.columns]

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

    def _check_limit(self, columns: list[_Column], limit: int) -> None:
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


def _transactions(ends: list[TransactionEnd]) -> Transactions:
    return Transactions(
        np.array([end.end_lsn for end in ends], np.uint64),
        np.array([end.commit_ts for end in ends], np.int64),
        np.array([end.xid for end in ends], np.uint32),
    )
