"""A target table read back in its source's types, with what is known of it, as of one moment.

For comparing both ends: `engine.diff`, and `headrace verify`. Rows come by COPY in binary, in a
transaction that sees what the checkpoint was read in; see `comparable` for what is exact. The lock
that every reader takes keeps the table from being swapped or truncated under it (both would show an
older snapshot an empty table); it is taken before the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres import quarantine, records
from headrace.connectors.postgres.catalog import TypeCatalog, column_mappings
from headrace.connectors.postgres.comparable import Comparable, IncomparableError
from headrace.connectors.postgres.config import address
from headrace.connectors.postgres.copy_out import copy_out
from headrace.connectors.postgres.identifiers import qualified, quoted, relation
from headrace.connectors.postgres.parked import ParkedRow
from headrace.connectors.postgres.records import Record
from headrace.connectors.postgres.target_session import (
    Connection,
    Cursor,
    connect_target,
    only_row,
    target_errors,
)
from headrace.errors import (
    DestinationError,
    DestinationUnavailableError,
    DivergedError,
    UnsuitableTableError,
)
from headrace.model import DELETED_AT, Checkpoint, TableId, TableSchema
from headrace.pgcopy import CopiedColumn, CopiedRows, Kind, Wanted

_BEGIN: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ"

# Where a row stands: in which partition, and where there.
PART: Final = "part"  # int64, an oid
PLACE: Final = "place"  # string, a ctid
_PLACES: Final = {
    "tableoid::pg_catalog.int8": Wanted(Kind.INT8, pa.int64()),
    "ctid::pg_catalog.text": Wanted(Kind.TEXT, pa.string()),
}


@dataclass(frozen=True)
class Held:
    """Rows that the table holds. `rows` is None of a single one that holds a value which the type
    that was asked for cannot have; `places` has the columns PART and PLACE, if they were asked for.
    """

    rows: pa.RecordBatch | None
    places: pa.RecordBatch | None = None


class Reading:
    """A table as of one moment: `record` is what is known of it, `at` where it stands. Used by one
    thread, one reading of rows after another, each to its end.

    `cursor` sees the same moment; what is made there (temporary tables) goes with the reading.
    """

    def __init__(
        self,
        settings: PostgresConnection,
        table: TableId,
        cursor: Cursor,
        reader: Connection,
    ) -> None:
        self.cursor = cursor
        self._settings = settings
        self._table = table
        self._reader = reader
        with target_errors(settings):
            self._lock()
            self._recorded = records.are_there(cursor)
            self.record: Record | None = records.read(cursor, table) if self._recorded else None
            (snapshot,) = only_row(cursor.execute("SELECT pg_catalog.pg_export_snapshot()"))
            reader.execute(f"{_BEGIN} READ ONLY".encode())
            reader.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))

    @property
    def at(self) -> Checkpoint | None:
        """None if the table never took anything."""
        return None if self.record is None else self.record.at

    def rows(
        self, schema: TableSchema, columns: Sequence[str], *, only_live: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """The rows with these columns, in the types that `schema` gives them.

        `only_live` leaves out rows that are marked as deleted.

        Raises:
            UnsuitableTableError: the table lacks a column.
            DivergedError: a value that the source's type cannot have.
            DestinationUnavailableError: the connection is lost.
        """
        asked = self._columns(schema, columns)
        for batch in self._fetch(asked, only_live):
            yield _comparable(batch, schema, asked)

    def held(
        self,
        schema: TableSchema,
        columns: Sequence[str],
        *,
        only_live: bool = False,
        placed: bool = False,
    ) -> Iterator[Held]:
        """As `rows`, but with rows whose values `schema` cannot have, and where each row stands."""
        asked = self._columns(schema, columns)
        more = _PLACES if placed else {}
        for batch in self._fetch(asked, only_live, more):
            yield from _held(batch, schema, asked)

    def parked(self) -> list[ParkedRow]:
        """The table's rows in quarantine."""
        if not self._recorded:
            return []
        with self.errors():
            return quarantine.find(self.cursor, table=self._table)

    def errors(self) -> AbstractContextManager[None]:
        """What psycopg raises by `cursor` comes out as a DestinationError of ours."""
        return target_errors(self._settings)

    def _lock(self) -> None:
        """Lock the table, then see what there is."""
        self.cursor.execute(_BEGIN.encode())
        lock = sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(relation(self._table))
        try:
            self.cursor.execute(lock)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
            raise _lacking(self._table, f"{self._table} is not there") from error

    def _columns(self, schema: TableSchema, columns: Sequence[str]) -> dict[str, Comparable]:
        session, table = self.cursor.connection, self._table
        with self.errors():
            mappings = column_mappings(session, TypeCatalog.read(session), table)
        missing = [name for name in columns if name not in mappings]
        if missing:
            raise _lacking(table, f"{table} lacks the columns {', '.join(missing)}")
        arrow = schema.arrow()
        return {name: Comparable.of(mappings[name], arrow.field(name).type) for name in columns}

    def _query(self, columns: dict[str, Comparable], only_live: bool, more: Iterable[str]) -> str:
        asked = [c.mapping.select(quoted(name)) for name, c in columns.items()]
        live = f" WHERE {quoted(DELETED_AT)} IS NULL" if only_live else ""
        source = f"{qualified(self._table)}{live}"
        return f"SELECT {', '.join([*asked, *more])} FROM {source}"  # noqa: S608  # quoted

    def _fetch(
        self,
        columns: dict[str, Comparable],
        only_live: bool,
        more: Mapping[str, Wanted] = MappingProxyType({}),
    ) -> Iterator[CopiedRows]:
        wanted = [column.mapping.wanted for column in columns.values()]
        query = self._query(columns, only_live, more)
        try:
            yield from copy_out(self._reader, query, [*wanted, *more.values()])
        except psycopg.Error as error:
            raise _read_error(self._settings, self._table, error) from error


