"""Snapshots: tables as of one LSN, from an exported snapshot, read through ADBC.

Creating a logical slot with an exported snapshot gives a consistent point X and a snapshot that
sees exactly the transactions committed up to X (Postgres documentation, "CREATE_REPLICATION_SLOT").
The slot is temporary and goes as soon as every reading connection has imported the snapshot, so
that it holds no WAL during the copy.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as adbc
import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.catalog import TypeCatalog
from headrace.connectors.postgres.config import LIFT_LIMITS
from headrace.connectors.postgres.decoding import BoundSchema
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.connectors.postgres.schemas import SchemaRegistry
from headrace.connectors.postgres.slots import create_slot
from headrace.errors import SourceError, SourceUnavailableError, TableRewrittenError
from headrace.model import Lsn, SnapshotChunk, TableId, TableSchema

Connector = Callable[[], AbstractContextManager[psycopg.Connection[Any]]]

# 8 MiB of COPY data per Arrow batch: large enough for the fixed costs, small enough for memory.
BATCH_BYTES = 8 << 20

# A table is cut into about this many chunks, so that all connections end at about the same time;
# each from 32 MiB, below which fixed costs show, to 1 GiB, so that a file stays easy to handle.
CHUNKS = 8
MIN_CHUNK_PAGES = (32 << 20) // 8192
MAX_CHUNK_PAGES = (1 << 30) // 8192

# Range scans on ctid came with 14; before, a table is one chunk.
CTID_RANGES_SINCE = 140000

RELATION_SIZE = """
SELECT c.oid::bigint, c.relkind,
       (pg_relation_size(c.oid) / current_setting('block_size')::int)::bigint AS pages,
       greatest(c.reltuples, 0)::bigint AS rows
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s
"""

# TRUNCATE and ALTER TABLEs that rewrite a table are not MVCC-safe: a snapshot taken before finds it
# empty (Postgres documentation, "Caveats" of concurrency control). They give it a new file, which
# pg_relation_filenode tells as of now and pg_class as of the snapshot. Partitions count too.
REWRITTEN = """
SELECT c.oid::regclass::text FROM pg_catalog.pg_class c
 WHERE (c.oid = {oid} OR c.oid IN (SELECT relid FROM pg_catalog.pg_partition_tree({oid})))
   AND nullif(c.relfilenode, 0) IS DISTINCT FROM pg_catalog.pg_relation_filenode(c.oid)
"""

ROW_FILTER = """
SELECT rowfilter FROM pg_publication_tables
 WHERE pubname = %s AND schemaname = %s AND tablename = %s
