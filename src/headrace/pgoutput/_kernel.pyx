# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The decoder in C: Begin, Commit, Insert, Update and Delete without a Python object per value.

Same interface and same results as `reference.ReferenceDecoder`, which is the one to read first.
`_tuples.pxd` reads the rows. Their memory is owned by `_Batch` until `take` hands each block to an
`_Owned`, which Arrow and numpy then hold.
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

cdef Py_ssize_t HEADER = frames.XLOG_DATA_HEADER
cdef Py_ssize_t ROW_BYTES = columns.ROW_BYTES
cdef Py_ssize_t VALUE_BYTES = columns.VALUE_BYTES
cdef Py_ssize_t COMMIT_BYTES = columns.COMMIT_BYTES

# -- owners of memory ------------------------------------------------------------------------------

cdef class _Owned:
    """A block of memory that is freed with the last view of it."""

    cdef void* block
    cdef Py_ssize_t size

    def __cinit__(self):
        self.block = NULL

    def __dealloc__(self):
        free(self.block)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.block, self.size, 1, flags)


cdef _Owned _hand_over(void** block, size_t size):
    """Move a block out of its owner, without the room that was kept for more."""
    cdef _Owned owned = _Owned()
    resize(block, size)  # should shrinking fail, the block is what it was
    if block[0] == NULL:
        raise MemoryError
    owned.block = block[0]
    owned.size = size
    block[0] = NULL
    return owned


cdef object _array(void** block, size_t count, object dtype):
    return np.frombuffer(_hand_over(block, count * <size_t>dtype.itemsize), dtype)


_UINT8, _INT32, _UINT32 = np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.uint32)
_INT64, _UINT64 = np.dtype(np.int64), np.dtype(np.uint64)


cdef class _Batch:
    """Rows of one relation that are still being added."""

    cdef object relation
    cdef uint32_t relation_id
    cdef Py_ssize_t rows, capacity, complete
    cdef bint has_old
    cdef uint8_t* ops
    cdef uint8_t* old_kind
    cdef uint64_t* ordinals
    cdef uint64_t* lsns
    cdef int64_t* times
    cdef uint32_t* xids
    cdef Tuples new, old

    def __cinit__(self, relation):
        self.relation = relation
        self.relation_id = relation.relation_id
        self._columns(&self.new, len(relation.columns))
        self._columns(&self.old, len(relation.columns))

    cdef int _columns(self, Tuples* t, int count) except -1:
        if resize(<void**>&t.columns, count * sizeof(Column)):
            raise MemoryError
        memset(t.columns, 0, count * sizeof(Column))
        t.count = count
        return 0

    def __dealloc__(self):
        free(self.ops)
        free(self.old_kind)
        free(self.ordinals)
        free(self.lsns)
        free(self.times)
        free(self.xids)
        free_tuples(&self.new)
        free_tuples(&self.old)

    cdef int reserve(self) except -1:
        """Make room for one row more."""
        cdef Py_ssize_t capacity
        if self.rows < self.capacity:
            return 0
        capacity = 2 * self.capacity if self.capacity else FIRST_ROWS
        if (
            resize(<void**>&self.ops, capacity)
            or resize(<void**>&self.old_kind, capacity)
            or resize(<void**>&self.ordinals, capacity * sizeof(uint64_t))
            or resize(<void**>&self.lsns, capacity * sizeof(uint64_t))
            or resize(<void**>&self.times, capacity * sizeof(int64_t))
            or resize(<void**>&self.xids, capacity * sizeof(uint32_t))
        ):
            raise MemoryError
        self.capacity = capacity
        return 0

    cdef void add(self, uint8_t op, uint64_t ordinal, uint32_t xid, uint8_t old_kind) noexcept:
        """Complete the row whose room is reserved and whose tuples are read."""
        cdef Py_ssize_t row = self.rows
        self.ops[row] = op
        self.ordinals[row] = ordinal
        self.xids[row] = xid
        self.old_kind[row] = old_kind
        self.has_old |= old_kind != 0
        self.rows = row + 1

    cdef void commit(self, uint64_t end_lsn, int64_t commit_ts) noexcept:
        cdef Py_ssize_t row
        for row in range(self.complete, self.rows):
            self.lsns[row] = end_lsn
            self.times[row] = commit_ts
        self.complete = self.rows

    cdef object finish(self):
        """The rows as a RawBatch; this batch is empty afterwards."""
        cdef Py_ssize_t rows = self.rows, complete = self.complete
        memset(self.lsns + complete, 0, (rows - complete) * sizeof(uint64_t))
        memset(self.times + complete, 0, (rows - complete) * sizeof(int64_t))
        if pad_rows(&self.new, rows) or (self.has_old and pad_rows(&self.old, rows)):
            raise MemoryError
        self.rows = self.capacity = self.complete = 0
        return columns.RawBatch(
            self.relation,
            complete,
            _array(<void**>&self.ops, rows, _UINT8),
            _array(<void**>&self.ordinals, rows, _UINT64),
            _array(<void**>&self.lsns, rows, _UINT64),
            _array(<void**>&self.times, rows, _INT64),
            _array(<void**>&self.xids, rows, _UINT32),
            _array(<void**>&self.old_kind, rows, _UINT8),
            _raw_columns(&self.new),
            _raw_columns(&self.old) if self.has_old else None,
        )


