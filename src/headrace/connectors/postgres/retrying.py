"""Parked rows of one table tried again, in a transaction of their own that holds its checkpoint.

An apply of the same table waits for that row, or is waited for: neither sees the other half done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pyarrow as pa

from headrace.connectors.postgres import records, replay
from headrace.connectors.postgres.bisection import Part
from headrace.connectors.postgres.merge import Landing, delete_staging, upsert_staging
from headrace.connectors.postgres.parts import parts
from headrace.connectors.postgres.quarantine import Quarantine
from headrace.connectors.postgres.records import Record
from headrace.connectors.postgres.refusals import FOREIGN_KEYS
from headrace.connectors.postgres.replay import MakeParts, Replayed
from headrace.connectors.postgres.staging import Pace, at_once, ensure
from headrace.connectors.postgres.target_session import Cursor, TargetSession
from headrace.connectors.postgres.target_table import read_target
from headrace.connectors.postgres.writing import write_plan
from headrace.errors import DivergedError
from headrace.model import Delivery, TableId, TableSchema

NOTHING: Final = Replayed(0, {})

_WAITING: Final = """
SELECT DISTINCT table_schema, table_name FROM headrace.quarantine
 WHERE pipeline = %s AND sqlstate = ANY (%s)
 ORDER BY 1, 2
"""

_Replay = Callable[[Cursor, Quarantine, TableSchema, MakeParts], Replayed]


def waiting_tables(cursor: Cursor, pipeline: str) -> list[TableId]:
    """Tables of a pipeline of which rows wait for another table's; one statement."""
    found = cursor.execute(_WAITING, [pipeline, sorted(FOREIGN_KEYS)])
    return [TableId(schema, name) for schema, name in found]


def retry(
    session: TargetSession,
    name: TableId,
    pipeline: str,
    delivery: Delivery,
    ids: Sequence[int] | None = None,
    pace: Pace = at_once,
) -> Replayed:
    """Apply a table's parked rows again, those of `ids` or all, as the table is defined now.

    See `replay.retry`.

    Raises:
        DestinationUnavailableError: the connection was lost.
        DestinationError: the server refused a statement for what is no row's fault.
        DivergedError: the table is gone, or another pipeline's.
    """

    def again(cursor: Cursor, place: Quarantine, schema: TableSchema, made: MakeParts) -> Replayed:
        return replay.retry(cursor, place, schema, made, ids)

    return _replay(session, name, pipeline, delivery, pace, again)


def retry_waiting(
    session: TargetSession,
    name: TableId,
    pipeline: str,
    delivery: Delivery,
    pace: Pace = at_once,
) -> Replayed:
    """Apply a table's rows again that waited for another table's; as `retry`.

    One statement where none waits.
    """
    with session.transaction() as cursor:
        if not records.are_there(cursor) or name not in waiting_tables(cursor, pipeline):
            return NOTHING
    return _replay(session, name, pipeline, delivery, pace, replay.retry_waiting)


def _replay(
    session: TargetSession,
    name: TableId,
    pipeline: str,
    delivery: Delivery,
    pace: Pace,
    again: _Replay,
) -> Replayed:
    with session.transaction() as cursor:
        schema = _schema(records.read(cursor, name), name, pipeline)
        target = read_target(cursor, name)
        if target is None:
            raise _gone(name)
        plan = write_plan(schema, target, delivery)
    ensure(session, (delete_staging(plan), upsert_staging(plan)))
    with session.transaction() as cursor:
        if _schema(records.read(cursor, name, lock=True), name, pipeline) != schema:
            return NOTHING  # it changes just now: the next time
        landing = Landing(cursor, plan, pace)

        def made(upserts: pa.Table, deletes: pa.Table) -> list[Part]:
            return parts(cursor, plan, landing, upserts, deletes)

        place = Quarantine(name, pipeline, schema.key, delivery.quarantine_rows)
        return again(cursor, place, schema, made)


def _schema(record: Record | None, name: TableId, pipeline: str) -> TableSchema:
    if record is None or record.schema is None or record.pipeline != pipeline:
        raise _gone(name)
    return record.schema


def _gone(name: TableId) -> DivergedError:
    return DivergedError(
        f"{name} is gone, or no longer a table of this pipeline",
        hint=f"headrace quarantine drop --table {name}",
        table=str(name),
    )
