"""Decoded columns as plain values, to compare and to read in a failing test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headrace.pgoutput import Decoded, RawBatch, RawColumn


def plain(decoded: Decoded) -> dict[str, Any]:
    """Everything in `decoded`, types of arrays included, as values that compare by `==`."""
    ends = decoded.transactions
    return {
        "batches": [_plain_batch(batch) for batch in decoded.batches],
        "transactions": [_array(a) for a in (ends.end_lsns, ends.commit_ts, ends.xids)],
        "finished": decoded.finished,
        "streamed": [
            (s.xid, [*map(_plain_batch, s.batches)], s.rolled_back, s.end, s.after, s.aborted)
            for s in decoded.streamed
        ],
        "last_commit_lsn": decoded.last_commit_lsn,
        "messages": decoded.messages,
    }


def rows(decoded: Decoded) -> list[tuple[Any, ...]]:
    """(table, op, ordinal, new values) of every row, batch after batch; UNSENT stands for `u`."""
    return batch_rows(decoded.batches)


def batch_rows(batches: list[RawBatch]) -> list[tuple[Any, ...]]:
    """As `rows`."""
    return [
        (batch.relation.name, chr(batch.ops[i]), int(batch.ordinals[i]), new)
        for batch in batches
        for i, new in enumerate(tuples(batch.new, len(batch.ops)))
    ]


def tuples(columns: list[RawColumn], count: int) -> Iterator[tuple[Any, ...]]:
    """The rows of `columns`; a value is None for null, "unsent" or "absent", else its bytes."""
    values = [_values(column) for column in columns]
    return (tuple(column[i] for column in values) for i in range(count))


def _values(column: RawColumn) -> list[Any]:
    marks = {ord("n"): None, ord("u"): "unsent", 0: "absent"}
    arrow = column.to_arrow()
    arrow.validate(full=True)
    return [
        marks.get(kind, value)
        for kind, value in zip(column.kinds.tolist(), arrow.to_pylist(), strict=True)
    ]


def _plain_batch(batch: RawBatch) -> dict[str, Any]:
    arrays = {
        name: _array(getattr(batch, name))
        for name in ("ops", "ordinals", "commit_lsns", "commit_ts", "xids", "old_kind")
    }
    return {
        "relation": batch.relation,
        "complete": batch.complete,
        "new": [_column(column) for column in batch.new],
        "old": batch.old and [_column(column) for column in batch.old],
        **arrays,
    }


def _column(column: RawColumn) -> list[Any]:
    return [_array(column.kinds), _array(column.offsets), column.data.to_pybytes()]


def _array(array: Any) -> tuple[str, list[int]]:
    assert not array.flags.writeable or array.base is None
    return array.dtype.name, array.tolist()
