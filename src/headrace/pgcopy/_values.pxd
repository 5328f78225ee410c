# cython: language_level=3, cdivision=True
"""One value at a time into a column's Arrow buffers, in C without Python: see `reference._value`.

A function that can fail returns 0, ODD for a value that the Arrow type cannot hold, BAD for bytes
that are no value of the type, or NO_MEMORY.
"""

from libc.math cimport NAN
from libc.stdint cimport (
    INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, int16_t, int32_t, int64_t, uint8_t, uint16_t,
    uint32_t, uint64_t,
)
from libc.stdlib cimport realloc
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    typedef unsigned __int128 headrace_u128;
    """
    ctypedef unsigned long long u128 "headrace_u128"

cdef enum Outcome:
    DONE = 0
    ODD = 1
    BAD = 2
    NO_MEMORY = 3

cdef enum Wire:  # columns.Kind, numeric split by what it becomes
    BOOL = 1
    INT2 = 2
    INT4 = 3
    INT8 = 4
    FLOAT4 = 5
    FLOAT8 = 6
    DATE = 7
    TIMESTAMP = 8
    TEXT = 9
    BYTES = 10
    JSONB = 11
    UUID = 12
    NUMERIC = 13
    DECIMAL = 14

cdef enum:
    EPOCH_DAYS = 10957
    DECIMAL_DIGITS = 38
    NUMERIC_HEADER = 8
    NEGATIVE = 0x4000
    NAN_SIGN = 0xC000
    INFINITE = 0xD000
    NEGATIVE_INFINITE = 0xF000

cdef struct Column:
    Wire wire
    Py_ssize_t width     # of a value in `data`; 0 where `offsets` tell, or where it is a bit
    int precision        # DECIMAL
    int scale
    uint8_t* data
    size_t size          # of what has offsets
    size_t capacity
    size_t expected      # bytes until the next take
    int32_t* offsets
    uint8_t* valid       # a bitmap
    Py_ssize_t nulls

cdef struct Powers:  # of ten, and how often each goes into 10^38
    u128 ten[39]
    u128 room[39]


cdef inline uint16_t be16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((<uint16_t>p[0] << 8) | p[1])


cdef inline uint32_t be32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline uint64_t be64(const uint8_t* p) noexcept nogil:
    return (<uint64_t>be32(p) << 32) | be32(p + 4)


cdef inline int resize(void** block, size_t size) noexcept nogil:
    cdef void* moved = realloc(block[0], size if size else 1)
    if moved == NULL:
        return NO_MEMORY
    block[0] = moved
    return DONE


cdef inline int grow_rows(Column* column, Py_ssize_t before, Py_ssize_t rows) noexcept nogil:
    """Make room for `rows`, a multiple of 8, where there was room for `before`."""
    if resize(<void**>&column.valid, rows // 8):
        return NO_MEMORY
    memset(column.valid + before // 8, 0xFF, (rows - before) // 8)
    if column.width:
        return resize(<void**>&column.data, rows * column.width)
    if column.wire == BOOL:
        if resize(<void**>&column.data, rows // 8):
            return NO_MEMORY
        memset(column.data + before // 8, 0, (rows - before) // 8)
        return DONE
    if resize(<void**>&column.offsets, (rows + 1) * sizeof(int32_t)):
        return NO_MEMORY
    column.offsets[0] = 0
    return DONE


cdef inline uint8_t* room(Column* column, size_t more) noexcept nogil:
    """Where the next `more` bytes go, or NULL. Nothing is written past what was asked for."""
    cdef size_t needed = column.size + more, capacity = column.capacity
    if needed > capacity or column.data == NULL:
        capacity = 2 * capacity if capacity else column.expected
        capacity = capacity if capacity > needed else needed
        capacity = capacity if capacity > 4096 else 4096
        if resize(<void**>&column.data, capacity):
            return NULL
        column.capacity = capacity
    return column.data + column.size


cdef inline void add_null(Column* column, Py_ssize_t row) noexcept nogil:
    column.valid[row >> 3] &= <uint8_t>~(1 << (row & 7))
    column.nulls += 1
    if column.width:
        memset(column.data + row * column.width, 0, column.width)
    elif column.wire != BOOL:
        column.offsets[row + 1] = <int32_t>column.size


cdef inline int add_bytes(
    Column* column, Py_ssize_t row, const uint8_t* raw, size_t size
) noexcept nogil:
    cdef uint8_t* to = room(column, size)
    if to == NULL:
        return NO_MEMORY
    memcpy(to, raw, size)
    column.size += size
    column.offsets[row + 1] = <int32_t>column.size
    return DONE


cdef inline int add_uuid(Column* column, Py_ssize_t row, const uint8_t* raw) noexcept nogil:
    cdef const char* digits = b"0123456789abcdef"
    cdef uint8_t* to = room(column, 36)
    cdef int i
    if to == NULL:
        return NO_MEMORY
    for i in range(16):
        if i == 4 or i == 6 or i == 8 or i == 10:
            to[0] = c"-"
            to += 1
        to[0] = digits[raw[i] >> 4]
        to[1] = digits[raw[i] & 15]
        to += 2
    column.size += 36
    column.offsets[row + 1] = <int32_t>column.size
    return DONE


cdef inline int check_numeric(const uint8_t* raw, size_t size) noexcept nogil:
    cdef int count, i
    cdef uint16_t sign
    if size < NUMERIC_HEADER:
        return BAD
    count = <int16_t>be16(raw)
    sign = be16(raw + 4)
    if count < 0 or <int16_t>be16(raw + 6) < 0 or size != NUMERIC_HEADER + 2 * <size_t>count:
        return BAD
    for i in range(count):
        if be16(raw + NUMERIC_HEADER + 2 * i) >= 10000:
            return BAD
    if sign == 0 or sign == NEGATIVE:
        return DONE
    return ODD if sign == NAN_SIGN or sign == INFINITE or sign == NEGATIVE_INFINITE else BAD


cdef inline int add_decimal(
    Column* column, Py_ssize_t row, const uint8_t* raw, size_t size, const Powers* powers
) noexcept nogil:
    cdef int outcome = check_numeric(raw, size)
    cdef int count, shift, i
    cdef uint32_t last, lost
    cdef u128 value = 0
    if outcome:
        return outcome
    count = <int16_t>be16(raw)
    shift = 4 * (<int16_t>be16(raw + 2) - count + 1) + column.scale  # of the last digit
    raw += NUMERIC_HEADER
    for i in range(count - 1):
        if value > powers.room[4]:
            return ODD
        value = value * 10000 + be16(raw + 2 * i)
    if count:
        last = be16(raw + 2 * (count - 1))
        if shift <= -4 or (shift > DECIMAL_DIGITS and (value or last)):
            return ODD
        if shift < 0:
            lost = <uint32_t>powers.ten[-shift]
            if last % lost or value > powers.room[4 + shift]:
                return ODD
            value = value * powers.ten[4 + shift] + last // lost
        else:
            if value > powers.room[4]:
                return ODD
            value = value * 10000 + last
            if value > powers.room[shift]:
                return ODD
            value *= powers.ten[shift]
    if value >= powers.ten[column.precision]:
        return ODD
    if be16(raw - 4) == NEGATIVE:
        value = ~value + 1
    memcpy(column.data + row * 16, &value, 16)
    return DONE


cdef inline void four(uint8_t* to, uint32_t digit) noexcept nogil:
    to[0] = <uint8_t>(c"0" + digit // 1000)
    to[1] = <uint8_t>(c"0" + digit // 100 % 10)
    to[2] = <uint8_t>(c"0" + digit // 10 % 10)
    to[3] = <uint8_t>(c"0" + digit % 10)


cdef inline uint32_t digit_at(const uint8_t* raw, int count, int index) noexcept nogil:
    return be16(raw + NUMERIC_HEADER + 2 * index) if 0 <= index < count else 0


cdef inline int add_numeric_text(
    Column* column, Py_ssize_t row, const uint8_t* raw, size_t size
) noexcept nogil:
    cdef int outcome = check_numeric(raw, size)
    cdef int count, weight, decimals, at, skip
    cdef uint16_t sign
    cdef uint8_t digits[4]
    cdef uint8_t* begin
    cdef uint8_t* to
    if outcome == BAD:
        return BAD
    sign = be16(raw + 4)
    if outcome == ODD:
        if sign == NAN_SIGN:
            return add_bytes(column, row, b"NaN", 3)
        if sign == INFINITE:
            return add_bytes(column, row, b"Infinity", 8)
        return add_bytes(column, row, b"-Infinity", 9)
    count = <int16_t>be16(raw)
    weight = <int16_t>be16(raw + 2) if count else 0
    decimals = <int16_t>be16(raw + 6)
    begin = to = room(column, 12 + 4 * <size_t>(weight if weight > 0 else 0) + decimals)
    if to == NULL:
        return NO_MEMORY
    if sign == NEGATIVE:
        to[0] = c"-"
        to += 1
    four(digits, digit_at(raw, count, 0) if weight >= 0 else 0)
    skip = 0
    while skip < 3 and digits[skip] == c"0":
        skip += 1
    memcpy(to, digits + skip, 4 - skip)
    to += 4 - skip
    for at in range(1, weight + 1):
        four(to, digit_at(raw, count, at))
        to += 4
    if decimals:
        to[0] = c"."
        to += 1
        for at in range((decimals + 3) // 4):
            four(digits, digit_at(raw, count, weight + 1 + at))
            skip = decimals - 4 * at if decimals - 4 * at < 4 else 4
            memcpy(to, digits, skip)
            to += skip
    column.size += to - begin
    column.offsets[row + 1] = <int32_t>column.size
    return DONE


cdef inline int add_date(Column* column, Py_ssize_t row, const uint8_t* raw) noexcept nogil:
    cdef int32_t days = <int32_t>be32(raw)
    if days == INT32_MIN or days == INT32_MAX:
        return ODD
    if days > INT32_MAX - EPOCH_DAYS:
        return BAD
    (<int32_t*>column.data)[row] = days + EPOCH_DAYS
    return DONE


cdef inline int add_timestamp(Column* column, Py_ssize_t row, const uint8_t* raw) noexcept nogil:
    cdef int64_t epoch = 946684800000000  # 2000-01-01 in microseconds since 1970-01-01
    cdef int64_t moment = <int64_t>be64(raw)
    if moment == INT64_MIN or moment > INT64_MAX - epoch:
        return ODD
    (<int64_t*>column.data)[row] = moment + epoch
    return DONE


cdef inline void add_float(Column* column, Py_ssize_t row, const uint8_t* raw) noexcept nogil:
    cdef uint32_t bits = be32(raw)
    cdef float value
    memcpy(&value, &bits, 4)
    (<float*>column.data)[row] = value if value == value else <float>NAN


cdef inline void add_double(Column* column, Py_ssize_t row, const uint8_t* raw) noexcept nogil:
    cdef uint64_t bits = be64(raw)
    cdef double value
    memcpy(&value, &bits, 8)
    (<double*>column.data)[row] = value if value == value else NAN


cdef inline int add_value(
    Column* column, Py_ssize_t row, const uint8_t* raw, size_t size, const Powers* powers
) noexcept nogil:
    cdef Wire wire = column.wire
    if wire == TEXT or wire == BYTES:
        return add_bytes(column, row, raw, size)
    if wire == DECIMAL:
        return add_decimal(column, row, raw, size, powers)
    if wire == NUMERIC:
        return add_numeric_text(column, row, raw, size)
    if wire == JSONB:
        return add_bytes(column, row, raw + 1, size - 1) if size and raw[0] == 1 else BAD
    if wire == UUID:
        return add_uuid(column, row, raw) if size == 16 else BAD
    if wire == BOOL:
        if size != 1:
            return BAD
        column.data[row >> 3] |= <uint8_t>((raw[0] != 0) << (row & 7))
        return DONE
    if size != <size_t>column.width:
        return BAD
    if wire == INT4:
        (<uint32_t*>column.data)[row] = be32(raw)
    elif wire == INT8:
        (<uint64_t*>column.data)[row] = be64(raw)
    elif wire == TIMESTAMP:
        return add_timestamp(column, row, raw)
    elif wire == DATE:
        return add_date(column, row, raw)
    elif wire == FLOAT8:
        add_double(column, row, raw)
    elif wire == FLOAT4:
        add_float(column, row, raw)
    else:
        (<uint16_t*>column.data)[row] = be16(raw)
    return DONE
