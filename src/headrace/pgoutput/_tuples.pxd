# cython: language_level=3
"""Tuples of hot messages into columns, in C without Python: bytes are checked where they are read.

Every read asks `left` before it moves the cursor. A function that can fail returns 0, or -1 with
`Cursor.failure` saying why; those that take no cursor can only run out of memory.
"""

from libc.stdint cimport INT64_MAX, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

cdef enum:
    FIRST_ROWS = 16  # most batches of a quiet table are this small
    FIRST_BYTES = 256

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


cdef inline size_t left(const Cursor* c) noexcept nogil:
    return <size_t>(c.end - c.at)


cdef inline uint16_t be16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((<uint16_t>p[0] << 8) | p[1])


cdef inline uint32_t be32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t be64(const uint8_t* p) noexcept nogil:
    return (<uint64_t>be32(p) << 32) | be32(p + 4)


cdef inline int refuse(Cursor* c, const char* what, const uint8_t* at) noexcept nogil:
    c.failure = MALFORMED
    c.what = what
    c.where = at - c.start
    return -1


cdef inline int unix_timestamp(Cursor* c, const uint8_t* p, int64_t* unix_us) noexcept nogil:
    cdef int64_t epoch = 946684800000000  # 2000-01-01 in microseconds since 1970-01-01
    cdef int64_t value = <int64_t>be64(p)
    if value > INT64_MAX - epoch:
        return refuse(c, "timestamp is beyond what Postgres can hold", p)
    unix_us[0] = value + epoch
    return 0


# -- columns ---------------------------------------------------------------------------------------

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


cdef inline int resize(void** block, size_t size) noexcept nogil:
    cdef void* moved = realloc(block[0], size if size else 1)
    if moved == NULL:
        return -1
    block[0] = moved
    return 0


cdef inline int grow_rows(Tuples* t, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t capacity = t.capacity if t.capacity else FIRST_ROWS
    cdef bint first = t.capacity == 0
    cdef Column* column
    cdef int i
    while capacity < rows:
        capacity *= 2
    for i in range(t.count):
        column = &t.columns[i]
        if resize(<void**>&column.kinds, capacity):
            return -1
        if resize(<void**>&column.offsets, (capacity + 1) * sizeof(int32_t)):
            return -1
        if first:
            column.offsets[0] = 0
    t.capacity = capacity
    return 0


cdef inline int pad_rows(Tuples* t, Py_ssize_t rows) noexcept nogil:
    """Give the rows that have no such tuple an empty one, up to `rows`."""
    cdef Column* column
    cdef Py_ssize_t row
    cdef int i
    if rows == t.rows:
        return 0
    if rows > t.capacity and grow_rows(t, rows):
        return -1
    for i in range(t.count):
        column = &t.columns[i]
        memset(column.kinds + t.rows, 0, rows - t.rows)
        for row in range(t.rows, rows):
            column.offsets[row + 1] = <int32_t>column.size
    t.rows = rows
    return 0


cdef inline int grow_data(Column* column, size_t size) noexcept nogil:
    cdef size_t capacity = 2 * column.capacity if column.capacity else FIRST_BYTES
    if capacity < size:
        capacity = size
    if resize(<void**>&column.data, capacity):
        return -1
    column.capacity = capacity
    return 0


cdef inline int read_value(
    Cursor* c, Column* column, uint8_t kind, int index, size_t limit
) noexcept nogil:
    cdef size_t size
    if kind != b"t" and kind != b"b":
        if kind != b"n" and kind != b"u":
            return refuse(c, "unknown column kind", c.at - 1)
        return 0
    if left(c) < 4:
        return refuse(c, "length of a value is cut off", c.at)
    size = be32(c.at)  # a negative length is one beyond the message
    c.at += 4
    if size > left(c):
        return refuse(c, "value is longer than the message", c.at)
    if size > limit - column.size:
        c.failure = COLUMN_FULL
        c.where = index
        return -1
    if size > column.capacity - column.size and grow_data(column, column.size + size):
        c.failure = NO_MEMORY
        return -1
    if size:  # an empty value may come before any memory is there
        memcpy(column.data + column.size, c.at, size)
    column.size += size
    c.at += size
    return 0


cdef inline int read_tuple(Cursor* c, Tuples* t, Py_ssize_t row, size_t limit) noexcept nogil:
    """Read one TupleData into row `row`, which must not be filled yet."""
    cdef Column* column
    cdef uint8_t kind
    cdef int i
    if left(c) < 2:
        return refuse(c, "column count is cut off", c.at)
    c.found = <int16_t>be16(c.at)
    if c.found != t.count:
        c.failure = COLUMN_COUNT
        c.where = c.at - c.start
        return -1
    c.at += 2
    if (row + 1 > t.capacity and grow_rows(t, row + 1)) or (row > t.rows and pad_rows(t, row)):
        c.failure = NO_MEMORY
        return -1
    for i in range(t.count):
        if left(c) < 1:
            return refuse(c, "column kind is cut off", c.at)
        kind = c.at[0]
        c.at += 1
        column = &t.columns[i]
        if read_value(c, column, kind, i, limit):
            return -1
        column.kinds[row] = kind
        column.offsets[row + 1] = <int32_t>column.size
    t.rows = row + 1
    return 0


cdef inline int read_row(
    Cursor* c, uint8_t letter, Tuples* new, Tuples* old, uint8_t* old_kind, Py_ssize_t row,
    size_t limit,
) noexcept nogil:
    """Read what follows the relation's OID in an Insert, Update or Delete, to the message's end."""
    cdef uint8_t kind
    if left(c) < 1:
        return refuse(c, "tuple kind is cut off", c.at)
    kind = c.at[0]
    c.at += 1
    old_kind[0] = 0
    if letter != b"I" and (kind == b"K" or kind == b"O"):
        old_kind[0] = kind
        if read_tuple(c, old, row, limit):
            return -1
        if letter == b"U":
            if left(c) < 1:
                return refuse(c, "tuple kind is cut off", c.at)
            kind = c.at[0]
            c.at += 1
    if letter != b"D":
        if kind != b"N":
            return refuse(c, "unknown tuple kind", c.at - 1)
        if read_tuple(c, new, row, limit):
            return -1
    elif old_kind[0] == 0:
        return refuse(c, "unknown tuple kind", c.at - 1)
    if c.at != c.end:
        return refuse(c, "trailing bytes", c.at)
    return 0


cdef inline void free_tuples(Tuples* t) noexcept:
    cdef int i
    if t.columns != NULL:
        for i in range(t.count):
            free(t.columns[i].kinds)
            free(t.columns[i].offsets)
            free(t.columns[i].data)
    free(t.columns)


cdef inline Py_ssize_t tuple_bytes(const Tuples* t, Py_ssize_t row) noexcept nogil:
    """Bytes of the values in row `row`."""
    cdef Py_ssize_t size = 0
    cdef int i
    for i in range(t.count):
        size += t.columns[i].offsets[row + 1] - t.columns[i].offsets[row]
    return size
