"""Tables and their schemas, versioned: what a change's columns mean."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

import pyarrow as pa


@dataclass(frozen=True, order=True)
class TableId:
    """A table's schema and name, unquoted and in their true case."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `schema.name`; the first dot divides. Raises ValueError without a dot."""
        schema, dot, name = text.partition(".")
        if not (schema and dot and name):
            raise ValueError(f"not a table: {text!r} (expected schema.name)")
        return cls(schema, name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def quoted(self) -> str:
        """As Postgres' SQL writes it."""
        return ".".join('"{}"'.format(part.replace('"', '""')) for part in (self.schema, self.name))


class ReplicaIdentity(Enum):
    """What Postgres writes of the old row (pg_class.relreplident)."""

    DEFAULT = "d"  # the primary key, when it changes or the row goes
    NOTHING = "n"  # nothing: updates and deletes cannot be published
    FULL = "f"  # the whole old row
    INDEX = "i"  # the columns of a named unique index


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type, the source's own type text, and its catalog number.

    `attnum` tells a renamed column from a dropped and an added one.
    """

    name: str
    type: pa.DataType
    source_type: str
    attnum: int = 0


@dataclass(frozen=True)
class TableSchema:
    """One version of a table's schema.

    `key` names the columns that identify a row; empty means none do, and the table is a multiset.
    `missing` holds, for columns added after rows existed, the constant that those older rows have
    (pg_attribute.attmissingval); a column not in it is NULL there.
    """

    table: TableId
    version: int
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    identity: ReplicaIdentity = ReplicaIdentity.DEFAULT
    missing: Mapping[str, pa.Scalar] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def counterpart(self, column: Column) -> Column | None:
        """What this version has for a column of another version: by its catalog number where both
        have one, else by its name."""
        numbered = [c for c in self.columns if c.attnum and c.attnum == column.attnum]
        if numbered:
            return numbered[0]
        named = [c for c in self.columns if c.name == column.name]
        return next((c for c in named if not (c.attnum and column.attnum)), None)

    def arrow(self) -> pa.Schema:
        """The Arrow schema of the table's own columns, all nullable."""
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])

    def same_shape(self, other: TableSchema) -> bool:
        """Whether rows of both can stand in one batch: all but the version is equal."""
        return (self.table, self.columns, self.key, self.identity) == (
            other.table,
            other.columns,
            other.key,
            other.identity,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": self.table.schema,
            "table": self.table.name,
            "version": self.version,
            "key": list(self.key),
            "replica_identity": self.identity.value,
            "columns": [
                {"name": c.name, "type": c.source_type, "arrow": str(c.type), "attnum": c.attnum}
                for c in self.columns
            ],
            "arrow_schema": _encode(self.arrow().serialize()),
            "missing": _encode_missing(self.missing),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        arrow = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(data["arrow_schema"])))
        columns = tuple(
            Column(c["name"], field.type, c["type"], c["attnum"])
            for c, field in zip(data["columns"], arrow, strict=True)
        )
        return cls(
            TableId(data["schema"], data["table"]),
            data["version"],
            columns,
            tuple(data["key"]),
            ReplicaIdentity(data["replica_identity"]),
            _decode_missing(data["missing"]),
        )


def _encode(buffer: pa.Buffer) -> str:
    return base64.b64encode(buffer).decode()


def _encode_missing(missing: Mapping[str, pa.Scalar]) -> str | None:
    if not missing:
        return None
    row = pa.record_batch(
        [pa.array([s.as_py()], s.type) for s in missing.values()], names=list(missing)
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_batch(row)
    return _encode(sink.getvalue())


def _decode_missing(text: str | None) -> dict[str, pa.Scalar]:
    if text is None:
        return {}
    row = pa.ipc.open_stream(base64.b64decode(text)).read_next_batch()
    return {name: row.column(name)[0] for name in row.schema.names}
