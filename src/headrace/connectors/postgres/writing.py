"""From a schema and the table that is there to the plan by which rows are written."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import psycopg
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.postgres.compatibility import TEXTS
from headrace.connectors.postgres.statements import WritePlan, WrittenColumn
from headrace.connectors.postgres.target_table import Target, TargetColumn
from headrace.connectors.postgres.target_types import Encode, arrival_at
from headrace.errors import UnsuitableTableError
from headrace.model import DELETED_AT, Column, Delivery, TableSchema

_TEXT: Final = ("text", "text[]")


def write_plan(schema: TableSchema, target: Target, delivery: Delivery) -> WritePlan:
    """How rows of `schema` get into `target`.

    Columns that the table computes itself are left out; so are columns of the user's own.

    Raises:
        UnsuitableTableError: the table lacks a column or the key.
    """
    found = [(column, target.column(column.name)) for column in schema.columns]
    missing = [column.name for column, there in found if there is None]
    unique = target.unique_over(schema.key) if schema.key else None
    if missing or (schema.key and unique is None):
        lacks = f"columns {', '.join(missing)}" if missing else "a unique index over its key"
        raise UnsuitableTableError(
            f"{schema.table} lacks {lacks}: somebody changed it",
            hint=f"headrace check tells what is missing; headrace resync {schema.table} rebuilds",
            table=str(schema.table),
        )
    columns = tuple(_written(c, t) for c, t in found if t is not None and not t.generated)
    ours = {column.name for column in columns} | {DELETED_AT}
    return WritePlan(
        table=schema.table,
        columns=columns,
        key=schema.key,
        arbiter=unique is not None and unique.immediate,
        on_delete=delivery.on_delete,
        only_ours=all(column.name in ours for column in target.columns),
    )


def _written(column: Column, target: TargetColumn) -> WrittenColumn:
    arrival = arrival_at(column.type, target)
    taken = target.family in TEXTS and target.is_array == arrival.staging.endswith("[]")
    own = arrival.staging in _TEXT and not taken
    if arrival.staging in _TEXT and taken and target.modifiers:
        within = _within(target.modifiers[0], target.base, arrival.encode)
        arrival = replace(arrival, encode=within)
    return WrittenColumn(column.name, arrival, target.cast, target.cast if own else None)


def _within(length: int, kind: str, encode: Encode) -> Encode:
    """Refuse texts that are longer. Postgres would itself, unless all that is too much are spaces:
    those it cuts off without a word (PostgreSQL documentation, "Character Types")."""

    def checked(values: pa.Array) -> pa.Array:
        encoded = encode(values)
        texts = encoded.flatten() if pa.types.is_nested(encoded.type) else encoded
        if (pc.max(pc.utf8_length(texts)).as_py() or 0) > length:
            raise psycopg.errors.StringDataRightTruncation(f"value too long for type {kind}")
        return encoded

    return checked
