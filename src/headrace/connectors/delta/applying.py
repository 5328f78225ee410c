"""What a batch of changes makes of a table's files, by what the table is to show.

Each kind of table has its own way; all end in one commit that holds the checkpoint (DESIGN.md §9).
A batch that memory does not hold comes in parts. Each is durable, and found by the next one, before
that is made (see `pending`); the commit of the last one names them all. What is planned here is
durable, and nothing names it yet: a plan that another writer's commit has overtaken is made again,
and its files are swept some day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyroaring import BitMap

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.change_files import (
    changes_of,
    changes_of_parts,
    rows_leaving,
    write_change_files,
)
from headrace.connectors.delta.changeset import Changeset, RowsMissingError, set_against
from headrace.connectors.delta.conversion import has_feed, purged
from headrace.connectors.delta.leaving import Leaving
from headrace.connectors.delta.live import Commit, LiveTable
from headrace.connectors.delta.pending import UNNAMED
from headrace.connectors.delta.retained import all_marked
from headrace.connectors.delta.rows import RowIndex, count_rows, live_rows
from headrace.connectors.delta.types import to_stored
from headrace.connectors.delta.vectors import cardinality
from headrace.connectors.delta.versions import all_closed
from headrace.connectors.delta.writer import Written, write_files
from headrace.failpoints import hit
from headrace.model import START_AT, Checkpoint, Mode, NetChanges, OnDelete, Shape

Follow = Callable[[RowIndex], None]

_NO_ROWS: Final = np.empty(0, np.int64)


class _WornFilesError(Exception):
    """All files are to go, and some have a vector: see `Leaving.of`. Never leaves this module."""


@dataclass(frozen=True)
class _Draft:
    """What a part does: the rows that come, and by file all rows that it then lacks.

    `batch` tells more of them where the index was asked, and then follows. `adds` are of files that
    are written already. `replaces`: no file that stood stays. `deleted` counts rows that went and
    that nothing brought back.
    """

    operation: str
    upserts: pa.Table
    gone: Mapping[str, BitMap] = field(default_factory=dict)
    batch: Changeset | None = None
    adds: Sequence[Action] = ()
    replaces: bool = False
    deleted: int = 0


def planned(
    live: LiveTable,
    changes: NetChanges,
    to: Checkpoint,
    shape: Shape,
    *,
    images: bool,
    before: Iterable[NetChanges] = (),
    metadata: Sequence[Action] = (),
) -> Commit:
    """The commit that applies a batch, and takes the table to `to`; with `images`, its feed tells
    of updates as such. `before` are parts of the batch that come first. `metadata` goes along.

    Raises:
        LogError: a file cannot be read or written.
        DivergedError: the table lacks rows that the change log says it must have.
        DestinationError: a value does not fit its column.
    """
    live.abandon()
    try:
        for part in before:
            _take(live, part, shape)
        draft = _drafted(live, changes, shape)
        made, follow = _made(live, draft, changes.schema.key, images=images)
    except _WornFilesError:
        live.abandon()
        live.revise(partial(purged, live.storage))
        return planned(live, changes, to, shape, images=images, before=before, metadata=metadata)
    except RowsMissingError as error:
        raise live.diverged(str(error)) from error
    told = _provenance(live, draft, changes, to)
    checkpoint = actions.transactions(live.app_id(to.log_id), to)
    return Commit([told, *metadata, *made, *checkpoint], follow)


def _provenance(live: LiveTable, draft: _Draft, changes: NetChanges, to: Checkpoint) -> Action:
    pending = live.pending
    metrics = {
        "numUpsertedRows": pending.upserted + draft.upserts.num_rows,
        "numDeletedRows": pending.deleted + draft.deleted,
    }
    operation = "TRUNCATE" if pending.emptied else draft.operation
    return actions.commit_info(operation, at=to, after=changes.after, metrics=metrics)


# -- parts -----------------------------------------------------------------------------------------


def _take(live: LiveTable, changes: NetChanges, shape: Shape) -> None:
    """Make a part durable, and its rows those that the next one finds."""
    draft = _drafted(live, changes, shape)
    written = write_files(live.storage, draft.upserts, {}, live.working.partition_by)
    files = [*draft.adds, *written.actions]
    pending = live.pending
    if draft.replaces:
        pending.replace_all()
    pending.files |= {add["add"]["path"]: add["add"] for add in files}
    pending.gone |= draft.gone
    pending.upserted += draft.upserts.num_rows
    pending.deleted += draft.deleted
    pending.by_files |= bool(draft.adds)
    gone = {path: (UNNAMED, rows) for path, rows in draft.gone.items()}
    follow = partial(_follow, draft=draft, gone=gone, emptied=(), written=written)
    live.take_along_pending(None if draft.batch is None else follow)
    hit("delta.part_written")


def _made(
    live: LiveTable, draft: _Draft, key: Sequence[str], *, images: bool
) -> tuple[list[Action], Follow | None]:
    """What a commit says of all parts' files, `draft` being the last one's, and how the index
    follows: where it is not told, it reads the files that are new."""
    storage, base, pending = live.storage, live.known(), live.pending
    if draft.replaces:
        written = write_files(storage, draft.upserts, {}, base.partition_by)
        removes = map(actions.remove, base.files.values())
        return [*removes, *draft.adds, *written.actions], None
    gone = {**pending.gone, **draft.gone}
    leaving = Leaving.of(storage, live.working, gone, pending.files.keys())
    written = write_files(storage, draft.upserts, leaving.vectors, base.partition_by)
    made = [
        *(map(actions.remove, base.files.values()) if pending.emptied else ()),
        *({"add": file} for path, file in pending.files.items() if path not in gone),
        *leaving.actions(storage, written.descriptors),
        *written.actions,
        *draft.adds,
    ]
    if has_feed(base) and not pending.emptied:
        made += _told(live, draft, leaving, key, images=images)
    if draft.batch is None or draft.adds or leaving.anew:
        return made, None
    vectors = {path: (written.descriptors[path], rows) for path, rows in leaving.touched.items()}
    emptied = leaving.emptied
    follow = partial(_follow, draft=draft, gone=vectors, emptied=emptied, written=written)
    return made, follow


def _follow(
    rows: RowIndex,
    draft: _Draft,
    gone: Mapping[str, tuple[Mapping[str, Any], BitMap]],
    emptied: Sequence[str],
    written: Written,
) -> None:
    """Take the index along, without reading anything."""
    batch = draft.batch
    assert batch is not None
    past = [(add["add"]["path"], batch.hashes_of(_NO_ROWS)) for add in draft.adds]
    come = [(add["add"]["path"], batch.hashes_of(positions)) for add, positions in written.adds]
    rows.committed(gone, emptied, [*past, *come])


def _told(
    live: LiveTable, draft: _Draft, leaving: Leaving, key: Sequence[str], *, images: bool
) -> list[Action]:
    """What the feed cannot see from the commit's other files."""
    batch, rows, state = draft.batch, live.rows, live.working
    if batch is None or rows is None:
        return []
    untold, closing = leaving.untold(live.storage), draft.adds or live.pending.by_files
    if not (live.pending or closing):
        told = changes_of(rows, batch, key, images=images, untold=untold)
        return [] if told is None else write_change_files(live.storage, [told], state.partition_by)
    images = images and not closing  # of which there may be as many as rows
    if not (untold or images) or leaving.deletions.keys() <= live.pending.files.keys():
        return []
    identity: Sequence[str] = key if rows.history is None else [*key, START_AT]
    told_anew = changes_of_parts(
        partial(rows_leaving, live.storage, leaving),
        partial(_come, live, leaving, draft),
        batch.upserts.schema,
        identity if images else (),
        live.pending.upserted + len(draft.upserts),
    )
    return write_change_files(live.storage, told_anew, state.partition_by)


