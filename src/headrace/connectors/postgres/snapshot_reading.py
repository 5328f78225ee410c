"""The reading part of snapshots: sessions that see an exported snapshot, and what they read."""

from __future__ import annotations

import queue
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa

from headrace.connectors.postgres.config import LIFT_LIMITS
from headrace.connectors.postgres.decoding import BoundSchema
from headrace.errors import SourceError, SourceUnavailableError, TableRewrittenError
from headrace.model import Lsn, SnapshotChunk, TableId, TableSchema

Reader: TypeAlias = adbc.Connection

# 8 MiB of COPY data per Arrow batch: large enough for the fixed costs, small enough for memory.
BATCH_BYTES = 8 << 20

# TRUNCATE and ALTER TABLEs that rewrite a table are not MVCC-safe: a snapshot taken before finds it
# empty (Postgres documentation, "Caveats" of concurrency control). They give it a new file, which
# pg_relation_filenode tells as of now and pg_class as of the snapshot. Partitions count too.
REWRITTEN = """
SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
 WHERE (c.oid = {oid} OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree({oid})))
   AND nullif(c.relfilenode, 0) IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid)
"""

# SQLSTATE 22021 and 22P05: text that is not what the database's encoding says, or has no place in
# UTF-8. What goes wrong between two batches ADBC tells by its text alone.
UNREADABLE_TEXT = "byte sequence"


@dataclass(frozen=True)
class Plan:
    """How one table is copied."""

    bound: BoundSchema
    relation: str  # as FROM and LOCK name it
    oid: int
    select: str
    chunks: tuple[SnapshotChunk, ...]
    identity: str


class PostgresSnapshot:
    """See `engine.protocols.Snapshot`; at most as many chunks are read at once as connections."""

    def __init__(
        self,
        lsn: Lsn,
        taken_at: datetime,
        plans: dict[TableId, Plan],
        readers: queue.SimpleQueue[Reader],
    ) -> None:
        self.lsn = lsn
        self.taken_at = taken_at
        self._plans = plans
        self._readers = readers

    def schema(self, table: TableId) -> TableSchema:
        return self._plans[table].bound.schema

    def chunks(self, table: TableId) -> Sequence[SnapshotChunk]:
        return self._plans[table].chunks

    def identity(self, table: TableId) -> str:
        return self._plans[table].identity

    def read(self, chunk: SnapshotChunk) -> Generator[pa.RecordBatch]:
        """The rows of a chunk, in the very types and values that the stream gives.

        Raises:
            TableRewrittenError: the snapshot no longer sees the table's rows.
            SourceUnavailableError: the connection was lost.
            SourceError: the role may not read the table.
        """
        plan = self._plans[chunk.table]
        reader = self._readers.get()
        try:
            with reader.cursor() as cursor:
                cursor.adbc_statement.set_options(
                    **{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}
                )
                _hold(cursor, chunk.table, plan)
                cursor.execute(f"{plan.select} WHERE {chunk.where}")
                for batch in cursor.fetch_record_batch():
                    yield _convert(batch, plan.bound)
        except (adbc_driver_manager.Error, OSError) as error:  # OSError: lost between two batches
            raise _read_error(chunk.table, error) from error
        finally:
            _let_go(reader)
            self._readers.put(reader)


def _hold(cursor: adbc.Cursor, table: TableId, plan: Plan) -> None:
    """Keep a table from being truncated or rewritten until it is read; refuse one that was.

    A reader holds one table's lock at a time, so that nobody who wants several can come into a
    deadlock with it.
    """
    cursor.execute("SAVEPOINT chunk")
    cursor.execute(f"LOCK TABLE {plan.relation} IN ACCESS SHARE MODE")
    cursor.execute(REWRITTEN.format(oid=plan.oid))
    found = cursor.fetchone()
    if found is not None:
        raise TableRewrittenError(
            f"{table}: {found[0]} was truncated or rewritten after the snapshot was taken",
            hint="Headrace copies the table anew",
        )


def _let_go(reader: Reader) -> None:
    """Release the lock, and forget an error; where that fails, the reader's next chunk does too."""
    with suppress(adbc_driver_manager.Error), reader.cursor() as cursor:
        cursor.execute("ROLLBACK TO SAVEPOINT chunk")


def _convert(batch: pa.RecordBatch, bound: BoundSchema) -> pa.RecordBatch:
    arrays = [bound.fetched(index, column) for index, column in enumerate(batch.columns)]
    return pa.RecordBatch.from_arrays(arrays, schema=bound.schema.arrow())


def _read_error(table: TableId, error: adbc_driver_manager.Error | OSError) -> SourceError:
    if isinstance(error, adbc_driver_manager.Error) and error.sqlstate == "42501":
        return SourceError(
            f"{table}: the role may not read it", hint=f"GRANT SELECT ON {table} TO <role>;"
        )
    if UNREADABLE_TEXT in str(error):
        return SourceError(  # no second attempt reads it better
            f"{table}: a value cannot be read: {error}",
            hint=f"mend it at the source, then: headrace resync {table}",
        )
    return SourceUnavailableError(
        f"{table}: copying it failed: {error}", hint="Headrace copies the table anew"
    )


def connect_reader(conninfo: str) -> Reader:
    try:
        with ExitStack() as stack:
            reader = stack.enter_context(adbc.connect(conninfo, autocommit=True))
            with reader.cursor() as cursor:
                cursor.execute(LIFT_LIMITS)
            stack.pop_all()
            return reader
    except adbc_driver_manager.Error as error:
        raise SourceUnavailableError(
            f"a connection for the snapshot was refused: {error}",
            hint="check max_connections and pg_hba.conf; Headrace tries again",
        ) from error


def close_reader(opening: Future[Reader]) -> None:
    if opening.exception() is None:
        opening.result().close()


def import_snapshot(reader: Reader, snapshot: str) -> Reader:
    """Begin a transaction that sees what the exported snapshot does."""
    literal = snapshot.replace("'", "''")
    try:
        with reader.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute(f"SET TRANSACTION SNAPSHOT '{literal}'")
    except adbc_driver_manager.Error as error:
        raise SourceUnavailableError(
            f"the exported snapshot could not be imported: {error}",
            hint="Headrace takes a new snapshot",
        ) from error
    return reader
