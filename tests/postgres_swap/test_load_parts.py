"""Loading by parts: every row once, in bounded memory, by as many connections as are wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pyarrow as pa
import pytest

from headrace.connectors.postgres import load
from headrace.connectors.postgres.load import BATCH_BYTES, BATCH_ROWS
from headrace.connectors.postgres.target_session import Connection
from headrace.model import RowPart
from headrace.testing.database import Database


def part(*batches: pa.RecordBatch) -> RowPart:
    return RowPart(lambda: iter(batches))


def numbers(first: int, count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(first, first + count), pa.int64())})


def insert(connection: Connection, rows: pa.Table) -> None:
    connection.execute("insert into loaded select unnest(%s)", [rows.column("n").to_pylist()])


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("parts", [0, 1, 2, 7])
def test_every_row_is_written_once(database: Database, parts: int, connections: int) -> None:
    database.execute("create table loaded (n bigint)")
    given = [part(*(numbers(p * 100 + b * 10, 10) for b in range(10))) for p in range(parts)]
    assert load.copy_parts(database.connect, given, insert, connections) == parts * 100
    rows = database.execute("select count(*), count(distinct n) from loaded")
    assert rows == [(parts * 100, parts * 100)]


def test_one_part_keeps_every_connection_busy(database: Database) -> None:
    """Two writers wait for each other: they get there only if both have rows of the one part."""
    meeting = threading.Barrier(2, timeout=60)
    batches = part(*(numbers(0, BATCH_ROWS) for _ in range(2)))
    total = load.copy_parts(database.connect, [batches], lambda *_: meeting.wait() and None, 2)
    assert total == 2 * BATCH_ROWS


def test_batches_are_gathered_and_cut_to_a_bounded_size(database: Database) -> None:
    """DESIGN §13, invariant 10."""
    wide = pa.record_batch({"n": pa.array(["x" * 100_000] * 500)})
    small = [numbers(n, 1).cast(pa.schema([("n", pa.string())])) for n in range(1000)]
    sizes: list[tuple[int, int]] = []
    given = [part(wide), part(*small)]
    load.copy_parts(
        database.connect, given, lambda _, rows: sizes.append((rows.num_rows, rows.nbytes)), 1
    )
    assert sum(rows for rows, _ in sizes) == 1500
    assert max(size for _, size in sizes) <= 2 * BATCH_BYTES
    assert (1000, sizes[-1][1]) == sizes[-1]


def test_no_more_parts_are_open_than_there_are_connections(database: Database) -> None:
    """DESIGN §13, invariant 10: an open part holds a file's buffers."""
    opened = 0
    most = 0
    lock = threading.Lock()

    def read() -> Iterator[pa.RecordBatch]:
        nonlocal opened, most
        with lock:
            opened += 1
            most = max(most, opened)
        for n in range(3):
            yield numbers(n * BATCH_ROWS, BATCH_ROWS)
        with lock:
            opened -= 1

    load.copy_parts(database.connect, [RowPart(read)] * 8, lambda *_: None, 2)
    assert most <= 2


def test_the_first_error_ends_all_and_is_raised(database: Database) -> None:
    taken = 0

    def fail(connection: Connection, rows: pa.Table) -> None:
        nonlocal taken
        taken += 1
        connection.execute("select 1 / 0")

    def endless() -> Iterator[pa.RecordBatch]:
        while True:
            yield numbers(0, BATCH_ROWS)

    with pytest.raises(psycopg.errors.DivisionByZero):
        load.copy_parts(database.connect, [RowPart(endless)], fail, 2)
    assert taken <= 4


def test_a_part_that_cannot_be_read_ends_all_and_is_raised(database: Database) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield numbers(0, 1)
        raise OSError("the file is gone")

    endless = RowPart(lambda: iter(lambda: numbers(0, BATCH_ROWS), None))
    with pytest.raises(OSError, match="the file is gone"):
        load.copy_parts(database.connect, [endless, RowPart(broken)], lambda *_: None, 2)
