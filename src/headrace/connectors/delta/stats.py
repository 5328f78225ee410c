"""Per-file statistics: from a Parquet footer, and in add actions. PROTOCOL.md, "Per-file
Statistics".

Bounds are true for every row, or absent. Text is cut, with an upper bound that is above all that
was cut. Columns of floating-point numbers have none: a footer does not tell whether there is a NaN,
which readers order differently. Nested columns have no statistics.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import pyarrow.parquet as pq

PREFIX: Final = 32  # characters of a text bound; Delta's own writers cut there too
_EPOCH_DAY: Final = date(1970, 1, 1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EXACT_DIGITS: Final = 15  # decimal digits that survive a reader's conversion to double


def stats_of(file: Mapping[str, Any]) -> dict[str, Any]:
    """What the add action of a file tells; may be nothing."""
    stats: dict[str, Any] = json.loads(file.get("stats") or "{}")
    return stats


def known_rows(file: Mapping[str, Any]) -> int | None:
    """Rows of a file, dead ones too, if its add action tells."""
    rows = stats_of(file).get("numRecords")
    return None if rows is None else int(rows)


def file_stats(metadata: pq.FileMetaData, partition_columns: Container[str] = ()) -> str:
    """The `stats` of an add action; partition columns need none."""
    stats: dict[str, Any] = {
        "numRecords": metadata.num_rows,
        "minValues": {},
        "maxValues": {},
        "nullCount": {},
    }
    cut = False
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    for position, name in _flat_columns(metadata):
        if name in partition_columns:
            continue
        chunks = [group.column(position).statistics for group in groups]
        if not chunks or not all(s is not None and s.has_null_count for s in chunks):
            continue
        stats["nullCount"][name] = sum(s.null_count for s in chunks)
        bounds = _bounds(chunks, metadata.schema.column(position))
        if bounds is not None:
            stats["minValues"][name], stats["maxValues"][name], shortened = bounds
            cut |= shortened
    if cut:
        stats["tightBounds"] = False
    return json.dumps(stats, separators=(",", ":"), ensure_ascii=False)


def _flat_columns(metadata: pq.FileMetaData) -> Iterator[tuple[int, str]]:
    for position in range(metadata.num_columns):
        column = metadata.schema.column(position)
        if column.max_repetition_level == 0 and column.path == column.name:
            yield position, column.name


def _bounds(chunks: list[Any], column: Any) -> tuple[Any, Any, bool] | None:
    """Lower and upper bound in JSON's terms, and whether they were widened."""
    held = [s for s in chunks if s.num_values]
    if not held or not all(s.has_min_max for s in held):
        return None
    logical = json.loads(column.logical_type.to_json())
    kind, physical = logical["Type"], column.physical_type
    if kind == "String":
        return _text_bounds(min(s.min for s in held), max(s.max for s in held))
    if kind in ("Timestamp", "Date"):
        low, high = min(s.min_raw for s in held), max(s.max_raw for s in held)
        return _time_bounds(low, high, kind, logical)
    if kind == "Decimal":
        return _decimal_bounds(min(s.min for s in held), max(s.max for s in held))
    if physical in ("INT32", "INT64") and kind in ("None", "Int"):
        return min(s.min for s in held), max(s.max for s in held), False
    return None


def _text_bounds(low: str, high: str) -> tuple[str, str, bool] | None:
    top = upper_bound(high)
    if top is None:
        return None
    return low[:PREFIX], top, len(low) > PREFIX or len(high) > PREFIX


def upper_bound(text: str) -> str | None:
    """The text, or where it is long a short one above all that begin like it; None without one."""
    if len(text) <= PREFIX:
        return text
    prefix = text[:PREFIX].rstrip("\U0010ffff")
    if not prefix:
        return None
    following = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(0xE000 if following == 0xD800 else following)


def _time_bounds(
    low: int, high: int, kind: str, logical: dict[str, Any]
) -> tuple[str, str, bool] | None:
    try:
        if kind == "Date":
            days = (_EPOCH_DAY + timedelta(days=value) for value in (low, high))
            return next(days).isoformat(), next(days).isoformat(), False
        if logical["timeUnit"] != "microseconds":
            return None
        zone = "Z" if logical["isAdjustedToUTC"] else ""
        return _instant(low) + zone, _instant(high) + zone, False
    except OverflowError:  # outside the years 1 to 9999, which have no common text form
        return None


def _instant(microseconds: int) -> str:
    instant = _EPOCH + timedelta(microseconds=microseconds)
    return instant.isoformat(timespec="microseconds").removesuffix("+00:00")


def _decimal_bounds(low: Decimal, high: Decimal) -> tuple[Any, Any, bool] | None:
    for value in (low, high):
        if len(value.as_tuple().digits) > _EXACT_DIGITS or "e" in repr(float(value)):
            return None
    return float(low), float(high), False