def _come(live: LiveTable, leaving: Leaving, last: _Draft) -> Iterator[pa.Table]:
    """The rows that all parts together bring."""
    adds = {add["add"]["path"]: add["add"] for add in last.adds}
    for path, file in {**live.pending.files, **adds}.items():
        gone = leaving.deletions.get(path, BitMap())
        yield from live_rows(live.storage, file, last.upserts.schema, gone)
    yield last.upserts


# -- what a part does ------------------------------------------------------------------------------


def _drafted(live: LiveTable, changes: NetChanges, shape: Shape) -> _Draft:
    def with_index(way: Callable[[LiveTable, RowIndex, NetChanges], _Draft]) -> _Draft:
        return live.indexed(changes.schema, lambda rows: way(live, rows, changes))

    if shape.mode is Mode.APPEND:
        return _Draft("WRITE", to_stored(changes.upserts, live.known().columns))
    if not changes.truncate:
        return with_index(_merged)
    if shape.mode is Mode.SCD2:
        return with_index(_closed)
    _refuse_worn(live)
    return with_index(_marked) if shape.on_delete is OnDelete.MARK else _emptied(live, changes)


def _refuse_worn(live: LiveTable) -> None:
    base = live.known()
    if has_feed(base) and any(file.get("deletionVector") for file in base.files.values()):
        raise _WornFilesError


def _merged(live: LiveTable, rows: RowIndex, changes: NetChanges) -> _Draft:
    """Rows that go leave their files, and those that come are a new one."""
    batch = set_against(rows, changes, live.known().columns)
    gone = rows.deletions(batch.doomed)
    return _Draft("MERGE", batch.upserts, gone, batch, deleted=batch.deleted)


# -- truncates -------------------------------------------------------------------------------------


def _emptied(live: LiveTable, changes: NetChanges) -> _Draft:
    state, gone = live.working, live.pending.gone
    count = sum(
        count_rows(live.storage, file)
        - (len(gone[path]) if path in gone else cardinality(file.get("deletionVector")))
        for path, file in state.files.items()
    )
    come = to_stored(changes.upserts, state.columns)
    return _Draft("TRUNCATE", come, replaces=True, deleted=count)


def _marked(live: LiveTable, rows: RowIndex, changes: NetChanges) -> _Draft:
    """All rows that stand are marked, but for those whose keys came back."""
    state = live.working
    batch = set_against(rows, changes, state.columns)
    replaced = {**live.pending.gone, **rows.deletions(batch.doomed)}
    adds = all_marked(live.storage, state, replaced, state.columns, _moment(changes))
    return _Draft("TRUNCATE", batch.upserts, adds=adds, replaces=True)


def _closed(live: LiveTable, rows: RowIndex, changes: NetChanges) -> _Draft:
    """Whatever is current ends."""
    state = live.working
    batch = set_against(rows, changes, state.columns)
    going = {**live.pending.gone, **rows.deletions(batch.doomed)}
    closed = all_closed(live.storage, state, going, state.columns, _moment(changes))
    return _Draft(
        "MERGE", batch.upserts, closed.deletions, batch, closed.adds, deleted=batch.deleted
    )


def _moment(changes: NetChanges) -> datetime:
    assert changes.truncated_at is not None  # Postgres tells it of every change
    return changes.truncated_at
