# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The decoder in C: Begin, Commit, Insert, Update and Delete without a Python object per value.

Same interface and same results as `reference.ReferenceDecoder`, which is the one to read first.
`_tuples.pxd` reads the rows. Their memory is owned by `_Batch` (`_batches.pxi`) until `take` hands
each block to an `_Owned`, which Arrow and numpy then hold.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

from headrace.pgoutput._tuples cimport (
    COLUMN_COUNT, COLUMN_FULL, FIRST_ROWS, NO_MEMORY, Column, Cursor, Tuples, be32, be64,
    free_tuples, left, pad_rows, read_row, resize, tuple_bytes, unix_timestamp,
)

import numpy as np
import pyarrow as pa

from headrace.pgoutput import columns, control, frames, messages
from headrace.pgoutput.malformed import malformed_message
from headrace.pgoutput.prepared import Prepared, require_sent

cdef Py_ssize_t HEADER = frames.XLOG_DATA_HEADER
cdef Py_ssize_t ROW_BYTES = columns.ROW_BYTES
cdef Py_ssize_t VALUE_BYTES = columns.VALUE_BYTES
cdef Py_ssize_t COMMIT_BYTES = columns.COMMIT_BYTES

include "_batches.pxi"

# -- the decoder -----------------------------------------------------------------------------------

cdef class _Section:
    """Rows that are being gathered, and what their tables look like there."""

    cdef dict relations         # relation's OID -> Relation
    cdef dict current           # relation's OID -> the batch that its rows go to
    cdef _Batch last            # the batch of the row before, most often that of the next one too
    cdef list batches           # in order of first rows
    cdef list touched           # those with rows of the open transaction
    cdef Py_ssize_t rows, size
    cdef uint64_t ordinal

    def __cinit__(self, *_):
        self.relations = {}
        self.begin_anew()

    cdef int begin_anew(self) except -1:
        self.batches = []
        self.touched = []
        self.close_batches()
        self.rows = 0
        self.size = 0
        return 0

    cdef int close_batches(self) except -1:
        """Have the rows to come begin new ones."""
        self.current = {}
        self.last = None
        return 0

    cdef int learn(self, object relation) except -1:
        # Even one that says the same: a column may have gone, and another one have its name.
        self.relations[relation.relation_id] = relation
        self.current.pop(relation.relation_id, None)
        self.last = None
        return 0

    cdef _Batch batch_of(self, uint32_t relation_id):
        cdef _Batch batch = self.last
        if batch is not None and batch.relation_id == relation_id:
            return batch
        batch = self.current.get(relation_id)
        if batch is None:
            relation = self.relations.get(relation_id)
            if relation is None:
                raise control.unknown_relation(relation_id)
            batch = self.current[relation_id] = _Batch(relation)
            self.batches.append(batch)
        self.last = batch
        return batch

    cdef int add(self, _Batch batch, uint8_t op, uint32_t xid, uint8_t old_kind) except -1:
        if batch.rows == batch.complete:
            self.touched.append(batch)
        batch.add(op, self.ordinal, xid, old_kind)
        self.ordinal += 1
        self.rows += 1
        self.size += ROW_BYTES
        return 0

    cdef int truncate(self, tuple relation_ids, uint32_t xid) except -1:
        cdef _Batch batch
        cdef uint64_t ordinal = self.ordinal
        for relation_id in relation_ids:
            batch = self.batch_of(relation_id)
            batch.reserve()
            self.ordinal = ordinal
            self.add(batch, b"t"[0], xid, 0)
        self.ordinal = ordinal + 1
        return 0

    cdef int commit(self, uint64_t end_lsn, int64_t commit_ts) except -1:
        cdef _Batch batch
        for batch in self.touched:
            batch.commit(end_lsn, commit_ts)
        self.touched.clear()
        return 0

    cdef list finish(self):
        cdef _Batch batch
        return [batch.finish() for batch in self.batches]


cdef class _Stream(_Section):
    """A streamed transaction in progress."""

    cdef uint32_t xid
    cdef dict own               # of `relations`, those that nobody told otherwise since
    cdef set rolled_back        # subtransactions, since the last part
    cdef bint parted            # some of it was handed over

    def __cinit__(self, uint32_t xid):
        self.xid = xid
        self.own = {}
        self.rolled_back = set()

    @property
    def bytes(self):
        return self.size

    cdef object part(self, object end, Py_ssize_t after):
        """What has come of it since the part before."""
        streamed = columns.streamed_part(self.xid, self.finish(), self.rolled_back, end, after)
        self.begin_anew()
        self.rolled_back = set()
        self.parted = True
        return streamed


