# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The decoder in C: Begin, Commit, Insert, Update and Delete without a Python object per value.

Same interface and same results as `reference.ReferenceDecoder`, which is the one to read first.
Bytes are checked where they are read: every read asks `_left` before it moves the cursor. Memory is
owned by `_Batch` until `take` hands each block to an `_Owned`, which Arrow and numpy then hold.

A function that can fail returns 0, or -1 with `_Cursor.error` saying why (NULL: out of memory).
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport INT64_MAX, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

import numpy as np
import pyarrow as pa

from headrace.pgoutput import columns, control, frames, messages, wire
from headrace.pgoutput.malformed import malformed, malformed_message

cdef Py_ssize_t HEADER = frames.XLOG_DATA_HEADER
cdef int64_t EPOCH = wire.POSTGRES_EPOCH_US
cdef Py_ssize_t ROW_BYTES = columns.ROW_BYTES
cdef Py_ssize_t VALUE_BYTES = columns.VALUE_BYTES
cdef Py_ssize_t COMMIT_BYTES = columns.COMMIT_BYTES

cdef Py_ssize_t FIRST_ROWS = 16  # most batches of a quiet table are this small
cdef size_t FIRST_BYTES = 256

# -- C: the cursor ---------------------------------------------------------------------------------

cdef enum Failure:
    MALFORMED = 1
    COLUMN_COUNT = 2
    COLUMN_FULL = 3
    NO_MEMORY = 4

cdef struct Cursor:
    const uint8_t* start  # of the pgoutput message: errors count from here
    const uint8_t* at
    const uint8_t* end
    Failure failure
    const char* what      # MALFORMED
    Py_ssize_t where      # byte, or the column that is full
    int found             # COLUMN_COUNT


cdef inline size_t _left(const Cursor* c) noexcept nogil:
    return <size_t>(c.end - c.at)


cdef inline uint16_t _u16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((<uint16_t>p[0] << 8) | p[1])


cdef inline uint32_t _u32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t _u64(const uint8_t* p) noexcept nogil:
    return (<uint64_t>_u32(p) << 32) | _u32(p + 4)


cdef inline int _malformed(Cursor* c, const char* what, const uint8_t* at) noexcept nogil:
    c.failure = MALFORMED
    c.what = what
    c.where = at - c.start
    return -1


cdef inline int _timestamp(Cursor* c, const uint8_t* p, int64_t* unix_us) noexcept nogil:
    cdef int64_t value = <int64_t>_u64(p)
    if value > INT64_MAX - EPOCH:
        return _malformed(c, "timestamp is beyond what Postgres can hold", p)
    unix_us[0] = value + EPOCH
    return 0

# -- C: columns ------------------------------------------------------------------------------------

cdef struct Column:
    uint8_t* kinds
    int32_t* offsets  # one more than rows
    uint8_t* data
    size_t size
    size_t capacity

cdef struct Tuples:  # the new or the old tuples of a batch, column by column
    Column* columns
    int count
    Py_ssize_t rows      # filled: may lag behind the batch's rows, see _pad
    Py_ssize_t capacity  # in rows; 0 until the first tuple


cdef inline int _resize(void** block, size_t size) noexcept nogil:
    cdef void* moved = realloc(block[0], size if size else 1)
    if moved == NULL:
        return -1
    block[0] = moved
    return 0


