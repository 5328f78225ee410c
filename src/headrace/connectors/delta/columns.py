"""A table's columns as its schema describes them, and as its data files hold them.

PROTOCOL.md, "Schema Serialization Format", "Column Mapping" and "Partition Value Serialization".
With column mapping a data file knows a column by its physical name, or by its field id, so that a
rename rewrites nothing; a file written before a column was added, or widened, lacks it or holds it
as the narrower type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from headrace.connectors.delta.schema import arrow_schema
from headrace.connectors.delta.variant import to_json
from headrace.errors import SourceError
from headrace.model import Column

MAPPING: Final = "delta.columnMapping.mode"
_PHYSICAL: Final = "delta.columnMapping.physicalName"
_ID: Final = "delta.columnMapping.id"
_PARQUET_ID: Final = b"PARQUET:field_id"


@dataclass(frozen=True)
class DataColumn:
    """A column: `json` is its StructField, `type` its Arrow type, `physical` its name in files."""

    json: Mapping[str, Any]
    type: pa.DataType

    @property
    def name(self) -> str:
        return str(self.json["name"])

    @property
    def physical(self) -> str:
        return str((self.json.get("metadata") or {}).get(_PHYSICAL, self.name))

    @property
    def field_id(self) -> int:
        """Zero where columns are not mapped."""
        return int((self.json.get("metadata") or {}).get(_ID, 0))

    def declared(self) -> Column:
        kind = self.json["type"]
        text = kind if isinstance(kind, str) else json.dumps(kind, separators=(",", ":"))
        return Column(self.name, self.type, text, self.field_id)


@dataclass(frozen=True)
class Layout:
    """How to find `columns` in the files of a table."""

    columns: tuple[DataColumn, ...]
    partitioned_by: frozenset[str]  # logical names
    by_id: bool  # else by physical name

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Layout:
        """Of a `metaData` action.

        Raises:
            SourceError: the schema has a type that Headrace does not know.
        """
        text = metadata["schemaString"]
        try:
            types = arrow_schema(text)
        except ValueError as error:
            raise SourceError(
                f"the table's schema cannot be read: {error}",
                hint="leave the column out of the table at the source, or cast it to a known type",
            ) from error
        fields = json.loads(text)["fields"]
        mode = (metadata.get("configuration") or {}).get(MAPPING, "none")
        if mode == "none":
            fields = [_unmapped(field) for field in fields]
        return cls(
            tuple(DataColumn(f, _type(f, a)) for f, a in zip(fields, types, strict=True)),
            frozenset(metadata.get("partitionColumns") or ()),
            mode == "id",
        )

    def only(self, names: Sequence[str]) -> Layout:
        """Restricted to some columns, in the order of `names`."""
        known = {column.name: column for column in self.columns}
        return replace(self, columns=tuple(known[name] for name in names))

    def plus(self, column: DataColumn) -> Layout:
        return replace(self, columns=(*self.columns, column))

    def place_of(self, column: DataColumn) -> str | int:
        """What finds a column in a file: its field id, or its name there."""
        return column.field_id if self.by_id and column.field_id else column.physical

    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])


def _type(field: Mapping[str, Any], stored: pa.Field) -> pa.DataType:
    """A variant is read as its JSON text."""
    if field["type"] == "variant":
        return pa.string()
    if '"variant"' in json.dumps(field["type"]):
        raise SourceError(
            f"column {field['name']} has variants inside another type, which Headrace cannot read",
            hint="leave the column out, or make the whole of it a variant",
            column=field["name"],
        )
    return stored.type


def _unmapped(field: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without what a former mapping left: files are then read by the columns' names."""
    metadata = {k: v for k, v in field["metadata"].items() if k not in (_PHYSICAL, _ID)}
    return {**field, "metadata": metadata}


# -- columns of a file -----------------------------------------------------------------------------


def in_file(layout: Layout, schema: pa.Schema) -> dict[str, pa.Field]:
    """Which field of a data file holds each column of the layout that the file has."""
    held: dict[str | int, pa.Field] = {field.name: field for field in schema}
    if layout.by_id:
        held |= {_parquet_id(field): field for field in schema}
    found = {}
    for column in layout.columns:
        field = held.get(layout.place_of(column))
        if field is not None and column.name not in layout.partitioned_by:
            found[column.name] = field
    return found


def _parquet_id(field: pa.Field) -> int:
    return int((field.metadata or {}).get(_PARQUET_ID, -1))


def to_column(array: pa.Array, held: pa.Field, column: DataColumn, *, by_id: bool) -> pa.Array:
    """A column's values from those of the file's field: nested names are mapped, types widened.

    Raises:
        pa.ArrowInvalid: a value does not fit the column's type.
        VariantError: a variant is damaged.
    """
    if column.json["type"] == "variant":
        return to_json(array)
    renamed = _logical_type(held.type, column.json["type"], by_id=by_id)
    return pc.cast(array.view(renamed), column.type)


def _logical_type(held: pa.DataType, kind: Any, *, by_id: bool) -> pa.DataType:
    """The type of a file's column with the fields of its structs under their logical names."""
    if isinstance(kind, str):
        return held
    if t.is_map(held):
        return pa.map_(
            _logical_type(held.key_type, kind["keyType"], by_id=by_id),
            _logical_type(held.item_type, kind["valueType"], by_id=by_id),
        )
    if t.is_struct(held):
        return pa.struct([_logical_field(field, kind["fields"], by_id=by_id) for field in held])
    element = _logical_type(held.value_type, kind["elementType"], by_id=by_id)
    return pa.list_(held.value_field.with_type(element))


def _logical_field(held: pa.Field, fields: Sequence[Mapping[str, Any]], *, by_id: bool) -> pa.Field:
    """A field that the table no longer has keeps a name that none has."""
    for json_field in fields:
        column = DataColumn(json_field, pa.null())
        if _parquet_id(held) == column.field_id if by_id else held.name == column.physical:
            kind = _logical_type(held.type, json_field["type"], by_id=by_id)
            return pa.field(column.name, kind)
    return pa.field(f"\0{held.name}", held.type)


# -- partition values ------------------------------------------------------------------------------


def partition_scalar(column: DataColumn, values: Mapping[str, str | None]) -> pa.Scalar:
    """The value that all rows of a file have in a partition column; empty text means null.

    Raises:
        SourceError: the text is no value of the column's type.
    """
    text = values.get(column.physical)
    if not text:
        return pa.scalar(None, column.type)
    try:
        return _parsed(text, column.type)
    except (pa.ArrowException, ValueError) as error:
        raise SourceError(
            f"partition column {column.name}: {text!r} is no {column.type}",
            hint="rewrite the partition with a value of the column's type",
            column=column.name,
        ) from error


def _parsed(text: str, kind: pa.DataType) -> pa.Scalar:
    if t.is_binary(kind):
        return pa.scalar(text.encode(), kind)
    if t.is_timestamp(kind):
        local = pc.cast(pa.scalar(text.removesuffix("Z")), pa.timestamp("us"))
        return pc.cast(local, kind)
    return pc.cast(pa.scalar(text), kind)
