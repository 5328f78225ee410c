"""Snapshots that end half-way: what they had staged goes, what is in the log stays."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, cast

import pyarrow as pa
import pytest

from headrace.engine.capture import Capture
from headrace.engine.copying import Copier, CopyLimits
from headrace.errors import CopyStoppedError, SourceUnavailableError, TableRewrittenError
from headrace.log import LogReader, LogWriter, Storage, open_storage
from headrace.model import Column, Lsn, SnapshotChunk, TableId, TableSchema

FIRST, SECOND = TableId("public", "first"), TableId("public", "second")
CHUNKS = 3


@dataclass
class Tables:
    """A source of tables with three chunks each; reading the last one of SECOND fails."""

    error: Exception
    lsn: ClassVar[Lsn] = Lsn(10)
    taken_at: ClassVar[datetime] = datetime(2026, 1, 2, tzinfo=UTC)

    @contextmanager
    def snapshot(
        self, tables: Mapping[TableId, Any], connections: int, place: object
    ) -> Iterator[Tables]:
        yield self

    def schema(self, table: TableId) -> TableSchema:
        return TableSchema(table, 1, (Column("id", pa.int64(), "bigint", 1),), ("id",))

    def identity(self, table: TableId) -> str:
        return str(table)

    def chunks(self, table: TableId) -> list[SnapshotChunk]:
        return [SnapshotChunk(table, n, "", 1) for n in range(CHUNKS)]

    def read(self, chunk: SnapshotChunk) -> Generator[pa.RecordBatch]:
        if chunk.table == SECOND and chunk.number == CHUNKS - 1:
            raise self.error
        yield pa.RecordBatch.from_pydict({"id": [chunk.number]})


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path)


def copy(storage: Storage, error: Exception, connections: int = 2) -> Copier:
    """Copy both tables; raises what the copier raises, with the log closed but not swept."""
    source = cast(Any, Tables(error))
    with LogWriter.open(storage, "shop") as log:
        capture = Capture(source, log)
        copier = Copier(source, log, capture, threading.Event(), CopyLimits(connections))
        try:
            copier.copy([FIRST, SECOND])
        finally:
            capture.close()
    return copier


def named(storage: Storage) -> set[str]:
    reader = LogReader.open(storage, "shop")
    return {path for manifest in reader.manifests(0) for path in manifest.paths}


def staged(storage: Storage) -> set[str]:
    return {entry.path for entry in storage.list("log") if entry.path.endswith(".parquet")}


@pytest.mark.parametrize("connections", [1, 2])
def test_a_copy_that_loses_its_connection_leaves_whole_tables_and_nothing_else(
    storage: Storage, connections: int
) -> None:
    with pytest.raises(SourceUnavailableError):
        copy(storage, SourceUnavailableError("the connection is lost"), connections)
    assert staged(storage) == named(storage)
    assert len(named(storage)) in (0, CHUNKS)  # the first table may have been complete by then


def test_the_chunks_of_a_table_that_was_rewritten_meanwhile_are_discarded(
    storage: Storage,
) -> None:
    copier = copy(storage, TableRewrittenError("truncated"))
    assert copier.progress[FIRST].done
    assert not copier.progress[SECOND].ended
    assert staged(storage) == named(storage)
    assert len(named(storage)) == CHUNKS


class StopsAtFirstWait(threading.Event):
    """Notes for how long it is waited for, and is set by that."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        self.set()
        return True


def test_a_copy_waits_for_its_rate_and_ends_in_that_wait_when_the_run_stops(
    storage: Storage,
) -> None:
    stop = StopsAtFirstWait()
    source = cast(Any, Tables(SourceUnavailableError("never come to")))
    with LogWriter.open(storage, "shop") as log:
        capture = Capture(source, log)
        copier = Copier(source, log, capture, stop, CopyLimits(1, rows_per_second=0.01))
        with pytest.raises(CopyStoppedError):
            copier.copy([FIRST])
        capture.close()
    assert stop.waits[0] == pytest.approx(100, abs=1)  # one row at a hundredth of a row a second
    assert not copier.progress[FIRST].done
