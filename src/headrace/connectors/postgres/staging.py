"""Arrow rows into a temporary table, by binary COPY.

pgpq turns Arrow batches into Postgres' binary COPY format, 1.2 million rows/s. The staging tables
are temporary, made once per connection and emptied by each commit: making and dropping them for
every batch takes a millisecond more, and bloats the catalogs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import psycopg
import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder
from psycopg import sql

from headrace.connectors.postgres.target_session import Cursor, TargetSession, target_errors
from headrace.connectors.postgres.target_types import Arrival

Pace = Callable[[int, int], None]

BATCH_BYTES: Final = 4 << 20  # of Arrow, encoded at a time: memory, and how finely it is paced
BATCH_ROWS: Final = 1 << 16

# Where somebody asked for a pace, how much may come at a burst: of both, a sixteenth of that.
PACED_SHARE: Final = 16


@dataclass(frozen=True)
class StagedColumn:
    """A column of a staging table, and how its values come there."""

    name: str
    arrival: Arrival


@dataclass(frozen=True)
class Staging:
    """A temporary table that takes rows with these columns."""

    name: str
    columns: tuple[StagedColumn, ...]

    @classmethod
    def of(cls, role: str, columns: Sequence[StagedColumn]) -> Self:
        """One for rows of this shape; equal shapes share it."""
        shape = repr([(c.name, c.arrival.staging) for c in columns])
        digest = hashlib.blake2b(shape.encode(), digest_size=6).hexdigest()
        return cls(f"headrace_{role}_{digest}", tuple(columns))

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier("pg_temp", self.name)

    def ddl(self, *, missing_only: bool = False) -> sql.Composed:
        columns = [
            sql.SQL("{} {}").format(sql.Identifier(c.name), sql.SQL(c.arrival.staging))
            for c in self.columns
        ]
        return sql.SQL("CREATE TEMPORARY TABLE {} {} ({}) ON COMMIT DELETE ROWS").format(
            sql.SQL("IF NOT EXISTS" if missing_only else ""),
            sql.Identifier(self.name),
            sql.SQL(", ").join(columns),
        )


def send(cursor: Cursor, staging: Staging, rows: pa.Table, pace: Pace) -> None:
    """Append rows, whose columns are the staging table's, to it.

    Raises:
        psycopg.DataError: a value that Postgres' type cannot hold, or a null byte in a text.
    """
    copy_rows(cursor, staging.table, staging.columns, rows, pace)


def copy_rows(
    cursor: Cursor,
    table: sql.Composable,
    columns: Sequence[StagedColumn],
    rows: pa.Table,
    pace: Pace,
) -> None:
    """COPY rows into the columns of a table, in batches of bounded size.

    Raises:
        psycopg.DataError: a value that Postgres' type cannot hold, or a null byte in a text.
    """
    names = [column.name for column in columns]
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        table, sql.SQL(", ").join(map(sql.Identifier, names))
    )
    encoded = [_encoded(rows.column(c.name), c.arrival) for c in columns]
    prepared = pa.table(encoded, names=names) if names else rows
    encoder = ArrowToPostgresBinaryEncoder(prepared.schema)
    with cursor.copy(statement) as copy:
        copy.write(encoder.write_header())
        for batch in _batches(prepared, 1 if pace is at_once else PACED_SHARE):
            data = _write(encoder, batch)
            pace(batch.num_rows, len(data))
            copy.write(data)
        last = encoder.finish()  # with what the encoder held back: it gives about 1 MB at a time
        pace(0, len(last))
        copy.write(last)


def _write(encoder: ArrowToPostgresBinaryEncoder, batch: pa.RecordBatch) -> bytes:
    try:
        return encoder.write_batch(batch)
    except ValueError as error:  # the only thing it can fail for: a time that Postgres has not
        raise psycopg.errors.DatetimeFieldOverflow(str(error)) from error


def _encoded(values: pa.ChunkedArray, arrival: Arrival) -> pa.ChunkedArray:
    try:
        chunks = values.chunks or [pa.array([], values.type)]
        return pa.chunked_array([arrival.encode(chunk) for chunk in chunks])
    except pa.ArrowInvalid as error:  # a cast that would lose a part of the value
        raise psycopg.errors.DataException(str(error)) from error


def _batches(rows: pa.Table, share: int) -> Iterator[pa.RecordBatch]:
    if not rows.num_rows:
        return
    per_row = max(rows.nbytes // rows.num_rows, 1)
    most = min(BATCH_ROWS, BATCH_BYTES // per_row) // share
    yield from rows.to_batches(max_chunksize=max(1, most))


def ensure(session: TargetSession, stagings: Iterable[Staging]) -> None:
    """Make the staging tables that do not stand in this session yet, outside any transaction."""
    connection = session.connection()
    for staging in stagings:
        if staging.name not in session.staged:
            with target_errors(session.settings):
                connection.execute(staging.ddl())
            session.staged.add(staging.name)


def at_once(rows: int, size: int) -> None:
    """The pace of those who need not hold back."""