@contextmanager
def read_table(settings: PostgresConnection, table: TableId) -> Iterator[Reading]:
    """Read a table as of this moment; it cannot be swapped before the block is left.

    Raises:
        DestinationUnavailableError: the server cannot be reached, or the connection is lost.
        UnsuitableTableError: there is no such table.
        DestinationError: the role may not read the table.
    """
    with closing(connect_target(settings)) as session, closing(connect_target(settings)) as reader:
        yield Reading(settings, table, session.cursor(), reader)


def _held(batch: CopiedRows, schema: TableSchema, columns: dict[str, Comparable]) -> Iterator[Held]:
    """A batch as it can be compared; rows that cannot be are searched for by halves."""
    try:
        yield Held(_comparable(batch, schema, columns), _places(batch, len(columns)))
    except DivergedError:
        if batch.rows == 1:
            yield Held(None, _places(batch, len(columns)))
            return
        half = batch.rows // 2
        yield from _held(batch.slice(0, half), schema, columns)
        yield from _held(batch.slice(half, batch.rows - half), schema, columns)


def _places(batch: CopiedRows, columns: int) -> pa.RecordBatch | None:
    """What was asked for beside the table's own columns."""
    if len(batch.columns) == columns:
        return None
    more = [column.values for column in batch.columns[columns:]]
    return pa.RecordBatch.from_arrays(more, names=[PART, PLACE])


def _comparable(
    batch: CopiedRows, schema: TableSchema, columns: dict[str, Comparable]
) -> pa.RecordBatch:
    arrays = [
        _read(schema.table, name, column, values)
        for (name, column), values in zip(columns.items(), batch.columns, strict=False)
    ]
    kept = pa.schema([schema.arrow().field(name) for name in columns])
    return pa.RecordBatch.from_arrays(arrays, schema=kept)


def _read(table: TableId, name: str, column: Comparable, values: CopiedColumn) -> pa.Array:
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


def _lacking(table: TableId, message: str) -> UnsuitableTableError:
    return UnsuitableTableError(message, hint=f"headrace resync {table}", table=str(table))


def _read_error(
    settings: PostgresConnection, table: TableId, error: psycopg.Error
) -> DestinationError:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return DestinationError(
            f"{table}: the role may not read it",
            hint=f"GRANT SELECT ON {qualified(table)} TO <role>;",
        )
    return DestinationUnavailableError(
        f"{table} at {address(settings)}: reading it back failed: {error}",
        hint="Headrace tries again",
    )
