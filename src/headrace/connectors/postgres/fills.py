"""Values that the source did not send: taken from the rows that hold them, before those change.

An update that leaves a TOASTed value alone does not carry it (logical replication's "unchanged
TOAST"). It is copied inside the server, never over the network, in the table's own types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.catalog import TypeCatalog
from headrace.connectors.postgres.identifiers import quoted
from headrace.connectors.postgres.target_session import Cursor, only_row
from headrace.connectors.postgres.types import mapping

ORDINAL: Final = "headrace row"  # of an upsert in its batch; no table of a user's has it

_TYPE: Final = """
SELECT atttypid::bigint, atttypmod, attndims FROM pg_catalog.pg_attribute
 WHERE attrelid = pg_catalog.to_regclass(%s) AND attname = %s
"""


@dataclass(frozen=True)
class Kept:
    """A temporary table of this transaction: `columns` of the rows numbered by ORDINAL."""

    name: str
    columns: tuple[str, ...]

    @property
    def table(self) -> sql.Identifier:
        return sql.Identifier("pg_temp", self.name)


def completed(cursor: Cursor, types: TypeCatalog, row: pa.Table, fills: Sequence[Kept]) -> pa.Table:
    """One upserted row as it was to be written: what the source did not send is filled in."""
    (ordinal,) = row.column(ORDINAL).to_pylist()
    whole = row.drop_columns([ORDINAL])
    for fill in fills:
        for name in fill.columns:
            value = _value(cursor, types, fill, name, ordinal)
            if value is not None:
                field = whole.schema.field(name)
                place = whole.column_names.index(name)
                whole = whole.set_column(place, field, value.cast(field.type))
    return whole


def _value(
    cursor: Cursor, types: TypeCatalog, fill: Kept, name: str, ordinal: int
) -> pa.Array | None:
    """One kept value as an array of one, by the casts of the stream; None where none was kept."""
    oid, typmod, dimensions = only_row(cursor.execute(_TYPE, [f"pg_temp.{fill.name}", name]))
    mapped = mapping(oid, typmod, types, dimensions=dimensions)
    as_text = replace(mapped, native=None).select(quoted(name))
    query = sql.SQL("SELECT {} FROM {} WHERE {} = {}").format(
        sql.SQL(as_text), fill.table, sql.Identifier(ORDINAL), sql.Literal(ordinal)
    )
    found = cursor.execute(query).fetchone()
    return None if found is None else mapped.from_text(pa.array([found[0]], pa.string()))
