"""The decoder in plain Python: the one to read, the fallback, and what the kernel is held against.

A decoder sees the messages of one replication connection in order and sorts their rows into columns
per table, without waiting for commits: a row gets its transaction's end once that has come.

PostgreSQL documentation, "Streaming of Large Transactions for Logical Decoding": a transaction that
outgrows the server's memory comes in blocks before its commit, between those of others. Each such
one has rows and Relations of its own until it commits. "Two-phase Commit Support for Logical
Decoding": a prepared transaction comes at its PREPARE, whole or in blocks, and waits likewise.
"""

from __future__ import annotations

import numpy as np

from headrace.pgoutput import control
from headrace.pgoutput.columns import (
    COMMIT_BYTES,
    MAX_COLUMN_BYTES,
    Decoded,
    Streamed,
    TransactionEnd,
    Transactions,
    largest,
)
from headrace.pgoutput.frames import payload_of
from headrace.pgoutput.gathering import Section, Stream
from headrace.pgoutput.messages import (
    Begin,
    BeginPrepare,
    Commit,
    CommitPrepared,
    Delete,
    Insert,
    Message,
    PgoutputMessage,
    Prepare,
    Relation,
    RollbackPrepared,
    StreamAbort,
    StreamCommit,
    StreamPrepare,
    StreamStart,
    StreamStop,
    Truncate,
    TupleData,
    Update,
    parse,
)
from headrace.pgoutput.prepared import Prepared, require_sent


