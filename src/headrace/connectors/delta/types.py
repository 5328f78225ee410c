"""Which Arrow types a Delta table holds, and what becomes of those that Delta has no type for.

PROTOCOL.md, "Primitive Types" and "Schema Serialization Format". A column's stored type is the
Arrow type of its Parquet column; values get there by a checked cast, never by truncation.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from headrace.errors import DestinationError
from headrace.model.arrow import is_binary, is_text

_WIDER: Final = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
}
_AS_IS: Final = {
    pa.bool_(),
    pa.int8(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.string(),
    pa.binary(),
    pa.date32(),
}


def stored_type(arrow: pa.DataType) -> pa.DataType:
    """The type that a Delta column holds values of `arrow` in.

    Times of day become text, `HH:MM:SS.ffffff`: Delta has no type for them.

    Raises:
        DestinationError: Delta cannot hold this type.
    """
    if t.is_nested(arrow):
        return _stored_nested(arrow)
    if t.is_dictionary(arrow):
        return stored_type(arrow.value_type)
    if arrow in _AS_IS:
        return arrow
    if arrow in _WIDER:
        return _WIDER[arrow]
    return _stored_parametric(arrow)


def _stored_parametric(arrow: pa.DataType) -> pa.DataType:
    if t.is_timestamp(arrow):
        return pa.timestamp("us", "UTC" if arrow.tz else None)
    if t.is_time(arrow) or t.is_null(arrow) or is_text(arrow):
        return pa.string()
    if is_binary(arrow):
        return pa.binary()
    if t.is_date64(arrow):
        return pa.date32()
    if t.is_decimal(arrow) and arrow.precision <= 38:
        return pa.decimal128(arrow.precision, arrow.scale)
    raise DestinationError(
        f"Delta has no type for Arrow's {arrow}", hint="map the column to text", type=str(arrow)
    )


def _stored_nested(arrow: pa.DataType) -> pa.DataType:
    if t.is_struct(arrow):
        return pa.struct([pa.field(f.name, stored_type(f.type)) for f in arrow])
    if t.is_map(arrow):
        return pa.map_(stored_type(arrow.key_type), stored_type(arrow.item_type))
    if hasattr(arrow, "value_type"):
        return pa.list_(pa.field("element", stored_type(arrow.value_type)))
    raise DestinationError(
        f"Delta has no type for Arrow's {arrow}", hint="map the column to text", type=str(arrow)
    )


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The Arrow schema of the Parquet files that hold `schema`, all nullable."""
    return pa.schema([pa.field(f.name, stored_type(f.type)) for f in schema])


def to_stored(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, a stored schema, taken from `table` by name; absent ones are null.

    Raises:
        DestinationError: a value does not fit its column.
    """
    columns = []
    for field in schema:
        position = table.schema.get_field_index(field.name)
        if position < 0:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        columns.append(_cast(table.column(position), field))
    return pa.table(columns, schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type.equals(field.type):
        return column
    try:
        return pc.cast(column, field.type)
    except pa.ArrowException as error:
        raise DestinationError(
            f"column {field.name}: {error}", hint="map the column to text", column=field.name
        ) from error


def same_in_parquet(written: pa.DataType, stored: pa.DataType) -> bool:
    """Whether a Parquet column written as the one Arrow type is one of the other, a stored type."""
    if t.is_dictionary(written):
        return same_in_parquet(written.value_type, stored)
    if t.is_string(stored):
        return bool(t.is_string(written) or t.is_large_string(written))
    if t.is_binary(stored):
        return bool(t.is_binary(written) or t.is_large_binary(written))
    if not t.is_nested(stored):
        return bool(written.equals(stored))
    inner = [(written.field(i), stored.field(i)) for i in range(stored.num_fields)]
    return (
        (t.is_struct(written), t.is_map(written)) == (t.is_struct(stored), t.is_map(stored))
        and written.num_fields == stored.num_fields
        and all(same_in_parquet(a.type, b.type) for a, b in inner)
        and (not t.is_struct(stored) or all(a.name == b.name for a, b in inner))
    )