"""
ROW_FILTERS_SINCE = 150000

# SQLSTATE 22021 and 22P05: text that is not what the database's encoding says, or has no place in
# UTF-8. What goes wrong between two batches ADBC tells by its text alone.
UNREADABLE_TEXT = "byte sequence"


@dataclass(frozen=True)
class _Plan:
    """How one table is copied."""

    bound: BoundSchema
    relation: str  # as FROM and LOCK name it
    oid: int
    select: str
    chunks: tuple[SnapshotChunk, ...]


class PostgresSnapshot:
    """See `engine.protocols.Snapshot`; at most as many chunks are read at once as connections."""

    def __init__(
        self,
        lsn: Lsn,
        taken_at: datetime,
        plans: dict[TableId, _Plan],
        readers: queue.SimpleQueue[adbc.Connection],
    ) -> None:
        self.lsn = lsn
        self.taken_at = taken_at
        self._plans = plans
        self._readers = readers

    def schema(self, table: TableId) -> TableSchema:
        return self._plans[table].bound.schema

    def chunks(self, table: TableId) -> Sequence[SnapshotChunk]:
        return self._plans[table].chunks

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


def _hold(cursor: adbc.Cursor, table: TableId, plan: _Plan) -> None:
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


def _let_go(reader: adbc.Connection) -> None:
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


@contextmanager
def open_snapshot(
    conninfo: str,
    connect: Connector,
    connect_replication: Connector,
    registry: SchemaRegistry,
    publication: str,
    tables: Sequence[TableId],
    connections: int,
    stop: threading.Event,
) -> Iterator[PostgresSnapshot]:
    """Export a snapshot, import it into `connections` readers, and let the slot go.

    Raises:
        CopyStoppedError: `stop` was set while transactions had to be waited for.
    """
    with ThreadPoolExecutor(connections, "headrace-connect") as pool, ExitStack() as stack:
        opening = [pool.submit(_connect_reader, conninfo) for _ in range(connections)]
        for reader in opening:
            stack.callback(_close_reader, reader)
        readers: queue.SimpleQueue[adbc.Connection] = queue.SimpleQueue()
        with connect_replication() as exporter, connect() as session:
            lsn, name = _export(exporter, session, stop)
            taken_at = _clock(session)
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            session.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(name))
            types = TypeCatalog.read(session)
            plans = {t: _plan(session, types, registry, publication, t) for t in tables}
            for reader in opening:
                readers.put(_import(reader.result(), name))
        yield PostgresSnapshot(lsn, taken_at, plans, readers)


def _export(
    exporter: psycopg.Connection[Any], session: psycopg.Connection[Any], stop: threading.Event
) -> tuple[Lsn, str]:
    slot = f"headrace_snapshot_{secrets.token_hex(6)}"
    command = f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT"
    result = create_slot(exporter, session, command, stop)
    lsn, name = (result.get_value(0, column) or b"" for column in (1, 2))
    return Lsn.parse(lsn.decode()), name.decode()


def _clock(session: psycopg.Connection[Any]) -> datetime:
    found = session.execute("SELECT clock_timestamp()").fetchone()
    assert found is not None
    return cast("datetime", found[0])


def _connect_reader(conninfo: str) -> adbc.Connection:
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


def _close_reader(opening: Future[adbc.Connection]) -> None:
    if opening.exception() is None:
        opening.result().close()


def _import(reader: adbc.Connection, snapshot: str) -> adbc.Connection:
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


def _plan(
    session: psycopg.Connection[Any],
    types: TypeCatalog,
    registry: SchemaRegistry,
    publication: str,
    table: TableId,
) -> _Plan:
    bound = registry.of_table(session, types, table)
    found = session.execute(RELATION_SIZE, (table.schema, table.name)).fetchone()
    if found is None:
        raise SourceError(f"{table} does not exist", hint="headrace plan shows what is selected")
    oid, kind, pages, rows = found
    columns = [
        mapping.select(quoted(name))
        for name, mapping in zip(bound.schema.names, bound.mappings, strict=True)
    ]
    # A partitioned root's rows live in its partitions; any other table's children are their own.
    name = qualified(table)
    relation = name if kind == "p" else f"ONLY {name}"
    select = f"SELECT {', '.join(columns)} FROM {relation}"  # noqa: S608  # quoted above
    whole = kind == "p" or session.info.server_version < CTID_RANGES_SINCE
    ranges = ["true"] if whole else _page_ranges(pages)
    keep = _row_filter(session, publication, table)
    chunks = tuple(
        SnapshotChunk(table, number, f"({where}) AND ({keep})", rows // len(ranges))
        for number, where in enumerate(ranges)
    )
    return _Plan(bound, relation, oid, select, chunks)


def _page_ranges(pages: int) -> list[str]:
    """Ranges that tile the whole ctid space; the last one is open for pages added meanwhile."""
    size = min(max(-(-pages // CHUNKS), MIN_CHUNK_PAGES), MAX_CHUNK_PAGES)
    starts = list(range(0, max(pages, 1), size))
    bounds = [f"ctid >= '({start},0)'" for start in starts]
    tops = [f"ctid < '({start},0)'" for start in starts[1:]]
    return [" AND ".join(pair) for pair in zip(bounds, [*tops, "true"], strict=True)]


def _row_filter(session: psycopg.Connection[Any], publication: str, table: TableId) -> str:
    if session.info.server_version < ROW_FILTERS_SINCE:
        return "true"
    found = session.execute(ROW_FILTER, (publication, table.schema, table.name)).fetchone()
    return str(found[0]) if found and found[0] else "true"
