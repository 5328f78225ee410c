"""Loading a whole table: its parts over several connections at once, in bounded memory.

Nobody reads the table that is loaded, so that each batch is a transaction of its own: what is
refused in one does not undo the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Final

import pyarrow as pa

from headrace.connectors.postgres.target_session import Connection
from headrace.errors import DestinationUnavailableError
from headrace.failpoints import hit
from headrace.model import RowPart

BATCH_BYTES: Final = 8 << 20  # of Arrow; with four connections, and what each encodes, 64 MiB
BATCH_ROWS: Final = 1 << 17

Write = Callable[[Connection, pa.Table], None]
_Reader = Generator[pa.Table]


def copy_parts(
    connect: Callable[[], Connection], parts: Sequence[RowPart], write: Write, connections: int
) -> int:
    """Write all rows of `parts`; returns how many were read.

    `write(connection, rows)` is called in several threads, each with a connection of its own, in a
    transaction that is committed after it. The first error ends all of them and is raised; but one
    connection is enough, where the server has no more left.
    """
    source = _Batches(parts)
    with connect() as first, ThreadPoolExecutor(max(1, connections), "headrace-load") as pool:
        running = [pool.submit(_copy, first, source, write)]
        more = range(connections - 1)
        running += [pool.submit(_help, connect, source, write) for _ in more]
        try:
            done = wait(running, return_when=FIRST_EXCEPTION).done
        finally:
            source.close()
        for failed in (each for each in done if each.exception()):
            failed.result()
        return sum(each.result() for each in running)


def _help(connect: Callable[[], Connection], source: _Batches, write: Write) -> int:
    try:
        connection = connect()
    except DestinationUnavailableError:
        return 0
    with connection:
        return _copy(connection, source, write)


def _copy(connection: Connection, source: _Batches, write: Write) -> int:
    rows = 0
    for batch in source:
        with connection.transaction():
            write(connection, batch)
        hit("postgres.load")
        rows += batch.num_rows
    return rows


class _Batches:
    """The batches of all parts, taken by many threads.

    A thread takes the next batch of a part that no other is just reading, and rather of one that
    was begun: at most as many parts are open as there are threads, and threads that find no new
    part share the open ones.
    """

    def __init__(self, parts: Sequence[RowPart]) -> None:
        self._idle = [_sized(part) for part in reversed(parts)]
        self._reading = 0
        self._closed = False
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[pa.Table]:
        while (reader := self._take()) is not None:
            batch = None
            try:
                batch = next(reader, None)
            finally:
                self._give_back(None if batch is None else reader)
            if batch is not None:
                yield batch

    def close(self) -> None:
        """Let every thread find the end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self) -> _Reader | None:
        """A reader of which there may be more; None when there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle or not self._reading or self._closed)
            if self._closed or not self._idle:
                return None
            self._reading += 1
            return self._idle.pop()

    def _give_back(self, reader: _Reader | None) -> None:
        with self._changed:
            self._reading -= 1
            if reader is not None:
                self._idle.append(reader)
            self._changed.notify_all()


def _sized(part: RowPart) -> _Reader:
    """A part's rows in tables of bounded size: small batches gathered, large ones cut."""
    gathered: list[pa.RecordBatch] = []
    size = rows = 0
    for batch in part.read():
        for piece in _cut(batch):
            gathered.append(piece)
            size += piece.nbytes
            rows += piece.num_rows
            if size >= BATCH_BYTES or rows >= BATCH_ROWS:
                yield pa.Table.from_batches(gathered)
                gathered, size, rows = [], 0, 0
    if rows:
        yield pa.Table.from_batches(gathered)


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if not batch.num_rows:
        return
    per_row = max(1, batch.nbytes // batch.num_rows)
    step = max(1, min(BATCH_ROWS, BATCH_BYTES // per_row))
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step)
