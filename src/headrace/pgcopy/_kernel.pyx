# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The decoder in C: no Python object per row or value, and no GIL while there are rows.

Same interface and same results as `reference.ReferenceDecoder`, which is the one to read first, and
`pull` beside it. `_values.pxd` reads the values. Their memory is the decoder's until `take` hands
each block to an `_Owned`, which Arrow then holds.
"""

from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport int16_t, int32_t, uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memset

from headrace.pgcopy._values cimport (
    BAD, BOOL, BYTES, DECIMAL, DONE, NO_MEMORY, NUMERIC, ODD, Column, Powers, Wire, add_null,
    add_value, be16, be32, grow_rows, resize,
)

import pyarrow as pa

from headrace.pgcopy import binary_format, columns, texts

cdef enum:
    FIRST_ROWS = 1024  # a multiple of 8
    MALFORMED = 4
    COUNT = 5
    AFTER_END = 6
    HEADER = 7

cdef const char* SIGNATURE = binary_format.SIGNATURE
cdef Py_ssize_t SIGNATURE_SIZE = len(binary_format.SIGNATURE)
cdef Py_ssize_t FIXED_HEADER = binary_format.FIXED_HEADER
cdef uint32_t CRITICAL_FLAGS = binary_format.CRITICAL_FLAGS

ctypedef int (*GetCopyData)(void* connection, char** buffer, int asynchronous) noexcept nogil
ctypedef void (*FreeMemory)(void* buffer) noexcept nogil

cdef Powers POWERS

cdef int _fill_powers() except -1:
    cdef int i
    POWERS.ten[0] = 1
    for i in range(1, 39):
        POWERS.ten[i] = POWERS.ten[i - 1] * 10
    for i in range(39):
        POWERS.room[i] = POWERS.ten[38 - i]
    return 0

_fill_powers()


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


cdef object _hand_over(void** block, size_t size):
    """Move a block out of its owner, without the room that was kept for more."""
    cdef _Owned owned = _Owned()
    if resize(block, size):
        raise MemoryError
    owned.block = block[0]
    owned.size = size
    block[0] = NULL
    return pa.py_buffer(owned)


cdef class Decoder:
    """See `reference.ReferenceDecoder`, whose interface and results this has."""

    cdef object wanted
    cdef Column* columns
    cdef int count
    cdef Py_ssize_t filled, capacity, bytes
    cdef Py_ssize_t expected    # rows until the next take, a multiple of 8
    cdef bint started, at_end
    cdef list odd               # per column None, or {row: text}
    cdef int found              # the column of a failure, or the count of a wrong row

    def __cinit__(self, wanted):
        cdef int i
        self.wanted = tuple(wanted)
        self.count = len(self.wanted)
        if resize(<void**>&self.columns, self.count * sizeof(Column)):
            raise MemoryError
        memset(self.columns, 0, self.count * sizeof(Column))
        for i in range(self.count):
            _describe(&self.columns[i], self.wanted[i])
        self.odd = [None] * self.count
        self.expected = FIRST_ROWS

    def __dealloc__(self):
        cdef int i
        for i in range(self.count):
            free(self.columns[i].data)
            free(self.columns[i].offsets)
            free(self.columns[i].valid)
        free(self.columns)

    @property
    def rows(self):
        return self.filled

    @property
    def size(self):
        return self.bytes

    @property
    def ended(self):
        return bool(self.at_end)

    def push(self, messages):
        """See `reference.ReferenceDecoder.push`."""
        cdef Py_buffer view
        for message in messages:
            PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
            try:
                self._check(self.message(<const uint8_t*>view.buf, view.len))
            finally:
                PyBuffer_Release(&view)

    def pull(self, uintptr_t get, uintptr_t release, uintptr_t connection, Py_ssize_t limit):
        """Take what libpq has received of a COPY, until `size` is at `limit` bytes.

        `get`, `release` and `connection` are PQgetCopyData, PQfreemem and the PGconn; the result is
        what the last PQgetCopyData gave: above 0 only where the limit was come to. Nothing is read
        from the socket: that is PQconsumeInput's. The GIL is released meanwhile.
        """
        cdef GetCopyData get_copy_data = <GetCopyData>get
        cdef FreeMemory free_memory = <FreeMemory>release
        cdef char* buffer = NULL
        cdef int size = 1, failure = DONE
        with nogil:
            while self.bytes < limit:
                size = get_copy_data(<void*>connection, &buffer, 1)
                if size <= 0:
                    break
                failure = self.message(<const uint8_t*>buffer, size)
                free_memory(buffer)
                if failure:
                    break
        self._check(failure)
        return size

    def take(self):
        """See `reference.ReferenceDecoder.take`."""
        cdef int i
        taken = columns.CopiedRows(self.filled, [self._column(i) for i in range(self.count)])
        self.expected = max(FIRST_ROWS, (self.filled + 7) // 8 * 8)
        self.filled = self.capacity = self.bytes = 0
        self.odd = [None] * self.count
        return taken

    cdef int message(self, const uint8_t* data, Py_ssize_t size) noexcept nogil:
        cdef const uint8_t* at = data
        cdef const uint8_t* end = data + size
        cdef int failure = DONE
        if not self.started:
            failure = self._header(&at, end)
        while at < end and not failure:
            failure = self._row(&at, end)
        self.bytes += size
        return failure

    cdef int _header(self, const uint8_t** at, const uint8_t* end) noexcept nogil:
        cdef const uint8_t* start = at[0]
        if end - start < FIXED_HEADER or memcmp(start, SIGNATURE, SIGNATURE_SIZE):
            return HEADER
        if be32(start + SIGNATURE_SIZE) & CRITICAL_FLAGS:
            return HEADER
        at[0] = start + FIXED_HEADER + be32(start + SIGNATURE_SIZE + 4)
        self.started = at[0] <= end
        return DONE if self.started else HEADER

    cdef int _row(self, const uint8_t** start, const uint8_t* end) noexcept nogil:
        cdef const uint8_t* at = start[0]
        cdef int i, found, outcome
        cdef int32_t size
        if self.at_end:
            return AFTER_END
        if end - at < 2:
            return MALFORMED
        found = <int16_t>be16(at)
        at += 2
        if found != self.count:
            self.at_end = found == -1
            self.found = found
            start[0] = at
            return DONE if self.at_end else COUNT
        if self.filled == self.capacity and self._grow():
            return NO_MEMORY
        for i in range(self.count):
            if end - at < 4:
                return MALFORMED
            size = <int32_t>be32(at)
            at += 4
            if size == -1:
                add_null(&self.columns[i], self.filled)
                continue
            if size < 0 or end - at < size:
                return MALFORMED
            outcome = add_value(&self.columns[i], self.filled, at, size, &POWERS)
            if outcome == ODD:
                add_null(&self.columns[i], self.filled)
                outcome = self._remember(i, at, size)
            if outcome:
                self.found = i
                return outcome
            at += size
        self.filled += 1
        start[0] = at
        return DONE

    cdef int _grow(self) noexcept nogil:
        cdef Py_ssize_t rows = 2 * self.capacity if self.capacity else self.expected
        cdef int i
        for i in range(self.count):
            if grow_rows(&self.columns[i], self.capacity, rows):
                return NO_MEMORY
        self.capacity = rows
        return DONE

    cdef int _remember(self, int column, const uint8_t* raw, int32_t size) noexcept with gil:
        """A value that the Arrow type cannot hold: rare, so Python tells its text."""
        wanted = self.wanted[column]
        if self.odd[column] is None:
            self.odd[column] = {}
        self.odd[column][self.filled] = texts.odd_text(wanted.kind, wanted.arrow, raw[:size])
        return DONE

    cdef object _column(self, int index):
        cdef Column* column = &self.columns[index]
        cdef Py_ssize_t rows = self.filled
        if not self.capacity and grow_rows(column, 0, 8):
            raise MemoryError
        valid = _hand_over(<void**>&column.valid, (rows + 7) // 8) if column.nulls else None
        buffers = [valid]
        if column.width or column.wire == BOOL:
            size = rows * column.width if column.width else (rows + 7) // 8
            buffers.append(_hand_over(<void**>&column.data, size))
        else:
            buffers.append(_hand_over(<void**>&column.offsets, (rows + 1) * sizeof(int32_t)))
            buffers.append(_hand_over(<void**>&column.data, column.size))
        free(column.valid)
        column.valid = NULL
        values = pa.Array.from_buffers(self.wanted[index].arrow, rows, buffers, column.nulls)
        column.expected = column.size + column.size // 8
        column.size = column.capacity = 0
        column.nulls = 0
        odd = self.odd[index]
        texts_of = odd and pa.array([odd.get(row) for row in range(rows)], pa.string())
        return columns.CopiedColumn(values, texts_of)

    cdef int _check(self, int failure) except -1:
        if failure == DONE:
            return 0
        if failure == NO_MEMORY:
            raise MemoryError
        if failure == COUNT:
            raise binary_format.wrong_count(self.found, self.count)
        if failure == BAD:
            raise binary_format.wrong_value(self.found)
        if failure == AFTER_END:
            raise binary_format.beyond_the_end()
        raise binary_format.wrong_header() if failure == HEADER else binary_format.cut_off()


cdef int _describe(Column* column, object wanted) except -1:
    """What is known of a column before its first value."""
    arrow = wanted.arrow
    column.wire = <Wire><int>wanted.kind
    if column.wire == NUMERIC and pa.types.is_decimal128(arrow):
        column.wire = DECIMAL
        column.precision, column.scale = arrow.precision, arrow.scale
    variable = pa.types.is_string(arrow) or pa.types.is_binary(arrow) or column.wire == BOOL
    column.width = 0 if variable else arrow.bit_width // 8
    return 0
