"""A column's values by three ways: as the stream prints them, by a COPY, and through psycopg."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import conninfo

from headrace.connectors.postgres.catalog import CatalogColumn, TypeCatalog, read_table_schema
from headrace.connectors.postgres.copy_out import copy_out
from headrace.connectors.postgres.types import TypeMapping
from headrace.model import TableId

PINNED = (
    "-c DateStyle=ISO -c TimeZone=UTC -c IntervalStyle=iso_8601"
    " -c extra_float_digits=3 -c bytea_output=hex"
)


@dataclass(frozen=True)
class TypedColumn:
    """The column x of one table, rows in the order of insertion."""

    reader: Reader
    table: str
    described: CatalogColumn
    mapping: TypeMapping

    def texts(self) -> pa.Array:
        """What the type's output function prints, straight off the wire."""
        result = self.reader.session.execute(f"select x from {self.table} order by n").pgresult
        assert result is not None
        return pa.array([result.get_value(row, 0) for row in range(result.ntuples)], pa.binary())

    def streamed(self) -> pa.Array:
        return self.mapping.from_text(self.texts())

    def copied(self) -> pa.Array:
        selected = self.mapping.select('"x"')
        query = f"select {selected} from {self.table} order by n"
        rows = copy_out(self.reader.session, query, [self.mapping.wanted])
        return pa.concat_arrays([self.mapping.from_copy(batch.columns[0]) for batch in rows])

    def query(self, expression: str) -> list[Any]:
        """An expression over x by psycopg: the independent reader."""
        rows = self.reader.session.execute(f"select {expression} from {self.table} order by n")
        return [value for (value,) in rows]


@dataclass(frozen=True)
class Reader:
    session: psycopg.Connection[tuple[Any, ...]]
    numbers: Iterator[int]

    def column(self, declared: str, values: Sequence[str | None]) -> TypedColumn:
        """A table with one column of a declared type, filled through the type's input function."""
        table = f"t{next(self.numbers)}"
        self.session.execute(f"create table {table} (n serial, x {declared})")
        with self.session.cursor().copy(f"copy {table} (x) from stdin") as copy:
            for value in values:
                copy.write_row([value])
        types = TypeCatalog.read(self.session)
        table_id = TableId("public", table)
        described = read_table_schema(self.session, types, table_id)
        return TypedColumn(self, table, described.columns[1], described.mappings[1])


@contextmanager
def typed_columns(dsn: str) -> Iterator[Reader]:
    pinned = conninfo.make_conninfo(dsn, options=PINNED, client_encoding="UTF8")
    with psycopg.connect(pinned, autocommit=True) as session:
        yield Reader(session, itertools.count())


def identical(left: pa.Array, right: pa.Array) -> bool:
    """Equal in type, validity and values, to the bit: a NaN equals itself, 0.0 is not -0.0."""
    left.validate(full=True)
    right.validate(full=True)
    if pa.types.is_list(left.type) and left.type == right.type:
        return left.is_valid().equals(right.is_valid()) and (
            pa.array(left.value_lengths()).equals(pa.array(right.value_lengths()))
            and identical(left.flatten(), right.flatten())
        )
    if pa.types.is_struct(left.type) and left.type == right.type:
        pairs = zip(left.flatten(), right.flatten(), strict=True)
        return left.is_valid().equals(right.is_valid()) and all(identical(*p) for p in pairs)
    return left.equals(right) if not pa.types.is_floating(left.type) else _same_bits(left, right)


def _same_bits(left: pa.Array, right: pa.Array) -> bool:
    if left.type != right.type or not left.is_valid().equals(right.is_valid()):
        return False
    bits = np.dtype(f"u{left.type.bit_width // 8}")
    one, other = (np.asarray(a.drop_null().to_numpy(zero_copy_only=False)) for a in (left, right))
    return bool((one.view(bits) == other.view(bits)).all())