class ReferenceDecoder:
    """Accumulates rows from XLogData frames; see `push`, `take` and the properties.

    One thread uses it at a time. After an error it takes nothing more: the caller streams again
    with a new one. `column_limit` bounds each column's bytes between two takes. Transactions whose
    commit record begins before `start` are passed over: the server sends them again, for the sake
    of one that was prepared before them.
    """

    def __init__(self, *, column_limit: int = MAX_COLUMN_BYTES, start: int = 0) -> None:
        self._limit = min(column_limit, MAX_COLUMN_BYTES)
        self._start = start
        self.prepared = Prepared()
        self._failed = False
        self._plain = Section()  # transactions that come whole, after their commit
        self._open: Begin | None = None
        self._split = False  # the open transaction began before the last take
        self._streams: dict[int, Stream] = {}  # those that come in blocks, before it
        self._inside: Stream | None = None
        self._preparing: Stream | None = None  # between Begin Prepare and Prepare
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
        """A Begin or Begin Prepare has come whose Commit or Prepare has not."""
        return self._open is not None or self._preparing is not None

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
            ProtocolError: a message is malformed or out of order.
            SlotLostError: a prepared transaction has committed whose changes never came.
        """
        if self._failed:
            raise control.unusable()
        self._failed = True
        for frame in frames:
            streamed = self._inside is not None
            self._handle(parse(payload_of(frame), streamed=streamed))
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
            [*self._streamed, *map(Stream.part, largest(self._streams.values(), keep))],
            self._last_commit_lsn,
            self._messages,
        )
        self._begin_anew()
        self._split = self._open is not None
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
                if section is not None:
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
                self._require_between("c")
                self._on_stream_commit(message)
            case StreamAbort():
                self._on_stream_abort(message)
            case _:
                self._handle_two_phase(message)

    def _handle_two_phase(self, message: PgoutputMessage) -> None:
        match message:
            case BeginPrepare():
                self._require_between("b")
                self._preparing = self._streams[message.xid] = Stream(message.xid)
                self._preparing.relations = dict(self._plain.relations)
            case Prepare():
                self._on_prepare(message)
            case StreamPrepare():
                self._require_between("p")
                if message.xid not in self._streams:
                    raise control.unknown_stream(message.xid)
                self.prepared.prepare(message.xid, message.prepare_lsn)
            case CommitPrepared():
                self._on_commit_prepared(message)
            case RollbackPrepared():
                self._require_between("r")
                self.prepared.roll_back(message.xid)
                self._drop(self._streams.pop(message.xid, None))

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
        if section is None:
            return
        batch = section.batch(relation_id)
        section.bytes += batch.add_tuples(ord(letter), old, new, self._limit)
        section.add(batch, ord(letter.lower()), xid, old_kind)

    def _place(self, xid: int | None, letter: str) -> tuple[Section | None, int]:
        """Where a row goes, if anywhere, and the transaction or subtransaction that made it."""
        if self._inside is not None and xid is not None:
            return self._inside, xid
        if self._preparing is not None:
            return self._preparing, self._preparing.xid
        begin = self._require_open(letter)
        return (None if begin.final_lsn < self._start else self._plain), begin.xid

    # -- transactions that come whole --------------------------------------------------------------

    def _on_commit(self, commit: Commit) -> None:
        begin = self._require_open("C")
        if begin.final_lsn != commit.commit_lsn:
            raise control.wrong_commit(begin.final_lsn, commit.commit_lsn)
        if begin.final_lsn < self._start:
            self._open, self._split = None, False
            return
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
        if self._preparing is not None:
            self._preparing.learn(relation)
        for stream in self._streams.values():
            stream.own.pop(relation.relation_id, None)

    def _require_open(self, letter: str) -> Begin:
        if self._open is None:
            raise control.not_open(ord(letter))
        return self._open

    def _require_between(self, letter: str) -> None:
        if self.in_transaction or self._inside is not None:
            raise control.already_open(ord(letter))

    # -- transactions that come in blocks ----------------------------------------------------------

    def _on_stream_start(self, start: StreamStart) -> None:
        self._require_between("S")
        if start.xid not in self._streams:
            if not start.first_segment:
                raise control.unknown_stream(start.xid)
            self._streams[start.xid] = Stream(start.xid)
        self._inside = self._streams[start.xid]

    def _on_stream_commit(self, commit: StreamCommit | CommitPrepared) -> None:
        stream = self._streams.pop(commit.xid, None)
        if stream is None:
            raise control.unknown_stream(commit.xid)
        # The server holds that a table was told to all once it was told in what has committed.
        for relation in stream.own.values():
            self._learn(relation)
        if commit.commit_lsn < self._start:
            self._drop(stream)
            return
        end = TransactionEnd(int(commit.end_lsn), commit.commit_ts, commit.xid)
        self._rows += stream.rows + stream.parted
        self._bytes += stream.bytes
        self._streamed.append(stream.part(end, after=len(self._plain.batches)))
        self._plain.current.clear()  # rows that commit later stand behind those of the stream
        self._note_end(end)

    def _on_stream_abort(self, abort: StreamAbort) -> None:
        self._require_between("A")
        if abort.subtransaction_xid == abort.xid:
            self._drop(self._streams.pop(abort.xid, None))
        elif abort.xid in self._streams:
            self._streams[abort.xid].rolled_back.add(abort.subtransaction_xid)

    def _drop(self, stream: Stream | None) -> None:
        """A transaction, of which perhaps nothing has come, is to leave nothing."""
        if stream is not None and stream.parted:
            self._streamed.append(Streamed(stream.xid, [], frozenset(), None, aborted=True))

    # -- prepared transactions ---------------------------------------------------------------------

    def _on_prepare(self, prepare: Prepare) -> None:
        if self._preparing is None:
            raise control.not_open(ord("P"))
        if self._preparing.xid != prepare.xid:
            raise control.wrong_prepare(self._preparing.xid, prepare.xid)
        self._preparing = None
        self.prepared.prepare(prepare.xid, prepare.prepare_lsn)

    def _on_commit_prepared(self, commit: CommitPrepared) -> None:
        self._require_between("K")
        if commit.xid not in self._streams:
            require_sent(commit, self._start)
            return
        self.prepared.commit(commit.xid, commit.end_lsn)
        self._on_stream_commit(commit)


def _transactions(ends: list[TransactionEnd]) -> Transactions:
    return Transactions(
        np.array([end.end_lsn for end in ends], np.uint64),
        np.array([end.commit_ts for end in ends], np.int64),
        np.array([end.xid for end in ends], np.uint32),
    )