cdef list _raw_columns(Tuples* t):
    cdef Column* column
    cdef int i
    cdef list raw = []
    for i in range(t.count):
        column = &t.columns[i]
        raw.append(
            columns.RawColumn(
                _array(<void**>&column.kinds, t.rows, _UINT8),
                _array(<void**>&column.offsets, t.rows + 1, _INT32),
                pa.py_buffer(_hand_over(<void**>&column.data, column.size)),
            )
        )
    return raw


cdef class _Ends:
    """The commits since the last take."""

    cdef uint64_t* lsns
    cdef int64_t* times
    cdef uint32_t* xids
    cdef Py_ssize_t count, capacity

    def __dealloc__(self):
        free(self.lsns)
        free(self.times)
        free(self.xids)

    cdef int add(self, uint64_t end_lsn, int64_t commit_ts, uint32_t xid) except -1:
        cdef Py_ssize_t capacity
        if self.count == self.capacity:
            capacity = 2 * self.capacity if self.capacity else FIRST_ROWS
            if (
                resize(<void**>&self.lsns, capacity * sizeof(uint64_t))
                or resize(<void**>&self.times, capacity * sizeof(int64_t))
                or resize(<void**>&self.xids, capacity * sizeof(uint32_t))
            ):
                raise MemoryError
            self.capacity = capacity
        self.lsns[self.count] = end_lsn
        self.times[self.count] = commit_ts
        self.xids[self.count] = xid
        self.count += 1
        return 0

    cdef object finish(self):
        cdef Py_ssize_t count = self.count
        self.count = self.capacity = 0
        return columns.Transactions(
            _array(<void**>&self.lsns, count, _UINT64),
            _array(<void**>&self.times, count, _INT64),
            _array(<void**>&self.xids, count, _UINT32),
        )

# -- the decoder -----------------------------------------------------------------------------------

