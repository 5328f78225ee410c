"""Columns in which all rows have one value, told by the schema instead of by their files."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from headrace.connectors.delta.types import stored_type


def with_constants(rows: pa.Table, constants: Mapping[str, pa.Scalar]) -> pa.Table:
    """The rows with these values in the columns of these names, which they have."""
    for name, value in constants.items():
        field = rows.schema.field(name)
        column = pa.repeat(value.cast(stored_type(field.type)), rows.num_rows)
        rows = rows.set_column(rows.schema.get_field_index(name), field, column)
    return rows
