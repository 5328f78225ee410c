"""A table's schema in Delta's JSON, and what changed between two of them.

PROTOCOL.md, "Schema Serialization Format" and "Table Features". Each field's metadata holds the
catalog number of the source's column, which tells a renamed column from another one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as t
from deltalake import Schema

from headrace.connectors.delta.types import stored_schema
from headrace.errors import DestinationError, UnsupportedSchemaChangeError
from headrace.model import TableSchema

ATTNUM: Final = "headrace.attnum"
SOURCE_TYPE: Final = "headrace.type"  # as the source calls it: one Delta type may stand for several
# Table features.
DELETION_VECTORS: Final = "deletionVectors"
CHANGE_DATA_FEED: Final = "changeDataFeed"

# What we read and keep right when others have switched it on.
_KNOWN_FEATURES: Final = {
    "appendOnly",
    CHANGE_DATA_FEED,
    DELETION_VECTORS,
    "invariants",
    "timestampNtz",
    "variantType",  # deltalake adds it with any table property; ours have no such column
}


def delta_schema(schema: TableSchema) -> str:
    """The `schemaString` of a table.

    Raises:
        DestinationError: Delta cannot hold such a table: column names differ by case alone, or
            there is no column.
    """
    _require_columns(schema)
    fields = json.loads(Schema.from_arrow(stored_schema(schema.arrow())).to_json())
    for field, column in zip(fields["fields"], schema.columns, strict=True):
        if column.attnum:
            field["metadata"][ATTNUM] = column.attnum
            field["metadata"][SOURCE_TYPE] = column.source_type
    return json.dumps(fields, separators=(",", ":"))


def _require_columns(schema: TableSchema) -> None:
    """PROTOCOL.md, "Column names": they are compared without regard to case."""
    if not schema.names:
        raise DestinationError(
            f"{schema.table} has no columns, and a Delta table needs one",
            hint=f"leave {schema.table} out (exclude: true)",
        )
    seen: dict[str, str] = {}
    for name in schema.names:
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise DestinationError(
                f"{schema.table}: columns {other!r} and {name!r} differ by case alone, which Delta "
                "does not tell apart",
                hint=f"rename one of them at the source, or leave {schema.table} out",
            )


@lru_cache(maxsize=1024)  # a batch asks several times, and 100 columns take 0.5 ms
def arrow_schema(schema_string: str) -> pa.Schema:
    """The stored schema that a `schemaString` describes."""
    return stored_schema(pa.schema(Schema.from_json(schema_string).to_arrow()))


def protocol_for(schema: TableSchema) -> dict[str, Any]:
    """The `protocol` action that a table of this schema needs. PROTOCOL.md, "Table Features"."""
    local = any(_has_local_timestamps(c.type) for c in schema.columns)
    features = ["timestampNtz"] * local
    return _protocol(features, features)


def _protocol(reader: list[str], writer: list[str]) -> dict[str, Any]:
    """Version 1 is for readers that need to know no feature."""
    features = {"readerFeatures": reader} if reader else {}
    version = 3 if reader else 1
    return {
        "minReaderVersion": version,
        "minWriterVersion": 7,
        **features,
        "writerFeatures": writer,
    }


def with_features(
    protocol: Mapping[str, Any], *, reader: Iterable[str] = (), writer: Iterable[str] = ()
) -> dict[str, Any]:
    """`protocol` with what it lacks of these features."""

    def merged(kind: str, more: Iterable[str]) -> list[str]:
        return list(dict.fromkeys([*(protocol.get(kind) or []), *more]))

    return _protocol(merged("readerFeatures", reader), merged("writerFeatures", writer))


def with_features_of(
    protocol: Mapping[str, Any], needed: Mapping[str, Any]
) -> dict[str, Any] | None:
    """`protocol` with what it lacks of `needed`; None if it lacks nothing."""
    reader, writer = (needed.get(kind) or [] for kind in ("readerFeatures", "writerFeatures"))
    merged = with_features(protocol, reader=reader, writer=writer)
    return None if merged == dict(protocol) else merged


def without_feature(protocol: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`protocol` for a table in which nothing needs the feature any more."""
    reader, writer = (
        [feature for feature in protocol.get(kind) or [] if feature != name]
        for kind in ("readerFeatures", "writerFeatures")
    )
    return _protocol(reader, writer)


def _has_local_timestamps(arrow: pa.DataType) -> bool:
    if t.is_timestamp(arrow):
        return arrow.tz is None
    children = [arrow.field(i).type for i in range(arrow.num_fields)]
    return any(_has_local_timestamps(child) for child in children)