cdef class Decoder:
    """See `reference.ReferenceDecoder`, whose interface and results this has."""

    cdef size_t limit
    cdef bint failed
    cdef _Section plain         # transactions that come whole, after their commit
    cdef dict streams           # xid -> those that come in blocks, before it
    cdef _Stream inside
    cdef _Stream preparing      # between Begin Prepare and Prepare
    cdef _Section place         # where rows go now; None between transactions
    cdef readonly object prepared
    cdef _Ends ends
    cdef list streamed          # what is over
    cdef list logical_messages
    cdef object finished
    cdef Py_ssize_t rows, size
    cdef bint open, split
    cdef bint passing           # the open transaction is one that the caller has
    cdef uint64_t final_lsn, last_lsn, start
    cdef uint32_t xid

    def __cinit__(self, *, column_limit=columns.MAX_COLUMN_BYTES, start=0):
        self.limit = min(column_limit, columns.MAX_COLUMN_BYTES)
        self.start = start
        self.prepared = Prepared()
        self.plain = _Section()
        self.streams = {}
        self.begin_anew()

    cdef int begin_anew(self) except -1:
        self.plain.begin_anew()
        self.ends = _Ends()
        self.streamed = []
        self.logical_messages = []
        self.finished = None
        self.rows = 0
        self.size = 0
        return 0

    @property
    def in_transaction(self):
        return bool(self.open) or self.preparing is not None

    @property
    def buffered_rows(self):
        return self.rows + self.plain.rows

    @property
    def buffered_bytes(self):
        cdef _Stream stream
        cdef Py_ssize_t size = self.size + self.plain.size
        for stream in self.streams.values():
            size += stream.size
        return size

    @property
    def last_commit_lsn(self):
        return self.last_lsn

    def push(self, list frames not None):
        """See `reference.ReferenceDecoder.push`."""
        cdef Py_buffer view
        if self.failed:
            raise control.unusable()
        self.failed = True
        for frame in frames:
            PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE)
            try:
                self.handle(<const uint8_t*>view.buf, view.len)
            finally:
                PyBuffer_Release(&view)
        self.failed = False

    def take(self, Py_ssize_t keep=0):
        """See `reference.ReferenceDecoder.take`."""
        cdef _Stream stream
        if self.failed:
            raise control.unusable()
        self.failed = True
        for stream in columns.largest(self.streams.values(), keep):
            self.streamed.append(stream.part(None, 0))
        decoded = columns.Decoded(
            self.plain.finish(),
            self.ends.finish(),
            self.finished,
            self.streamed,
            self.last_lsn,
            self.logical_messages,
        )
        self.begin_anew()
        self.split = self.open
        self.failed = False
        return decoded

    cdef int handle(self, const uint8_t* frame, Py_ssize_t size) except -1:
        cdef Cursor c
        cdef uint8_t letter
        if size < HEADER or frame[0] != b"w":
            frames.payload_of(frame[:size])  # raises
        c.start = frame + HEADER
        c.end = frame + size
        c.at = c.start + 1
        c.found = 0
        letter = c.start[0] if size > HEADER else 0
        if letter == b"I" or letter == b"U" or letter == b"D":
            return self.on_row(&c, letter)
        if letter == b"B":
            return self.on_begin(&c)
        if letter == b"C":
            return self.on_commit(&c)
        return self.on_rare(PyBytes_FromStringAndSize(<char*>c.start, c.end - c.start))

    cdef int on_row(self, Cursor* c, uint8_t letter) except -1:
        cdef _Batch batch
        cdef _Section place = self.place
        cdef uint8_t old_kind = 0
        cdef uint32_t xid = self.xid
        if self.inside is not None:
            if left(c) < 4:
                raise malformed_message(letter, "xid is cut off", 1)
            xid = be32(c.at)
            c.at += 4
        if left(c) < 4:
            raise malformed_message(letter, "relation's OID is cut off", c.at - c.start)
        if place is None:
            raise control.not_open(letter)
        if self.passing:
            return 0
        batch = place.batch_of(be32(c.at))
        c.at += 4
        batch.reserve()
        if read_row(c, letter, &batch.new, &batch.old, &old_kind, batch.rows, self.limit):
            raise self.failure(c, letter, batch)
        place.add(batch, letter | 0x20, xid, old_kind)  # the op is the letter in lower case
        place.size += _row_size(batch, letter, old_kind)
        return 0

    cdef object failure(self, Cursor* c, uint8_t letter, _Batch batch):
        if c.failure == COLUMN_COUNT:
            return control.wrong_column_count(letter, c.found, batch.new.count, c.where)
        if c.failure == COLUMN_FULL:
            return control.column_full(batch.relation.columns[c.where].name, self.limit)
        if c.failure == NO_MEMORY:
            return MemoryError()
        return malformed_message(letter, c.what.decode(), c.where)

    # -- transactions that come whole --------------------------------------------------------------

    cdef int on_begin(self, Cursor* c) except -1:
        cdef int64_t commit_ts = 0
        if left(c) != 20:
            raise malformed_message(b"B"[0], f"{left(c)} bytes instead of 20", 1)
        if unix_timestamp(c, c.at + 8, &commit_ts):
            raise malformed_message(b"B"[0], c.what.decode(), c.where)
        self.require_between(b"B"[0])
        self.final_lsn = be64(c.at)
        self.passing = self.final_lsn < self.start
        self.xid = be32(c.at + 16)
        self.place = self.plain
        self.plain.ordinal = 0
        self.open = True
        return 0

    cdef int on_commit(self, Cursor* c) except -1:
        cdef uint64_t end_lsn
        cdef int64_t commit_ts = 0
        if left(c) != 25:
            raise malformed_message(b"C"[0], f"{left(c)} bytes instead of 25", 1)
        if c.at[0] != 0:
            raise malformed_message(b"C"[0], f"unknown flags {c.at[0]:#x}", 1)
        if unix_timestamp(c, c.at + 17, &commit_ts):
            raise malformed_message(b"C"[0], c.what.decode(), c.where)
        if not self.open:
            raise control.not_open(b"C"[0])
        if be64(c.at + 1) != self.final_lsn:
            raise control.wrong_commit(self.final_lsn, be64(c.at + 1))
        if self.passing:
            self.open = self.split = self.passing = False
            self.place = None
            return 0
        end_lsn = be64(c.at + 9)
        self.plain.commit(end_lsn, commit_ts)
        if self.split:
            self.finished = columns.TransactionEnd(end_lsn, commit_ts, self.xid)
            self.rows += 1
        self.open = self.split = False
        self.place = None
        return self.note_end(end_lsn, commit_ts, self.xid)

    cdef int note_end(self, uint64_t end_lsn, int64_t commit_ts, uint32_t xid) except -1:
        self.ends.add(end_lsn, commit_ts, xid)
        self.size += COMMIT_BYTES
        self.last_lsn = end_lsn
        return 0

    cdef int require_between(self, uint8_t letter) except -1:
        if self.place is not None:
            raise control.already_open(letter)
        return 0

    cdef int on_rare(self, bytes payload) except -1:
        message = messages.parse(payload, streamed=self.inside is not None)
        if isinstance(message, messages.Relation):
            self.on_relation(message)
        elif isinstance(message, messages.Truncate):
            if self.place is None:
                raise control.not_open(b"T"[0])
            if not self.passing:
                self.place.truncate(
                    message.relation_ids, self.xid if message.xid is None else message.xid
                )
        elif isinstance(message, messages.Message):
            self.logical_messages.append(message)
            self.size += len(message.content)
        elif isinstance(message, messages.StreamStart):
            self.on_stream_start(message.xid, message.first_segment)
        elif isinstance(message, messages.StreamStop):
            if self.inside is None:
                raise control.not_open(b"E"[0])
            self.place = self.inside = None
        elif isinstance(message, messages.StreamCommit):
            self.require_between(b"c"[0])
            self.on_stream_commit(message)
        elif isinstance(message, messages.StreamAbort):
            self.on_stream_abort(message.xid, message.subtransaction_xid)
        else:
            self.on_two_phase(message)
        return 0

    cdef int on_two_phase(self, object message) except -1:
        if isinstance(message, messages.BeginPrepare):
            self.on_begin_prepare(message.xid)
        elif isinstance(message, messages.Prepare):
            self.on_prepare(message)
        elif isinstance(message, messages.StreamPrepare):
            self.require_between(b"p"[0])
            if message.xid not in self.streams:
                raise control.unknown_stream(message.xid)
            self.prepared.prepare(message.xid, message.prepare_lsn)
        elif isinstance(message, messages.CommitPrepared):
            self.on_commit_prepared(message)
        elif isinstance(message, messages.RollbackPrepared):
            self.require_between(b"r"[0])
            self.prepared.roll_back(message.xid)
            self.drop(self.streams.pop(message.xid, None))
        return 0

    cdef int on_relation(self, object relation) except -1:
        if self.inside is None:
            return self.learn(relation)
        self.inside.learn(relation)
        self.inside.own[relation.relation_id] = relation
        return 0

    cdef int learn(self, object relation) except -1:
        """A table looks like this to all who are not told anything else."""
        cdef _Stream stream
        self.plain.learn(relation)
        if self.preparing is not None:
            self.preparing.learn(relation)
        for stream in self.streams.values():
            stream.own.pop(relation.relation_id, None)
        return 0

    # -- transactions that come in blocks ----------------------------------------------------------

    cdef int on_stream_start(self, uint32_t xid, bint first) except -1:
        self.require_between(b"S"[0])
        if xid not in self.streams:
            if not first:
                raise control.unknown_stream(xid)
            self.streams[xid] = _Stream(xid)
        self.place = self.inside = self.streams[xid]
        return 0

    cdef int on_stream_commit(self, object commit) except -1:
        cdef _Stream stream
        stream = self.streams.pop(commit.xid, None)
        if stream is None:
            raise control.unknown_stream(commit.xid)
        # The server holds that a table was told to all once it was told in what has committed.
        for relation in stream.own.values():
            self.learn(relation)
        if commit.commit_lsn < self.start:
            return self.drop(stream)
        self.rows += stream.rows + stream.parted
        self.size += stream.size
        end = columns.TransactionEnd(int(commit.end_lsn), commit.commit_ts, commit.xid)
        self.streamed.append(stream.part(end, len(self.plain.batches)))
        self.plain.close_batches()  # rows that commit later stand behind those of the stream
        return self.note_end(commit.end_lsn, commit.commit_ts, commit.xid)

    cdef int on_stream_abort(self, uint32_t xid, uint32_t subtransaction) except -1:
        cdef _Stream stream
        self.require_between(b"A"[0])
        if subtransaction == xid:
            return self.drop(self.streams.pop(xid, None))
        stream = self.streams.get(xid)
        if stream is not None:
            stream.rolled_back.add(subtransaction)
        return 0

    cdef int drop(self, _Stream stream) except -1:
        """A transaction, of which perhaps nothing has come, is to leave nothing."""
        if stream is not None and stream.parted:
            self.streamed.append(columns.Streamed(stream.xid, [], frozenset(), None, aborted=True))
        return 0

    # -- prepared transactions ---------------------------------------------------------------------

    cdef int on_begin_prepare(self, uint32_t xid) except -1:
        self.require_between(b"b"[0])
        self.xid = xid
        self.place = self.preparing = self.streams[xid] = _Stream(xid)
        self.preparing.relations = dict(self.plain.relations)
        return 0

    cdef int on_prepare(self, object prepare) except -1:
        if self.preparing is None:
            raise control.not_open(b"P"[0])
        if self.preparing.xid != prepare.xid:
            raise control.wrong_prepare(self.preparing.xid, prepare.xid)
        self.place = self.preparing = None
        self.prepared.prepare(prepare.xid, prepare.prepare_lsn)
        return 0

    cdef int on_commit_prepared(self, object commit) except -1:
        self.require_between(b"K"[0])
        if commit.xid not in self.streams:
            require_sent(commit, self.start)
            return 0
        self.prepared.commit(commit.xid, commit.end_lsn)
        return self.on_stream_commit(commit)


cdef Py_ssize_t _row_size(_Batch batch, uint8_t letter, uint8_t old_kind) noexcept:
    """Bytes that the newest row's tuples need."""
    cdef Py_ssize_t row = batch.rows - 1, size = 0
    if letter != b"D":
        size += VALUE_BYTES * batch.new.count + tuple_bytes(&batch.new, row)
    if old_kind:
        size += VALUE_BYTES * batch.old.count + tuple_bytes(&batch.old, row)
    return size
