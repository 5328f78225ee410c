"""A table built anew from a source's rows, and swapped in with its checkpoint.

The new generation is made like the live table and follows the source's columns while it is empty.
Rows that are refused, one by one or by what only the whole shows, are handed to the caller, who
parks them in the transaction of the swap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import psycopg
import pyarrow as pa

from headrace.connectors.postgres import building, generations
from headrace.connectors.postgres.bisection import (
    Operation,
    Part,
    Refused,
    TooManyRefusedError,
    land,
)
from headrace.connectors.postgres.building import Build, Built, SetAside
from headrace.connectors.postgres.evolution import fitting_statements
from headrace.connectors.postgres.load import copy_parts
from headrace.connectors.postgres.merge import Landing, WritePlan, upsert_staging
from headrace.connectors.postgres.quarantine import Quarantine, overflow, too_many
from headrace.connectors.postgres.reading import read_table
from headrace.connectors.postgres.refusals import FOREIGN_KEY, Refusal
from headrace.connectors.postgres.staging import Pace, copy_rows
from headrace.connectors.postgres.target_session import (
    Connection,
    Cursor,
    TargetSession,
    connect_target,
    target_errors,
)
from headrace.connectors.postgres.target_table import read_target
from headrace.connectors.postgres.writing import write_plan
from headrace.model import Delivery, Rejected, RowPart, TableSchema

# Encoding and the server's own work share the load: two connections keep two cores busy, four hide
# the latency of a server elsewhere.
CONNECTIONS: Final = 4

# What was refused, to be parked in the transaction that writes the checkpoint.
Commit = Callable[[Cursor, Sequence[Refused], Sequence[Rejected]], None]


def rebuild(
    session: TargetSession,
    place: Quarantine,
    schema: TableSchema,
    delivery: Delivery,
    pace: Pace,
    parts: Sequence[RowPart],
    rejected: Callable[[], Sequence[Rejected]],
    commit: Commit,
    former: TableSchema | None = None,
) -> None:
    """Build a new generation of `schema.table` from `parts`, and swap it in.

    `former` is what the live table holds, where that is known.

    Raises:
        UnswappableError: it can be changed in place only.
        QuarantineFullError: too many rows are refused; the live table is as it was.
        TableBusyError: others hold the live table.
        DestinationConflictError: somebody changed its definition meanwhile.
    """
    connection = session.connection()
    with target_errors(session.settings):
        build = building.begin(connection, schema.table, place.pipeline, schema.key)
        try:
            loader = _loader(connection, build, schema, former, delivery, place, pace)
            copy_parts(lambda: connect_target(session.settings), parts, loader.write, CONNECTIONS)
            built = building.finish(
                lambda: connect_target(session.settings), build, place.pipeline, CONNECTIONS
            )
            aside, waiting = _set_aside(session, schema, place, built)
            generations.swap(
                connection,
                built,
                lambda cursor: commit(cursor, [*loader.refused, *waiting], [*rejected(), *aside]),
            )
        except BaseException:
            with suppress(psycopg.Error):  # a lost connection: the next build of it sweeps
                building.discard(connection, build)
            raise


def _loader(
    connection: Connection,
    build: Build,
    schema: TableSchema,
    former: TableSchema | None,
    delivery: Delivery,
    place: Quarantine,
    pace: Pace,
) -> _Loader:
    new = replace(schema, table=build.table, key=())
    with connection.transaction(), connection.cursor() as cursor:
        made = read_target(cursor, build.table)
        assert made is not None  # it was just made
        for statement in fitting_statements(new, made, delivery, former):
            cursor.execute(statement.encode())
        made = read_target(cursor, build.table)
        assert made is not None
    return _Loader(write_plan(new, made, delivery), place, pace)


@dataclass
class _Loader:
    """Writes batches into a table that nobody reads, from several threads."""

    plan: WritePlan
    place: Quarantine
    pace: Pace
    refused: list[Refused] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, connection: Connection, rows: pa.Table) -> None:
        """One batch, in the open transaction; rows that are refused are kept for the quarantine."""
        with connection.cursor() as cursor:
            part = Part(Operation.UPSERT, rows, self._landing(cursor))
            try:
                found = land(connection, [part], self.place.max_rows)
            except TooManyRefusedError as error:
                found = list(error.refused)
        with self.lock:
            self.refused += [replace(r, refusal=self._of_live(r.refusal)) for r in found]
            if len(self.refused) > self.place.max_rows:
                raise overflow(self.place, self.refused)

    def _of_live(self, refusal: Refusal) -> Refusal:
        """What was said of the table that is built, said of the one whose place it takes."""
        made, live = self.plan.table, self.place.table
        if (refusal.schema, refusal.table) != (made.schema, made.name):
            return refusal
        reason = refusal.reason.replace(f'"{made.name}"', f'"{live.name}"')
        return replace(refusal, reason=reason, schema=live.schema, table=live.name)

    def _landing(self, cursor: Cursor) -> Callable[[pa.Table], None]:
        plan = self.plan
        if all(column.lands_as_staged for column in plan.columns):
            return lambda rows: copy_rows(cursor, plan.relation, plan.columns, rows, self.pace)

        staging, landing = upsert_staging(plan), Landing(cursor, plan, self.pace)

        def stage(rows: pa.Table) -> None:
            cursor.execute(staging.ddl(missing_only=True))
            landing.upsert(rows)

        return stage


def _set_aside(
    session: TargetSession, schema: TableSchema, place: Quarantine, built: Built
) -> tuple[list[Rejected], list[Refused]]:
    """Rows that only the whole table showed to be wrong, read back from where they were put.

    Those that refer to nothing are refused as the server would: they wait for what they refer to.
    """
    orphans = sum(aside.rows for aside in built.set_aside if aside.foreign_key)
    total = sum(aside.rows for aside in built.set_aside)
    if total > place.max_rows:
        reasons = [a.reason for a in built.set_aside for _ in range(min(a.rows, 9))]
        raise too_many(place, reasons, waiting=total - orphans <= place.max_rows)
    rejected: list[Rejected] = []
    waiting: list[Refused] = []
    for aside in built.set_aside:
        asked = replace(schema, table=aside.table)
        with read_table(session.settings, aside.table) as reading:
            rows = pa.Table.from_batches(reading.rows(asked, schema.names), schema.arrow())
        if aside.foreign_key:
            waiting += _waiting(schema, rows, aside)
        else:
            rejected.append(Rejected(rows, aside.code, aside.reason))
    return rejected, waiting


def _waiting(schema: TableSchema, rows: pa.Table, aside: SetAside) -> Iterator[Refused]:
    table = schema.table
    why = Refusal(
        aside.code,
        aside.reason,
        FOREIGN_KEY,
        schema=table.schema,
        table=table.name,
        constraint=aside.foreign_key,
    )
    for place in range(rows.num_rows):
        yield Refused(Operation.UPSERT, place, rows.slice(place, 1), why)