cdef class Decoder:
    """See `reference.ReferenceDecoder`, whose interface and results this has."""

    cdef size_t limit
    cdef bint failed
    cdef dict relations         # relation's OID -> Relation
    cdef dict current           # relation's OID -> the batch that its rows go to
    cdef _Batch last            # the batch of the row before, most often that of the next one too
    cdef list batches           # in order of first rows
    cdef list touched           # those with rows of the open transaction
    cdef _Ends ends
    cdef list logical_messages
    cdef object finished
    cdef Py_ssize_t rows, size
    cdef bint open, split
    cdef uint64_t final_lsn, ordinal, last_lsn
    cdef uint32_t xid

    def __cinit__(self, *, column_limit=columns.MAX_COLUMN_BYTES):
        self.limit = min(column_limit, columns.MAX_COLUMN_BYTES)
        self.relations = {}
        self.begin_anew()

    cdef int begin_anew(self) except -1:
        self.current = {}
        self.last = None
        self.batches = []
        self.touched = []
        self.ends = _Ends()
        self.logical_messages = []
        self.finished = None
        self.rows = 0
        self.size = 0
        return 0

    @property
    def in_transaction(self):
        return bool(self.open)

    @property
    def buffered_rows(self):
        return self.rows

    @property
    def buffered_bytes(self):
        return self.size

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

    def take(self):
        """See `reference.ReferenceDecoder.take`."""
        cdef _Batch batch
        if self.failed:
            raise control.unusable()
        self.failed = True
        decoded = columns.Decoded(
            [batch.finish() for batch in self.batches],
            self.ends.finish(),
            self.finished,
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
        cdef Py_ssize_t before
        cdef uint8_t old_kind = 0
        if left(c) < 4:
            raise malformed_message(letter, "relation's OID is cut off", 1)
        if not self.open:
            raise control.not_open(letter)
        batch = self.batch_of(be32(c.at))
        c.at += 4
        batch.reserve()
        if read_row(c, letter, &batch.new, &batch.old, &old_kind, batch.rows, self.limit):
            raise self.failure(c, letter, batch)
        self.add(batch, letter | 0x20, old_kind)  # the op is the letter in lower case
        self.size += _row_size(batch, letter, old_kind)
        return 0

    cdef int add(self, _Batch batch, uint8_t op, uint8_t old_kind) except -1:
        if batch.rows == batch.complete:
            self.touched.append(batch)
        batch.add(op, self.ordinal, self.xid, old_kind)
        self.ordinal += 1
        self.rows += 1
        self.size += ROW_BYTES
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

    cdef object failure(self, Cursor* c, uint8_t letter, _Batch batch):
        if c.failure == COLUMN_COUNT:
            return control.wrong_column_count(letter, c.found, batch.new.count, c.where)
        if c.failure == COLUMN_FULL:
            return control.column_full(batch.relation.columns[c.where].name, self.limit)
        if c.failure == NO_MEMORY:
            return MemoryError()
        return malformed_message(letter, c.what.decode(), c.where)

    cdef int on_begin(self, Cursor* c) except -1:
        cdef int64_t commit_ts = 0
        if left(c) != 20:
            raise malformed_message(b"B"[0], f"{left(c)} bytes instead of 20", 1)
        if unix_timestamp(c, c.at + 8, &commit_ts):
            raise malformed_message(b"B"[0], c.what.decode(), c.where)
        if self.open:
            raise control.already_open()
        self.final_lsn = be64(c.at)
        self.xid = be32(c.at + 16)
        self.ordinal = 0
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
        self.commit(be64(c.at + 9), commit_ts)
        return 0

    cdef int commit(self, uint64_t end_lsn, int64_t commit_ts) except -1:
        cdef _Batch batch
        for batch in self.touched:
            batch.commit(end_lsn, commit_ts)
        self.touched.clear()
        self.ends.add(end_lsn, commit_ts, self.xid)
        self.size += COMMIT_BYTES
        if self.split:
            self.finished = columns.TransactionEnd(end_lsn, commit_ts, self.xid)
        self.open = self.split = False
        self.last_lsn = end_lsn
        return 0

    cdef int on_rare(self, bytes payload) except -1:
        message = control.parse_enabled(payload)
        if isinstance(message, messages.Relation):
            # Even one that says the same: a column may have gone, and another one have its name.
            self.relations[message.relation_id] = message
            self.current.pop(message.relation_id, None)
            self.last = None
        elif isinstance(message, messages.Truncate):
            self.on_truncate(message.relation_ids)
        elif isinstance(message, messages.Message):
            self.logical_messages.append(message)
            self.size += len(message.content)
        return 0

    cdef int on_truncate(self, tuple relation_ids) except -1:
        cdef _Batch batch
        cdef uint64_t ordinal = self.ordinal
        if not self.open:
            raise control.not_open(b"T"[0])
        for relation_id in relation_ids:
            batch = self.batch_of(relation_id)
            batch.reserve()
            self.ordinal = ordinal
            self.add(batch, b"t"[0], 0)
        self.ordinal = ordinal + 1
        return 0


cdef Py_ssize_t _row_size(_Batch batch, uint8_t letter, uint8_t old_kind) noexcept:
    """Bytes that the newest row's tuples need."""
    cdef Py_ssize_t row = batch.rows - 1, size = 0
    if letter != b"D":
        size += VALUE_BYTES * batch.new.count + tuple_bytes(&batch.new, row)
    if old_kind:
        size += VALUE_BYTES * batch.old.count + tuple_bytes(&batch.old, row)
    return size
