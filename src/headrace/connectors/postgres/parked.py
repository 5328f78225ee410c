"""A parked row as it is stored and shown: its exact values, and its key as text."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.postgres.bisection import Operation
from headrace.connectors.postgres.refusals import Refusal
from headrace.model import TableId

Key = tuple[str | None, ...]

SHOWN_CHARACTERS: Final = 200  # of a value: enough to recognize it


@dataclass(frozen=True)
class ParkedRow:
    """A row of headrace.quarantine; texts are empty where there is nothing to tell.

    `version` is the source's (a Delta table's version) with which the row came; `attempts` counts
    how often it was tried, at least once.
    """

    id: int
    table: TableId
    pipeline: str
    operation: Operation
    key: Key
    code: str
    reason: str
    sqlstate: str
    constraint_schema: str
    constraint_table: str
    constraint: str
    column: str
    log_id: str
    version: int
    parked_at: datetime
    tried_at: datetime
    attempts: int
    row: pa.Table  # of one row, as it was to be applied

    @property
    def refusal(self) -> Refusal:
        """Why it is here."""
        constraint = (self.constraint_schema, self.constraint_table, self.constraint)
        return Refusal(self.code, self.reason, self.sqlstate, *constraint, self.column)

    @property
    def replay(self) -> str:
        """The command that tries it again."""
        return f"headrace quarantine retry {self.id}"

    def conformed(self, schema: pa.Schema) -> pa.Table:
        """The row in columns and types of now; a column that it did not know is null.

        Raises:
            pa.ArrowInvalid, pa.ArrowNotImplementedError: a value does not fit its new type.
        """
        known = self.row.column_names
        columns = [
            self.row.column(field.name).cast(field.type)
            if field.name in known
            else pa.nulls(1, field.type)
            for field in schema
        ]
        return pa.Table.from_arrays(columns, schema=schema)

    def values(self) -> dict[str, str | None]:
        """Column by column as text, long values shortened."""
        return {name: _shown(self.row.column(name)[0]) for name in self.row.column_names}


def encode_row(row: pa.Table) -> bytes:
    """One row as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_table(row)
    return bytes(sink.getvalue())


def decode_row(payload: bytes) -> pa.Table:
    return pa.ipc.open_stream(payload).read_all()


def key_texts(rows: pa.Table, key: Sequence[str]) -> list[Key]:
    """Each row's key as texts; equal values of widened types have equal texts."""
    columns = [_texts(rows.column(name)).to_pylist() for name in key]
    return list(zip(*columns, strict=True))


def keys_among(rows: pa.Table, key: Sequence[str], wanted: Collection[Key]) -> list[Key]:
    """The keys of `rows` that are among `wanted`, as often as they stand there.

    Rows are sieved column by column first, so that a large batch beside few parked rows costs
    little.
    """
    for position, name in enumerate(key):
        values = pa.array(sorted({k[position] or "" for k in wanted}), pa.string())
        rows = rows.filter(pc.is_in(_texts(rows.column(name)).fill_null(""), value_set=values))
    return [found for found in key_texts(rows, key) if found in wanted]


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        # Postgres' text has no null byte: a key that holds one is stored under its picture.
        return pc.replace_substring(column.cast(pa.string()), "\0", "\u2400")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # bytes; lists, structs, maps
        return pa.chunked_array([[_text(value) for value in column]], pa.string())


def _text(value: pa.Scalar) -> str | None:
    found = value.as_py()
    if found is None:
        return None
    if isinstance(found, bytes):
        return "\\x" + found.hex()
    return json.dumps(found, default=_json, sort_keys=True, ensure_ascii=False)


def _json(value: Any) -> Any:
    return "\\x" + value.hex() if isinstance(value, bytes) else str(value)


def _shown(value: pa.Scalar) -> str | None:
    text: str | None = _texts(pa.chunked_array([pa.array([value.as_py()], value.type)]))[0].as_py()
    return text if text is None or len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
