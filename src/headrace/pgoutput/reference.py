"""The decoder in plain Python: the one to read, the fallback, and what the kernel is held against.

A decoder sees the messages of one replication connection in order and sorts their rows into columns
per table, without waiting for commits: a row gets its transaction's end once that has come.

PostgreSQL documentation, "Streaming of Large Transactions for Logical Decoding": a transaction that
outgrows the server's memory comes in blocks before its commit, between those of others. Each such
one has rows and Relations of its own until it commits.
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
    Streamed,
    TransactionEnd,
    Transactions,
    largest,
    streamed_part,
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
    StreamAbort,
    StreamCommit,
    StreamStart,
    StreamStop,
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
        self._failed = False
        self._plain = _Section()  # transactions that come whole, after their commit
        self._open: Begin | None = None
        self._split = False  # the open transaction began before the last take
        self._streams: dict[int, _Stream] = {}  # those that come in blocks, before it
        self._inside: _Stream | None = None
        self._last_commit_lsn = 0
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._plain.begin_anew()
        self._ends: list[TransactionEnd] = []
        self._finished: TransactionEnd | None = None
        self._streamed: list[Streamed] = []  # what is over
        self._messages: list[Message] = []
        self._rows = 0
        self._bytes = 0

    @property
    def in_transaction(self) -> bool:
        """A Begin has come whose Commit has not."""
        return self._open is not None

    @property
    def buffered_rows(self) -> int:
        """Rows since the last take, but those of streamed transactions in progress.

        A truncate counts once per table, the commit of a transaction that an earlier take handed
        over in part as one.
        """
        return self._rows + self._plain.rows

    @property
    def buffered_bytes(self) -> int:
        """Memory that all rows need which were not taken; allocated is up to twice as much."""
        streams = sum(stream.bytes for stream in self._streams.values())
        return self._bytes + self._plain.bytes + streams

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
            streamed = self._inside is not None
            self._handle(control.parse_enabled(payload_of(frame), streamed=streamed))
        self._failed = False

    def take(self, keep: int = 0) -> Decoded:
        """Hand over what was gathered and begin anew, keeping relations and open transactions.

        Rows of streamed transactions in progress stay as long as they need up to `keep` bytes in
        all; else those of the largest go first.

        Raises:
            ProtocolError: an earlier push failed.
        """
        if self._failed:
            raise control.unusable()
        decoded = Decoded(
            [batch.finish() for batch in self._plain.batches],
            _transactions(self._ends),
            self._finished,
            [*self._streamed, *map(_Stream.part, largest(self._streams.values(), keep))],
            self._last_commit_lsn,
            self._messages,
        )
        self._begin_anew()
        self._split = self.in_transaction
        return decoded

    def _handle(self, message: PgoutputMessage) -> None:
        match message:
            case Insert(relation_id=relation_id, new=new):
                self._add(message, relation_id, new=new)
            case Update(relation_id=relation_id, old_kind=kind, old=old, new=new):
                self._add(message, relation_id, new=new, old=old, old_kind=kind)
            case Delete(relation_id=relation_id, old_kind=kind, old=old):
                self._add(message, relation_id, old=old, old_kind=kind)
            case Truncate(relation_ids=relation_ids):
                section, xid = self._place(message.xid, "T")
                section.truncate(relation_ids, xid)
            case Relation():
                self._on_relation(message)
            case Message():
                self._messages.append(message)
                self._bytes += len(message.content)
            case _:
                self._handle_boundary(message)

    def _handle_boundary(self, message: PgoutputMessage) -> None:
        match message:
            case Begin():
                self._require_between("B")
                self._open, self._plain.ordinal = message, 0
            case Commit():
                self._on_commit(message)
            case StreamStart():
                self._on_stream_start(message)
            case StreamStop():
                if self._inside is None:
                    raise control.not_open(ord("E"))
                self._inside = None
            case StreamCommit():
                self._on_stream_commit(message)
            case StreamAbort():
                self._on_stream_abort(message)

    def _add(
        self,
        message: Insert | Update | Delete,
        relation_id: int,
        *,
        new: TupleData | None = None,
        old: TupleData | None = None,
        old_kind: int = 0,
    ) -> None:
        letter = type(message).__name__[0]
        section, xid = self._place(message.xid, letter)
        batch = section.batch(relation_id)
        section.bytes += batch.add_tuples(ord(letter), old, new, self._limit)
        section.add(batch, ord(letter.lower()), xid, old_kind)

    def _place(self, xid: int | None, letter: str) -> tuple[_Section, int]:
        """Where a row goes, and the transaction or subtransaction that made it."""
        if self._inside is not None and xid is not None:
            return self._inside, xid
        return self._plain, self._require_open(letter).xid

    # -- transactions that come whole --------------------------------------------------------------

    def _on_commit(self, commit: Commit) -> None:
        begin = self._require_open("C")
        if begin.final_lsn != commit.commit_lsn:
            raise control.wrong_commit(begin.final_lsn, commit.commit_lsn)
        end = TransactionEnd(int(commit.end_lsn), commit.commit_ts, begin.xid)
        for batch in self._plain.batches:
            batch.commit(end)
        if self._split:
            self._finished = end
        self._rows += self._split
        self._open, self._split = None, False
        self._note_end(end)

    def _note_end(self, end: TransactionEnd) -> None:
        self._ends.append(end)
        self._bytes += COMMIT_BYTES
        self._last_commit_lsn = end.end_lsn

    def _on_relation(self, relation: Relation) -> None:
        if self._inside is not None:
            self._inside.learn(relation)
            self._inside.own[relation.relation_id] = relation
        else:
            self._learn(relation)

    def _learn(self, relation: Relation) -> None:
        """A table looks like this to all who are not told anything else."""
        self._plain.learn(relation)
        for stream in self._streams.values():
            stream.own.pop(relation.relation_id, None)

    def _require_open(self, letter: str) -> Begin:
        if self._open is None:
            raise control.not_open(ord(letter))
        return self._open

    def _require_between(self, letter: str) -> None:
        if self._open is not None or self._inside is not None:
            raise control.already_open(ord(letter))

    # -- transactions that come in blocks ----------------------------------------------------------

    def _on_stream_start(self, start: StreamStart) -> None:
        self._require_between("S")
        if start.xid not in self._streams:
            if not start.first_segment:
                raise control.unknown_stream(start.xid)
            self._streams[start.xid] = _Stream(start.xid)
        self._inside = self._streams[start.xid]

    def _on_stream_commit(self, commit: StreamCommit) -> None:
        self._require_between("c")
        stream = self._streams.pop(commit.xid, None)
        if stream is None:
            raise control.unknown_stream(commit.xid)
        end = TransactionEnd(int(commit.end_lsn), commit.commit_ts, commit.xid)
        # The server holds that a table was told to all once it was told in what has committed.
        for relation in stream.own.values():
            self._learn(relation)
        self._rows += stream.rows + stream.parted
        self._bytes += stream.bytes
        self._streamed.append(stream.part(end, after=len(self._plain.batches)))
        self._plain.current.clear()  # rows that commit later stand behind those of the stream
        self._note_end(end)

    def _on_stream_abort(self, abort: StreamAbort) -> None:
        self._require_between("A")
        stream = self._streams.get(abort.xid)
        if stream is None:  # nothing of it has come
            return
        if abort.subtransaction_xid != abort.xid:
            stream.rolled_back.add(abort.subtransaction_xid)
            return
        del self._streams[abort.xid]
        if stream.parted:
            self._streamed.append(Streamed(abort.xid, [], frozenset(), None, aborted=True))


class _Section:
    """Rows that are being gathered, and what their tables look like there."""

    def __init__(self) -> None:
        self.relations: dict[int, Relation] = {}
        self.ordinal = 0
        self.begin_anew()

    def begin_anew(self) -> None:
        self.batches: list[_Batch] = []
        self.current: dict[int, _Batch] = {}
        self.rows = 0
        self.bytes = 0

    def learn(self, relation: Relation) -> None:
        # Even one that says the same: a column may have gone, and another one have its name.
        self.relations[relation.relation_id] = relation
        self.current.pop(relation.relation_id, None)

    def batch(self, relation_id: int) -> _Batch:
        batch = self.current.get(relation_id)
        if batch is None:
            relation = self.relations.get(relation_id)
            if relation is None:
                raise control.unknown_relation(relation_id)
            batch = self.current[relation_id] = _Batch(relation)
            self.batches.append(batch)
        return batch

    def add(self, batch: _Batch, op: int, xid: int, old_kind: int = 0) -> None:
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


class _Stream(_Section):
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
