"""A batch landed in the transaction of its checkpoint: what can be is applied, the rest is parked.

A batch that memory does not hold comes in parts, which are landed one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import pyarrow as pa

from headrace.connectors.postgres import quarantine, replay
from headrace.connectors.postgres.fills import ORDINAL
from headrace.connectors.postgres.merge import Landing, WritePlan
from headrace.connectors.postgres.parts import parts
from headrace.connectors.postgres.quarantine import Quarantine
from headrace.connectors.postgres.staging import Pace
from headrace.connectors.postgres.target_session import Cursor
from headrace.failpoints import hit
from headrace.model import Checkpoint, NetChanges


def land_batch(
    cursor: Cursor,
    place: Quarantine,
    plan: WritePlan,
    pace: Pace,
    changes: NetChanges,
    to: Checkpoint,
    before: Iterable[NetChanges] = (),
) -> int:
    """Land `before` and then `changes`; how many parked rows wait for rows of other tables.

    A part of a transaction may be refused for want of a later one, where the source looks at a
    constraint when it commits only: what was parked is tried again behind the last one.

    Raises:
        DivergedError: the table lacks rows that the source says it must have.
        QuarantineFullError: more rows would be parked than may be.
        psycopg.Error: what is no row's fault.
    """
    landing = Landing(cursor, plan, pace)
    make = partial(parts, cursor, plan, landing)
    parked = 0
    for part in before:
        parked += _land(cursor, place, landing, make, part, to)
        hit("postgres.part_applied")
    _land(cursor, place, landing, make, changes, to)
    landing.begin(changes.commit_ts)
    if parked:
        replay.retry(cursor, place, changes.schema, make)
    return replay.retry_waiting(cursor, place, changes.schema, make).waiting


def _land(
    cursor: Cursor,
    place: Quarantine,
    landing: Landing,
    make: replay.MakeParts,
    changes: NetChanges,
    to: Checkpoint,
) -> int:
    """Land one part; how many rows were parked."""
    landing.begin(changes.commit_ts)
    left = quarantine.supersede(cursor, place, changes)
    if left.truncate:
        landing.truncate()
    landing.read_fills(left.fills)
    made = make(_numbered(left), left.deletes)
    return quarantine.land_or_park(cursor, place, made, left.rejected, to, landing.completed)


def _numbered(changes: NetChanges) -> pa.Table:
    """The upserts, numbered where fills refer to their places."""
    rows = changes.upserts
    if not changes.fills:
        return rows
    return rows.append_column(ORDINAL, pa.array(range(rows.num_rows), pa.int64()))