def check_protocol(protocol: Mapping[str, Any], metadata: Mapping[str, Any], where: str) -> None:
    """Refuse tables whose rules for writers we do not know. PROTOCOL.md, "Table Features".

    Raises:
        DestinationError: the table needs a feature that this writer does not have.
    """
    if protocol["minReaderVersion"] not in (1, 3) or protocol["minWriterVersion"] != 7:
        unknown = {f"protocol {protocol['minReaderVersion']}/{protocol['minWriterVersion']}"}
    else:
        unknown = set(protocol.get("writerFeatures") or []) - _KNOWN_FEATURES
    configuration = metadata.get("configuration") or {}
    if configuration.get("delta.appendOnly", "").lower() == "true":
        unknown.add("delta.appendOnly=true")
    if "delta.invariants" in metadata["schemaString"]:
        unknown.add("column invariants")
    if unknown:
        raise DestinationError(
            f"{where} needs of its writers what Headrace does not do: {', '.join(sorted(unknown))}",
            hint="take the feature away from the table, or resync it under another name",
        )


@dataclass(frozen=True)
class SchemaChange:
    """Columns that a newer schema has beyond an older one, or that are structs with more fields."""

    added: tuple[str, ...]


def schema_change(schema_string: str, schema: TableSchema) -> SchemaChange:
    """What `schema` adds to the table's `schema_string`.

    Raises:
        UnsupportedSchemaChangeError: a column was dropped, renamed or got another type.
    """
    old = {field["name"]: field for field in json.loads(schema_string)["fields"]}
    new = {field["name"]: field for field in json.loads(delta_schema(schema))["fields"]}
    for name, field in old.items():
        complaint = _complaint(field, new.get(name), new, old)
        if complaint:
            raise UnsupportedSchemaChangeError(
                f"{schema.table}: column {name} {complaint}, which a Delta table cannot follow",
                hint=f"headrace resync {schema.table}",
                column=name,
                table=str(schema.table),
            )
    return SchemaChange(
        tuple(
            name
            for name in schema.names
            if name not in old or _has_more(old[name]["type"], new[name]["type"])
        )
    )


def _has_more(old: Any, new: Any) -> bool:
    """Whether a type has fields beyond another one's; both agree, as `_agree` has it."""
    if not _is_struct(old):
        return False
    fields = _fields(old)
    return any(
        name not in fields or _has_more(fields[name], kind) for name, kind in _fields(new).items()
    )


def _agree(old: Any, new: Any) -> bool:
    """Whether values of both can stand in one column: structs may have fields of their own."""
    if not (_is_struct(old) and _is_struct(new)):
        return bool(old == new)
    was, now = _fields(old), _fields(new)
    return all(_agree(kind, now[name]) for name, kind in was.items() if name in now)


def _is_struct(kind: Any) -> bool:
    return not isinstance(kind, str) and kind["type"] == "struct"


def _fields(struct: Any) -> dict[str, Any]:
    return {field["name"]: field["type"] for field in struct["fields"]}


def keeping_fields(schema_string: str, schema: TableSchema) -> TableSchema:
    """The schema, its structs with the fields that the table's have beyond them."""
    stands = {field.name: field.type for field in arrow_schema(schema_string)}
    columns = tuple(
        replace(column, type=_joined(stands[column.name], column.type))
        if column.name in stands
        else column
        for column in schema.columns
    )
    return replace(schema, columns=columns)


def _joined(old: pa.DataType, new: pa.DataType) -> pa.DataType:
    if not (t.is_struct(old) and t.is_struct(new)):
        return new
    was, now = {f.name: f.type for f in old}, {f.name: f.type for f in new}
    names = [*was, *(name for name in now if name not in was)]
    return pa.struct(
        [
            (
                name,
                _joined(was[name], now[name])
                if name in was and name in now
                else {**now, **was}[name],
            )
            for name in names
        ]
    )


def _complaint(
    old: Mapping[str, Any],
    new: Mapping[str, Any] | None,
    all_new: Mapping[str, Mapping[str, Any]],
    all_old: Mapping[str, Mapping[str, Any]],
) -> str:
    number = old["metadata"].get(ATTNUM)
    if new is None:
        heirs = [
            name
            for name, field in all_new.items()
            if number and name not in all_old and field["metadata"].get(ATTNUM) == number
        ]
        return f"was renamed to {heirs[0]}" if heirs else "was dropped"
    if not _agree(old["type"], new["type"]):
        return f"changed its type from {_type_text(old)} to {_type_text(new)}"
    if number and new["metadata"].get(ATTNUM) not in (None, number):
        return "was dropped and added anew"
    return ""


def _type_text(field: Mapping[str, Any]) -> str:
    kind = field["type"]
    return kind if isinstance(kind, str) else str(kind["type"])
