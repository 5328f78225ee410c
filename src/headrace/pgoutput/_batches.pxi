# Rows of one relation while they are added, and who owns their memory: a part of _kernel.pyx.

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
