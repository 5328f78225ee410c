"""A target table read back in its source's types, together with its checkpoint, as of one moment.

For comparing both ends: `engine.diff`, and `headrace verify`. Rows come by ADBC's binary COPY, in a
transaction that sees what the checkpoint was read in; see `comparable` for what is exact. The lock
that every reader takes keeps the table from being swapped or truncated under it (both would show an
older snapshot an empty table); it is taken before the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as adbc
import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres import records
from headrace.connectors.postgres.catalog import TypeCatalog, read_table_schema
from headrace.connectors.postgres.comparable import Comparable, IncomparableError
from headrace.connectors.postgres.config import LIFT_LIMITS, address, conninfo
from headrace.connectors.postgres.target_session import connect_target, target_errors
from headrace.errors import (
    DestinationError,
    DestinationUnavailableError,
    DivergedError,
    TableNotFoundError,
    UnsuitableTableError,
)
from headrace.model import DELETED_AT, Checkpoint, TableId, TableSchema

BATCH_BYTES: Final = 8 << 20  # of COPY data per batch, as a snapshot of a source has

_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


@dataclass(frozen=True)
class Reading:
    """`at` is where the table stands with just these rows; None if it never took anything."""

    at: Checkpoint | None
    rows: Iterator[pa.RecordBatch]


@contextmanager
def read_table(
    settings: PostgresConnection,
    schema: TableSchema,
    columns: Sequence[str],
    *,
    only_live: bool = False,
) -> Iterator[Reading]:
    """The rows of `schema.table` with these columns, in the types that `schema` gives them.

    `only_live` leaves out rows that are marked as deleted. The table cannot be swapped before the
    block is left.

    Raises:
        DestinationUnavailableError: the server cannot be reached, or the connection is lost.
        UnsuitableTableError: there is no such table, or it lacks a column.
        DivergedError: a value that the source's type cannot have.
        DestinationError: the role may not read the table.
    """
    with closing(connect_target(settings)) as session, closing(_connect(settings)) as reader:
        with target_errors(settings):
            at, snapshot = _begin(session, schema.table)
            asked = _columns(session, schema, columns)
            query = _query(session, schema.table, asked, only_live)
        yield Reading(at, _rows(settings, reader, snapshot, query, schema, asked))


def _begin(
    session: psycopg.Connection[tuple[Any, ...]], table: TableId
) -> tuple[Checkpoint | None, str]:
    """Lock the table, then see what there is; the snapshot is for the reading session too."""
    session.execute(_BEGIN)
    lock = sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE")
    try:
        session.execute(lock.format(sql.Identifier(table.schema, table.name)))
    except psycopg.errors.UndefinedTable as error:
        raise _lacking(table, f"{table} is not there") from error
    cursor = session.cursor()
    record = records.read(cursor, table) if records.are_there(cursor) else None
    exported = cursor.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone()
    assert exported is not None  # a function call has a row
    return (None if record is None else record.at), str(exported[0])


def _columns(
    session: psycopg.Connection[tuple[Any, ...]], schema: TableSchema, columns: Sequence[str]
) -> dict[str, Comparable]:
    try:
        target = read_table_schema(session, TypeCatalog.read(session), schema.table)
    except TableNotFoundError as error:
        raise _lacking(schema.table, f"{schema.table} is no table") from error
    mappings = dict(zip(target.schema.names, target.mappings, strict=True))
    missing = [name for name in columns if name not in mappings]
    if missing:
        raise _lacking(schema.table, f"{schema.table} lacks the columns {', '.join(missing)}")
    arrow = schema.arrow()
    return {name: Comparable.of(mappings[name], arrow.field(name).type) for name in columns}


def _query(
    session: psycopg.Connection[tuple[Any, ...]],
    table: TableId,
    columns: dict[str, Comparable],
    only_live: bool,
) -> str:
    asked = (
        c.mapping.select(sql.Identifier(name).as_string(session)) for name, c in columns.items()
    )
    relation = sql.Identifier(table.schema, table.name).as_string(session)
    live = f' WHERE "{DELETED_AT}" IS NULL' if only_live else ""
    return f"SELECT {', '.join(asked)} FROM {relation}{live}"  # noqa: S608  # quoted above


def _rows(
    settings: PostgresConnection,
    reader: adbc.Connection,
    snapshot: str,
    query: str,
    schema: TableSchema,
    columns: dict[str, Comparable],
) -> Iterator[pa.RecordBatch]:
    try:
        with reader.cursor() as cursor:
            cursor.execute(_BEGIN)
            cursor.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
            size = {"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)}
            cursor.adbc_statement.set_options(**size)
            cursor.execute(query)
            for batch in cursor.fetch_record_batch():
                yield _comparable(batch, schema, columns)
    except (adbc_driver_manager.Error, OSError) as error:  # OSError: lost between two batches
        raise _read_error(settings, schema.table, error) from error


def _comparable(
    batch: pa.RecordBatch, schema: TableSchema, columns: dict[str, Comparable]
) -> pa.RecordBatch:
    arrays = [
        _read(schema.table, name, column, values)
        for (name, column), values in zip(columns.items(), batch.columns, strict=True)
    ]
    kept = pa.schema([schema.arrow().field(name) for name in columns])
    return pa.RecordBatch.from_arrays(arrays, schema=kept)


def _read(table: TableId, name: str, column: Comparable, values: pa.Array) -> pa.Array:
    try:
        return column.read(values)
    except IncomparableError as error:
        raise DivergedError(
            f"{table}: column {name!r} holds a value that the source's {column.wanted} cannot "
            f"have: somebody else writes to it ({error})",
            hint=f"headrace resync {table}",
            table=str(table),
            column=name,
        ) from error


def _connect(settings: PostgresConnection) -> adbc.Connection:
    try:
        reader = adbc.connect(conninfo(settings), autocommit=True)
    except adbc_driver_manager.Error as error:
        raise DestinationUnavailableError(
            f"a connection to read {address(settings)} back was refused: {error}",
            hint="check max_connections; Headrace tries again",
        ) from error
    with reader.cursor() as cursor:
        cursor.execute(LIFT_LIMITS)
    return reader


def _lacking(table: TableId, message: str) -> UnsuitableTableError:
    return UnsuitableTableError(message, hint=f"headrace resync {table}", table=str(table))


def _read_error(
    settings: PostgresConnection, table: TableId, error: adbc_driver_manager.Error | OSError
) -> DestinationError:
    if isinstance(error, adbc_driver_manager.Error) and error.sqlstate == "42501":
        return DestinationError(
            f"{table}: the role may not read it", hint=f"GRANT SELECT ON {table} TO <role>;"
        )
    return DestinationUnavailableError(
        f"{table} at {address(settings)}: reading it back failed: {error}",
        hint="Headrace tries again",
    )
