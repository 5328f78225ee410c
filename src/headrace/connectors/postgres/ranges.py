"""Cuts a big table into ranges of its key, each of which can be copied in a snapshot of its own.

Pages would not do: between two snapshots rows move from page to page, and a row that did could be
found twice or never. A row's key says which range it is in, whenever it is looked for.

A range is cheap to read where its rows lie together. Where keys lie scattered (random UUIDs), each
range is found all over the table: there a sample tells it, ranges are fewer and larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.identifiers import quoted
from headrace.model import Column, KeyRange, TableSchema

# Their order is the same in every database, collation and program; see `KeyRange`.
# A column that the user has read as another type has other values here.
_TIMES: Final = {
    "date": pa.date32(),
    "timestamp without time zone": pa.timestamp("us"),
    "timestamp with time zone": pa.timestamp("us", "UTC"),
}
_ORDERED: Final = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "uuid": pa.string(),
    **_TIMES,
}

# A table that is just large enough is cut into so many: a run that ends loses a minute at most.
RANGES_OF_ABOVE: Final = 16

SAMPLE_PAGES: Final = 1000  # random reads: a second or so
MAX_RANGES: Final = 400  # all are in a document that is put anew with each one that is copied

# Pages that are read for all ranges, set against those of the table: where it is more, ranges are
# made larger. Reading a page takes about a tenth of the time that copying its rows does.
MAX_READS: Final = 4

# In the order of the key: pages told apart, and the key. Times that are not plain bound no range.
SAMPLE: Final = """
SELECT pg_catalog.dense_rank() OVER (ORDER BY s.part, s.page), s.key::text
  FROM (SELECT tableoid AS part, (ctid::text::point)[0] AS page, {key} AS key
          FROM {relation} TABLESAMPLE SYSTEM ({percent}) REPEATABLE (0)) s
 WHERE {plain} ORDER BY s.key
"""


def range_column(schema: TableSchema) -> Column | None:
    """The first column of a table's key, if tables can be cut by its type."""
    if not schema.key:
        return None
    column = next(c for c in schema.columns if c.name == schema.key[0])
    return column if _ORDERED.get(_kind(column)) == column.type else None


def _kind(column: Column) -> str:
    name, _, rest = column.source_type.partition("(")  # timestamp(3) with time zone
    return name + rest.partition(")")[2]


def key_ranges(
    session: psycopg.Connection[Any],
    schema: TableSchema,
    relation: str,
    sizes: tuple[int, int],
    above: int,
) -> tuple[KeyRange, ...]:
    """The ranges of a table, in order; none where it is to be copied whole, as those are that have
    no more than `above` bytes.

    `sizes` are its pages, and its bytes with those of values out of line; `relation` is the table
    as FROM names it.
    """
    column, (pages, size) = range_column(schema), sizes
    if size <= above or column is None:
        return ()
    query = SAMPLE.format(
        key=quoted(column.name),
        relation=relation,
        percent=min(100 * SAMPLE_PAGES / max(pages, 1), 100),
        plain="s.key BETWEEN '0001-01-01' AND '9999-12-31'" if _kind(column) in _TIMES else "true",
    )
    return cut(
        session.execute(query).fetchall(), min(-(-size * RANGES_OF_ABOVE // above), MAX_RANGES)
    )


def cut(sample: Sequence[tuple[int, str]], wanted: int) -> tuple[KeyRange, ...]:
    """Up to `wanted` ranges of as many rows each, by a sample of pages and keys in order of key.

    Fewer where the keys lie scattered; see MAX_READS. Pure.
    """
    if wanted < 2 or not sample:
        return ()
    places = [len(sample) * n // wanted for n in range(wanted + 1)]
    reads = sum(len({page for page, _ in sample[a:b]}) for a, b in pairwise(places))
    bounds = dict.fromkeys(sample[place][1] for place in places[1:-1])
    bounds.pop(sample[0][1], None)  # nothing is known to be below the least key
    if bounds and reads <= MAX_READS * len({page for page, _ in sample}):
        return tuple(KeyRange(low, high) for low, high in pairwise([None, *bounds, None]))
    return cut(sample, wanted // 2)


def in_range(column: Column, keys: KeyRange) -> str:
    """The condition that a row's key is in a range."""
    name, conditions = quoted(column.name), []
    for operator, bound in ((">=", keys.low), ("<", keys.high)):
        if bound is not None:
            conditions.append(f"{name} {operator} {sql.Literal(bound).as_string(None)}")
    return " AND ".join(conditions) or "true"
