"""Applies decoded changes to tables in memory, as a subscriber would."""

from __future__ import annotations

import gzip
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoded_rows import tuples

from headrace.pgoutput import Decoded, RawBatch, Relation
from headrace.pgoutput import messages as m
from headrace.pgoutput.frames import XLogData, parse_frame

UNSENT = "unsent"
MISSING = {"note": b"new"}  # what rows from before the recorded ADD COLUMN … DEFAULT have

Values = tuple[Any, ...]


@dataclass(frozen=True)
class Change:
    relation: Relation
    op: str
    old: Values | None
    whole: bool  # the old tuple is the whole row
    new: Values | None


def read_frames(path: Path) -> list[bytes]:
    packed = gzip.decompress(path.read_bytes())
    frames, at = [], 0
    while at < len(packed):
        (size,) = struct.unpack_from(">I", packed, at)
        frames.append(packed[at + 4 : at + 4 + size])
        at += 4 + size
    return frames


def apply(changes: Iterable[Change]) -> dict[str, list[list[str | None]]]:
    """The tables that these changes make from nothing, sorted and as text."""
    tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
    layouts: dict[str, Relation] = {}
    for change in changes:
        _apply_one(tables[change.relation.name], change)
        layouts[change.relation.name] = change.relation
    return {name: _as_text(rows, layouts[name]) for name, rows in tables.items()}


def _apply_one(rows: list[dict[str, Any]], change: Change) -> None:
    names = [column.name for column in change.relation.columns]
    if change.op == "t":
        rows.clear()
        return
    row: dict[str, Any] = {}
    if change.op in "ud":
        row = rows.pop(_find(rows, change, names))
    if change.new is not None:
        sent = zip(names, change.new, strict=True)
        rows.append(row | {name: value for name, value in sent if value != UNSENT})


def _find(rows: list[dict[str, Any]], change: Change, names: list[str]) -> int:
    known = change.old if change.old is not None else change.new
    assert known is not None
    by = [c.name for c in change.relation.columns if c.is_key or change.whole]
    wanted = {name: value for name, value in zip(names, known, strict=True) if name in by}
    return next(i for i, row in enumerate(rows) if all(row[n] == wanted[n] for n in by))


def _as_text(rows: list[dict[str, Any]], layout: Relation) -> list[list[str | None]]:
    """The rows under the last layout: dropped columns gone, added ones filled."""
    names = [column.name for column in layout.columns]
    values = [[row.get(name, MISSING.get(name)) for name in names] for row in rows]
    return sorted(([v if v is None else v.decode() for v in row] for row in values), key=repr)


def changes_of_columns(takes: Iterable[Decoded]) -> list[Change]:
    """All rows in position order; those that were taken before their commit get its LSN later."""
    placed: list[tuple[int, int, Change]] = []
    waiting: dict[int, list[tuple[int, int, Change]]] = defaultdict(list)  # by transaction
    for decoded in takes:
        if decoded.finished is not None:
            rows = waiting.pop(decoded.finished.xid, [])
            placed += [(decoded.finished.end_lsn, o, change) for _, o, change in rows]
        for streamed in decoded.streamed:
            rows = waiting[streamed.xid]
            rows += [row for batch in streamed.batches for row in _rows_of(batch)]
            rows[:] = [row for row in rows if row[0] not in streamed.rolled_back]
            if streamed.aborted or streamed.end is not None:
                del waiting[streamed.xid]
            if streamed.end is not None:
                placed += [(streamed.end.end_lsn, o, change) for _, o, change in rows]
        for batch in decoded.batches:
            for i, (xid, ordinal, change) in enumerate(_rows_of(batch)):
                if i < batch.complete:
                    placed.append((int(batch.commit_lsns[i]), ordinal, change))
                else:
                    waiting[xid].append((xid, ordinal, change))
    assert not any(waiting.values())
    return [change for _, _, change in sorted(placed, key=lambda p: p[:2])]


def _rows_of(batch: RawBatch) -> Iterator[tuple[int, int, Change]]:
    """(xid, ordinal, change) of each row."""
    new = tuples(batch.new, len(batch.ops))
    old = tuples(batch.old or [], len(batch.ops))
    for i, (n, o) in enumerate(zip(new, old, strict=True)):
        op, kind = chr(batch.ops[i]), batch.old_kind[i]
        change = Change(
            batch.relation, op, o if kind else None, kind == m.OLD, n if op in "iu" else None
        )
        yield int(batch.xids[i]), int(batch.ordinals[i]), change


def changes_of_messages(parsed: Iterable[m.PgoutputMessage]) -> Iterator[Change]:
    """The changes of committed transactions in commit order, streamed and prepared ones too."""
    relations: dict[int, Relation] = {}
    gathered: dict[int, list[tuple[int, Change]]] = defaultdict(list)
    xid = 0
    for message in parsed:
        match message:
            case m.Begin() | m.BeginPrepare() | m.StreamStart():
                xid = message.xid
            case m.Relation():
                relations[message.relation_id] = message
            case m.Insert() | m.Update() | m.Delete() | m.Truncate():
                subtransaction = xid if message.xid is None else message.xid
                gathered[xid] += [(subtransaction, c) for c in _changes(relations, message)]
            case m.StreamAbort(xid=top, subtransaction_xid=aborted):
                kept = [] if top == aborted else [c for c in gathered[top] if c[0] != aborted]
                gathered[top] = kept
            case m.RollbackPrepared():
                gathered.pop(message.xid)
            case m.Commit():
                yield from (change for _, change in gathered.pop(xid, []))
            case m.StreamCommit() | m.CommitPrepared():
                yield from (change for _, change in gathered.pop(message.xid))


def _changes(
    relations: dict[int, Relation], message: m.Insert | m.Update | m.Delete | m.Truncate
) -> list[Change]:
    if isinstance(message, m.Truncate):
        return [Change(relations[oid], "t", None, False, None) for oid in message.relation_ids]
    new, old = getattr(message, "new", None), getattr(message, "old", None)
    whole = getattr(message, "old_kind", 0) == m.OLD
    op = type(message).__name__[0].lower()
    return [Change(relations[message.relation_id], op, _values(old), whole, _values(new))]


def _values(row: m.TupleData | None) -> Values | None:
    if row is None:
        return None
    pairs = zip(row.kinds, row.values, strict=True)
    return tuple(UNSENT if kind == m.UNCHANGED else value for kind, value in pairs)


def parse_all(frames: Iterable[bytes]) -> Iterator[m.PgoutputMessage]:
    streamed = False
    for data in frames:
        frame = parse_frame(data)
        if isinstance(frame, XLogData):
            message = m.parse(frame.payload, streamed=streamed)
            streamed = isinstance(message, m.StreamStart) or (
                streamed and not isinstance(message, m.StreamStop)
            )
            yield message