cdef int _grow_rows(Tuples* t, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t capacity = t.capacity if t.capacity else FIRST_ROWS
    cdef bint first = t.capacity == 0
    cdef Column* column
    cdef int i
    while capacity < rows:
        capacity *= 2
    for i in range(t.count):
        column = &t.columns[i]
        if _resize(<void**>&column.kinds, capacity):
            return -1
        if _resize(<void**>&column.offsets, (capacity + 1) * sizeof(int32_t)):
            return -1
        if first:
            column.offsets[0] = 0
    t.capacity = capacity
    return 0


cdef int _pad(Tuples* t, Py_ssize_t rows) noexcept nogil:
    """Give the rows that have no such tuple an empty one, up to `rows`."""
    cdef Column* column
    cdef Py_ssize_t row
    cdef int i
    if rows > t.capacity and _grow_rows(t, rows):
        return -1
    for i in range(t.count):
        column = &t.columns[i]
        memset(column.kinds + t.rows, 0, rows - t.rows)
        for row in range(t.rows, rows):
            column.offsets[row + 1] = <int32_t>column.size
    t.rows = rows
    return 0


cdef int _grow_data(Column* column, size_t size) noexcept nogil:
    cdef size_t capacity = 2 * column.capacity if column.capacity else FIRST_BYTES
    if capacity < size:
        capacity = size
    if _resize(<void**>&column.data, capacity):
        return -1
    column.capacity = capacity
    return 0


cdef int _read_value(
    Cursor* c, Column* column, uint8_t kind, int index, size_t limit
) noexcept nogil:
    cdef size_t size
    if kind != b"t" and kind != b"b":
        if kind != b"n" and kind != b"u":
            return _malformed(c, "unknown column kind", c.at - 1)
        return 0
    if _left(c) < 4:
        return _malformed(c, "length of a value is cut off", c.at)
    size = _u32(c.at)  # a negative length is one beyond the message
    c.at += 4
    if size > _left(c):
        return _malformed(c, "value is longer than the message", c.at)
    if size > limit - column.size:
        c.failure = COLUMN_FULL
        c.where = index
        return -1
    if size > column.capacity - column.size and _grow_data(column, column.size + size):
        c.failure = NO_MEMORY
        return -1
    memcpy(column.data + column.size, c.at, size)
    column.size += size
    c.at += size
    return 0


cdef int _read_tuple(Cursor* c, Tuples* t, Py_ssize_t row, size_t limit) noexcept nogil:
    """Read one TupleData into row `row`, which must not be filled yet."""
    cdef Column* column
    cdef uint8_t kind
    cdef int i
    if _left(c) < 2:
        return _malformed(c, "column count is cut off", c.at)
    c.found = <int16_t>_u16(c.at)
    if c.found != t.count:
        c.failure = COLUMN_COUNT
        c.where = c.at - c.start
        return -1
    c.at += 2
    if (row + 1 > t.capacity and _grow_rows(t, row + 1)) or (row > t.rows and _pad(t, row)):
        c.failure = NO_MEMORY
        return -1
    for i in range(t.count):
        if _left(c) < 1:
            return _malformed(c, "column kind is cut off", c.at)
        kind = c.at[0]
        c.at += 1
        column = &t.columns[i]
        if _read_value(c, column, kind, i, limit):
            return -1
        column.kinds[row] = kind
        column.offsets[row + 1] = <int32_t>column.size
    t.rows = row + 1
    return 0


cdef int _read_row(
    Cursor* c, uint8_t letter, Tuples* new, Tuples* old, uint8_t* old_kind, Py_ssize_t row,
    size_t limit,
) noexcept nogil:
    """Read what follows the relation's OID in an Insert, Update or Delete, to the message's end."""
    cdef uint8_t kind
    if _left(c) < 1:
        return _malformed(c, "tuple kind is cut off", c.at)
    kind = c.at[0]
    c.at += 1
    old_kind[0] = 0
    if letter != b"I" and (kind == b"K" or kind == b"O"):
        old_kind[0] = kind
        if _read_tuple(c, old, row, limit):
            return -1
        if letter == b"U":
            if _left(c) < 1:
                return _malformed(c, "tuple kind is cut off", c.at)
            kind = c.at[0]
            c.at += 1
    if letter != b"D":
        if kind != b"N":
            return _malformed(c, "unknown tuple kind", c.at - 1)
        if _read_tuple(c, new, row, limit):
            return -1
    elif old_kind[0] == 0:
        return _malformed(c, "unknown tuple kind", c.at - 1)
    if c.at != c.end:
        return _malformed(c, "trailing bytes", c.at)
    return 0

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
    _resize(block, size)  # should shrinking fail, the block is what it was
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
        if _resize(<void**>&t.columns, count * sizeof(Column)):
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
        _free_tuples(&self.new)
        _free_tuples(&self.old)

    cdef int reserve(self) except -1:
        """Make room for one row more."""
        cdef Py_ssize_t capacity
        if self.rows < self.capacity:
            return 0
        capacity = 2 * self.capacity if self.capacity else FIRST_ROWS
        if (
            _resize(<void**>&self.ops, capacity)
            or _resize(<void**>&self.old_kind, capacity)
            or _resize(<void**>&self.ordinals, capacity * sizeof(uint64_t))
            or _resize(<void**>&self.lsns, capacity * sizeof(uint64_t))
            or _resize(<void**>&self.times, capacity * sizeof(int64_t))
            or _resize(<void**>&self.xids, capacity * sizeof(uint32_t))
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
        if _pad(&self.new, rows) or (self.has_old and _pad(&self.old, rows)):
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


cdef void _free_tuples(Tuples* t) noexcept:
    cdef int i
    if t.columns != NULL:
        for i in range(t.count):
            free(t.columns[i].kinds)
            free(t.columns[i].offsets)
            free(t.columns[i].data)
    free(t.columns)


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
                _resize(<void**>&self.lsns, capacity * sizeof(uint64_t))
                or _resize(<void**>&self.times, capacity * sizeof(int64_t))
                or _resize(<void**>&self.xids, capacity * sizeof(uint32_t))
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
        if _left(c) < 4:
            raise malformed_message(letter, "relation's OID is cut off", 1)
        if not self.open:
            raise control.not_open(letter)
        batch = self.batch_of(_u32(c.at))
        c.at += 4
        batch.reserve()
        if _read_row(c, letter, &batch.new, &batch.old, &old_kind, batch.rows, self.limit):
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
        if _left(c) != 20:
            raise malformed_message(b"B"[0], f"{_left(c)} bytes instead of 20", 1)
        if _timestamp(c, c.at + 8, &commit_ts):
            raise malformed_message(b"B"[0], c.what.decode(), c.where)
        if self.open:
            raise control.already_open()
        self.final_lsn = _u64(c.at)
        self.xid = _u32(c.at + 16)
        self.ordinal = 0
        self.open = True
        return 0

    cdef int on_commit(self, Cursor* c) except -1:
        cdef uint64_t end_lsn
        cdef int64_t commit_ts = 0
        if _left(c) != 25:
            raise malformed_message(b"C"[0], f"{_left(c)} bytes instead of 25", 1)
        if c.at[0] != 0:
            raise malformed_message(b"C"[0], f"unknown flags {c.at[0]:#x}", 1)
        if _timestamp(c, c.at + 17, &commit_ts):
            raise malformed_message(b"C"[0], c.what.decode(), c.where)
        if not self.open:
            raise control.not_open(b"C"[0])
        if _u64(c.at + 1) != self.final_lsn:
            raise control.wrong_commit(self.final_lsn, _u64(c.at + 1))
        self.commit(_u64(c.at + 9), commit_ts)
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
            if self.relations.get(message.relation_id) != message:
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
    cdef Py_ssize_t size = 0
    if letter != b"D":
        size += _tuple_size(&batch.new, batch.rows - 1)
    if old_kind:
        size += _tuple_size(&batch.old, batch.rows - 1)
    return size


cdef Py_ssize_t _tuple_size(const Tuples* t, Py_ssize_t row) noexcept nogil:
    cdef Py_ssize_t size = VALUE_BYTES * t.count
    cdef int i
    for i in range(t.count):
        size += t.columns[i].offsets[row + 1] - t.columns[i].offsets[row]
    return size
