"""What a batch of changes makes of a table's files, by what the table is to show.

Each kind of table has its own way; all end in one commit that holds the checkpoint (DESIGN.md §9).
What is planned here is durable, and nothing names it yet: a plan that another writer's commit has
overtaken is made again, and its files are swept some day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.change_files import (
    changes_of,
    changes_of_files,
    write_change_files,
)
from headrace.connectors.delta.changeset import Changeset, RowsMissingError, set_against
from headrace.connectors.delta.conversion import has_feed, has_vectors, purged
from headrace.connectors.delta.leaving import Leaving
from headrace.connectors.delta.live import Commit, LiveTable
from headrace.connectors.delta.retained import all_marked
from headrace.connectors.delta.rows import RowIndex, count_rows
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.types import to_stored
from headrace.connectors.delta.vectors import cardinality
from headrace.connectors.delta.versions import all_closed
from headrace.connectors.delta.writer import Written, write_files
from headrace.log.storage import Storage
from headrace.model import Checkpoint, Mode, NetChanges, OnDelete, Shape


@dataclass(frozen=True)
class Applied:
    """A batch as actions on files, and how the index follows (see `Commit`). `deleted` counts rows
    that went and that nothing brought back."""

    operation: str
    actions: Sequence[Action]
    upserted: int
    deleted: int = 0
    follow: Callable[[RowIndex], None] | None = None


def planned(
    live: LiveTable,
    changes: NetChanges,
    to: Checkpoint,
    shape: Shape,
    *,
    images: bool,
    metadata: Sequence[Action] = (),
) -> Commit:
    """The commit that applies a batch, and takes the table to `to`; with `images`, its feed tells
    of updates as such. `metadata` goes along.

    Raises:
        LogError: a file cannot be read or written.
        DivergedError: the table lacks rows that the change log says it must have.
        DestinationError: a value does not fit its column.
    """
    try:
        made = _applied(live, changes, shape, images=images)
    except RowsMissingError as error:
        raise live.diverged(str(error)) from error
    metrics = {"numUpsertedRows": made.upserted, "numDeletedRows": made.deleted}
    told = actions.commit_info(made.operation, at=to, after=changes.after, metrics=metrics)
    checkpoint = actions.transactions(live.app_id(to.log_id), to)
    return Commit([told, *metadata, *made.actions, *checkpoint], made.follow)


def _applied(live: LiveTable, changes: NetChanges, shape: Shape, *, images: bool) -> Applied:
    storage, state = live.storage, live.known()

    def with_index(way: Callable[[Storage, TableState, RowIndex, NetChanges], Applied]) -> Applied:
        return live.indexed(changes.schema, lambda rows: way(storage, state, rows, changes))

    if shape.mode is Mode.APPEND:
        return _appended(storage, state, changes)
    if not changes.truncate:
        return with_index(partial(_merged, images=images))
    if shape.mode is Mode.SCD2:
        return with_index(_ended)
    live.revise(partial(purged, storage))  # all files are to go: see `Leaving.of`
    return (
        with_index(_marked)
        if shape.on_delete is OnDelete.MARK
        else _emptied(storage, state, changes)
    )


def _merged(
    storage: Storage, state: TableState, rows: RowIndex, changes: NetChanges, *, images: bool
) -> Applied:
    """Rows that go leave their files, and those that come are a new one."""
    batch = set_against(rows, changes, state.columns)
    leaving = Leaving.of(storage, state, rows.deletions(batch.doomed))
    written = write_files(storage, batch.upserts, leaving.vectors, state.partition_by)
    made = [*leaving.actions(storage, written.descriptors), *written.actions]
    if has_feed(state):
        key, untold = changes.schema.key, leaving.untold(storage)
        told = changes_of(rows, batch, key, images=images, untold=untold)
        if told is not None:
            made += write_change_files(storage, [told], state.partition_by)
    follow = partial(_follow, batch=batch, leaving=leaving, written=written)
    return Applied(
        "MERGE",
        made,
        batch.upserts.num_rows,
        batch.deleted,
        follow if has_vectors(state) else None,
    )


def _follow(rows: RowIndex, batch: Changeset, leaving: Leaving, written: Written) -> None:
    rows.committed(
        {path: (written.descriptors[path], gone) for path, gone in leaving.touched.items()},
        leaving.emptied,
        [(add["add"]["path"], batch.hashes_of(positions)) for add, positions in written.adds],
    )


def _appended(storage: Storage, state: TableState, changes: NetChanges) -> Applied:
    rows = to_stored(changes.upserts, state.columns)
    written = write_files(storage, rows, {}, state.partition_by)
    return Applied("WRITE", written.actions, rows.num_rows)


# -- truncates -------------------------------------------------------------------------------------


def _emptied(storage: Storage, state: TableState, changes: NetChanges) -> Applied:
    files = state.files.values()
    live = sum(
        count_rows(storage, file) - cardinality(file.get("deletionVector")) for file in files
    )
    come = _appended(storage, state, changes)
    return replace(
        come,
        operation="TRUNCATE",
        actions=[*map(actions.remove, files), *come.actions],
        deleted=live,
    )


def _marked(storage: Storage, state: TableState, rows: RowIndex, changes: NetChanges) -> Applied:
    """All rows that stand are marked, but for those whose keys came back."""
    batch = set_against(rows, changes, state.columns)
    replaced = rows.deletions(batch.doomed)
    marked = all_marked(storage, state, replaced, state.columns, _moment(changes))
    written = write_files(storage, batch.upserts, {}, state.partition_by)
    made = [*map(actions.remove, state.files.values()), *marked, *written.actions]
    return Applied("TRUNCATE", made, batch.upserts.num_rows)


def _ended(storage: Storage, state: TableState, rows: RowIndex, changes: NetChanges) -> Applied:
    """Whatever is current ends."""
    batch = set_against(rows, changes, state.columns)
    going = rows.deletions(batch.doomed)
    closed = all_closed(storage, state, going, state.columns, _moment(changes))
    leaving = Leaving.of(storage, state, closed.deletions)
    written = write_files(storage, batch.upserts, leaving.vectors, state.partition_by)
    come = [*written.actions, *closed.adds]
    made = [*leaving.actions(storage, written.descriptors), *come]
    told = changes_of_files(storage, leaving, come)
    made += write_change_files(storage, told, state.partition_by)
    return Applied("MERGE", made, batch.upserts.num_rows, batch.deleted)


def _moment(changes: NetChanges) -> datetime:
    assert changes.truncated_at is not None  # Postgres tells it of every change
    return changes.truncated_at
