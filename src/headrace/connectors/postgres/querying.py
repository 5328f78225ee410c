"""SQL over a destination's tables, as Arrow: each value as the stream of a source would give it."""

from __future__ import annotations

import pyarrow as pa
from psycopg import pq, sql

from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres.catalog import TypeCatalog
from headrace.connectors.postgres.config import address
from headrace.connectors.postgres.target_session import connect_target, target_errors
from headrace.connectors.postgres.types import TypeMapping, mapping
from headrace.errors import DestinationError, UnrepresentableValueError


def query(settings: PostgresConnection, text: str) -> pa.Table:
    """The rows of a query, which cannot change anything.

    A column with values that its Arrow type cannot hold, such as an infinite date, comes as text.

    Raises:
        DestinationError: the query is wrong, or gives no rows at all.
        DestinationUnavailableError: the server cannot be reached for now.
    """
    with connect_target(settings) as connection, target_errors(settings):
        types = TypeCatalog.read(connection)
        connection.execute("BEGIN READ ONLY")
        result = connection.execute(sql.SQL(text)).pgresult
        if result is None or result.status != pq.ExecStatus.TUPLES_OK:
            raise DestinationError(
                f"{address(settings)}: the query gives no rows", hint="write a SELECT"
            )
        columns = range(result.nfields)
        names = [(result.fname(column) or b"").decode() for column in columns]
        return pa.table([_column(result, column, types) for column in columns], names=names)


def _column(result: pq.abc.PGresult, column: int, types: TypeCatalog) -> pa.Array:
    texts = [result.get_value(row, column) for row in range(result.ntuples)]
    decoded = pa.array(None if text is None else text.decode() for text in texts)
    return _as_arrow(
        decoded.cast(pa.string()), mapping(result.ftype(column), result.fmod(column), types)
    )


def _as_arrow(texts: pa.Array, mapped: TypeMapping) -> pa.Array:
    try:
        return mapped.from_text(texts)
    except UnrepresentableValueError:
        return texts
