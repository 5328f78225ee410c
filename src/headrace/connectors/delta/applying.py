"""What a batch of changes makes of a table's files, by what the table is to show.

Each kind of table has its own way; all end in one commit that holds the checkpoint (DESIGN.md §9).
What is planned here is durable, and nothing names it yet: a plan that another writer's commit has
overtaken is made again, and its files are swept some day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.change_files import changes_of, write_change_files
from headrace.connectors.delta.changeset import Changeset, set_against
from headrace.connectors.delta.conversion import has_feed, has_vectors
from headrace.connectors.delta.leaving import Leaving
from headrace.connectors.delta.retained import all_marked
from headrace.connectors.delta.rows import RowIndex, count_rows
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.types import to_stored
from headrace.connectors.delta.versions import all_closed
from headrace.connectors.delta.writer import Written, write_files
from headrace.log.storage import Storage
from headrace.model import Mode, NetChanges, OnDelete, Shape

Follow = Callable[[RowIndex], None]


@dataclass(frozen=True)
class Applied:
    """A batch as `actions` of files; `follow` as in `live.Commit`. `deleted` counts the rows that
    went and that nothing brought back."""

    operation: str
    actions: Sequence[Action]
    upserted: int
    deleted: int = 0
    follow: Follow | None = None


def takes_all_files(changes: NetChanges, shape: Shape) -> bool:
    """Whether every file that stands is removed with its rows (and must have no vector where a feed
    tells of it: see `Leaving.of`)."""
    return changes.truncate and shape.mode is Mode.SCD1


def needs_index(changes: NetChanges, shape: Shape) -> bool:
    plain = shape.on_delete is not OnDelete.MARK and takes_all_files(changes, shape)
    return shape.mode is not Mode.APPEND and not plain
