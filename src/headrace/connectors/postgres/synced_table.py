"""One table of a Postgres database, kept as its source by net changes in transactions.

Rows, what could not be applied, and the checkpoint are committed together: each change is there
exactly once, and a reader sees whole commits of the source only (DESIGN.md §13, 3 and 11). A COMMIT
whose outcome was lost with its connection is learnt from the checkpoint by the next call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import psycopg
from psycopg import sql

from headrace.connectors.postgres import foreign_keys, preparing, quarantine, records, replay
from headrace.connectors.postgres.check_target import check_table
from headrace.connectors.postgres.evolution import SchemaStep, schema_steps, unsupported
from headrace.connectors.postgres.existing import judge
from headrace.connectors.postgres.identifiers import relation
from headrace.connectors.postgres.landing import land_batch
from headrace.connectors.postgres.merge import (
    Landing,
    WritePlan,
    delete_staging,
    fill_staging,
    upsert_staging,
)
from headrace.connectors.postgres.parts import parts
from headrace.connectors.postgres.quarantine import Quarantine
from headrace.connectors.postgres.records import Record
from headrace.connectors.postgres.replay import Replayed
from headrace.connectors.postgres.staging import Pace, Staging, ensure
from headrace.connectors.postgres.table_locks import holders
from headrace.connectors.postgres.target_session import (
    Cursor,
    TargetSession,
    make_durable,
    only_row,
    target_errors,
)
from headrace.connectors.postgres.target_table import Target, read_target
from headrace.connectors.postgres.writing import write_plan
from headrace.errors import (
    DestinationConflictError,
    DivergedError,
    HeadraceError,
    TableBusyError,
)
from headrace.failpoints import hit
from headrace.model import (
    Checkpoint,
    Delivery,
    NetChanges,
    TableId,
    TableSchema,
)
from headrace.model.finding import Finding

# Between two attempts at an ALTER TABLE those who queued up behind us get their turn.
LOCK_ATTEMPTS: Final = 10
_LOCK_TIMEOUT: Final = "SET LOCAL lock_timeout = '1s'"

# Views and the like stand on the column.
_DEPENDED_UPON: Final = (
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.DependentObjectsStillExist,
)
_UNKNOWN_TYPE: Final = (psycopg.errors.UndefinedObject, psycopg.errors.InvalidSchemaName)

# Up to so many bytes counting takes milliseconds; above, the planner's estimate has to do.
COUNTED_BYTES: Final = 16 << 20

_SIZE: Final = "SELECT pg_catalog.pg_relation_size(%s)"


class PostgresTable:
    """Fulfils `SyncedTable`; used by one thread at a time."""

    def __init__(
        self,
        session: TargetSession,
        name: TableId,
        pipeline: str,
        delivery: Delivery,
        pace: Pace,
    ) -> None:
        self.name = name
        self._session = session
        self._pipeline = pipeline
        self._delivery = delivery
        self._pace = pace
        self._seen: Record | None = None  # the record as we last read or wrote it
        self._plan: tuple[TableSchema, WritePlan] | None = None
        self._rules: str | None = None
        self._waiting: int | None = None  # parked rows that wait for others, where we know

    # -- where it stands ---------------------------------------------------------------------------

    def standing(self) -> Checkpoint | None:
        """Where the table stands, whatever log that is in; None if it never took anything from
        this pipeline."""
        record = self._mine()
        return None if record is None else record.at

    def checkpoint(self, log_id: str) -> Checkpoint | None:
        """Where this table stands in that log; None if it never took anything from it."""
        at = self.standing()
        return at if at is not None and at.log_id == log_id else None

    def held(self) -> str | None:
        """Why the table is to be left alone (its last rebuild was undone), or None."""
        record = self._mine()
        return None if record is None else record.held

    def under(self, rules: str) -> None:
        """Note these rules with every checkpoint from now on: all rows are made by them."""
        self._rules = rules

    def made_by(self) -> str | None:
        """The rules that all rows are made by, as noted last; None where nobody did."""
        record = self._mine()
        return None if record is None else record.rules

    def rest(self) -> float:
        """A commit costs the next one's readers nothing: the next may follow at once."""
        return 0.0

    def settle(self) -> None:
        """Nothing goes on beside a commit."""

    def close(self) -> None:
        self._session.close()

    def check(self, schema: TableSchema) -> list[Finding]:
        """What keeps the table from taking rows of `schema`; it may be missing."""
        with self._session.transaction() as cursor:
            return check_table(cursor, self._pipeline, self._named(schema), self._delivery)

    def _named(self, schema: TableSchema) -> TableSchema:
        """A source's schema may bear the source's name of the table."""
        return replace(schema, table=self.name)

    # -- making it ---------------------------------------------------------------------------------

    def prepare(self, schema: TableSchema) -> None:
        """Make the table if it is missing, else make sure that it can hold `schema`.

        Raises:
            ForeignTableError: another pipeline's table, or one with somebody else's rows.
            UnsuitableTableError: a column, type, key or constraint does not fit.
        """
        self._plan = None
        schema = self._named(schema)
        with self._session.transaction() as cursor:
            make_durable(cursor)
            self._seen = preparing.prepare(
                cursor, self.name, self._pipeline, schema, self._delivery
            )

    def applied_schema(self) -> TableSchema | None:
        """What was applied last, or followed since; None if the table never took anything."""
        record = self._mine()
        return None if record is None or record.at is None else record.schema

    def planned(self, schema: TableSchema) -> list[SchemaStep]:
        """What would be done to the table, now, for it to take rows of `schema`.

        Raises:
            UnsupportedSchemaChangeError: the table cannot follow its source's schema.
            UnsuitableTableError: it cannot hold it.
        """
        schema = self._named(schema)
        with self._session.transaction() as cursor:
            target = read_target(cursor, self.name)
            record = records.read(cursor, self.name) if records.are_there(cursor) else None
            if target is None:
                return [preparing.creation(self.name, schema, self._delivery)]
            if record is None or record.at is None or record.schema is None:
                return []
            return schema_steps(record.schema, schema, target, self._delivery)

    def evolve(self, schema: TableSchema) -> None:
        """Follow the source's schema, in one transaction with the record of it.

        Raises:
            UnsupportedSchemaChangeError: the table cannot follow, or the policy is to freeze.
            TableBusyError: others held the table for too long; nothing was changed.
        """
        self._follow(schema, self._delivery)

    def _follow(self, schema: TableSchema, delivery: Delivery) -> None:
        """As `evolve`, by the policy of `delivery`."""
        self._plan = None
        schema = self._named(schema)
        for attempts_left in reversed(range(LOCK_ATTEMPTS)):
            try:
                self._take_steps(schema, delivery)
            except psycopg.errors.LockNotAvailable as error:
                if not attempts_left:
                    raise self._busy("its columns were not changed") from error
            else:
                return

    def _take_steps(self, schema: TableSchema, delivery: Delivery) -> None:
        """Wait for the table's lock shortly only: whoever comes later queues up behind us."""
        with self._session.transaction(but=psycopg.errors.LockNotAvailable) as cursor:
            record = self._lock(cursor)
            self._check_unmoved(record)
            steps = schema_steps(record.schema or schema, schema, self._target(cursor), delivery)
            make_durable(cursor)
            cursor.execute(_LOCK_TIMEOUT)
            for step in steps:
                self._take_step(cursor, step)
            records.own(cursor, self.name, self._pipeline, schema)
            hit("postgres.evolved")
        self._seen = replace(record, schema=schema)

    def _take_step(self, cursor: Cursor, step: SchemaStep) -> None:
        try:
            for statement in step.sql:
                cursor.execute(statement.encode())
        except _DEPENDED_UPON as error:
            why = error.diag.message_detail or error.diag.message_primary
            raise unsupported(self.name, f"{step.sentence.split(': ')[-1]}: {why}") from error
        except psycopg.DataError as error:  # rows that are still to change are in the way
            why = error.diag.message_primary
            raise unsupported(self.name, f"{step.sentence.split(': ')[-1]}: {why}") from error
        except _UNKNOWN_TYPE as error:
            raise preparing.unknown_type(self.name, error) from error

    def _busy(self, undone: str) -> TableBusyError:
        with target_errors(self._session.settings):
            held_by = holders(self._session.connection(), self.name)
        return TableBusyError(
            f"{self.name} is in use, and {undone}; it is held by {held_by}",
            hint="Headrace tries again; SELECT * FROM pg_locks JOIN pg_stat_activity USING (pid) "
            "shows who holds it",
            table=str(self.name),
        )

    # -- reading it --------------------------------------------------------------------------------

    def count(self) -> int:
        """About how many rows the table holds: the planner scales its density to today's size."""
        with self._session.transaction() as cursor:
            target = read_target(cursor, self.name)
            if target is None:
                return 0
            table = relation(self.name)
            if self._is_small(cursor, target):
                query = sql.SQL("SELECT count(*) FROM {}").format(table)
                return int(only_row(cursor.execute(query))[0])
            plan = sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {}").format(table)
            (explained,) = only_row(cursor.execute(plan))
            return int(explained[0]["Plan"]["Plan Rows"])

    def _is_small(self, cursor: Cursor, target: Target) -> bool:
        """A partitioned table's own size is none: its partitions have it."""
        size = int(only_row(cursor.execute(_SIZE, [target.oid]))[0])
        return target.kind == "r" and size <= COUNTED_BYTES

    # -- changing it -------------------------------------------------------------------------------

    def apply(self, changes: NetChanges, to: Checkpoint, before: Iterable[NetChanges] = ()) -> None:
        """Apply changes and checkpoint in one commit; at or before the checkpoint, do nothing.

        `before`: parts of the changes, which are applied first, in the same transaction.

        Raises:
            DestinationConflictError: another run has moved the table's checkpoint.
            DestinationUnavailableError: the connection was lost; call again.
            DivergedError: the table lacks rows that the source says it must have.
            QuarantineFullError: too many rows are refused; nothing was applied.
            TableBusyError: others held the table, or its rows, for too long; nothing was applied.
        """
        try:
            self._apply(changes, to, before)
        except HeadraceError:
            self._plan = self._waiting = None  # somebody may have changed the table
            raise

    @contextmanager
    def _writing(self) -> Iterator[Cursor]:
        """A transaction that changes rows; who holds them for too long is told."""
        try:
            with self._session.transaction(but=psycopg.errors.LockNotAvailable) as cursor:
                yield cursor
        except psycopg.errors.LockNotAvailable as error:
            raise self._busy("nothing was applied") from error

    def _apply(self, changes: NetChanges, to: Checkpoint, before: Iterable[NetChanges]) -> None:
        plan = self._plan_for(changes.schema)
        ensure(self._session, stagings(plan, fills=bool(changes.fills or before)))
        with self._writing() as cursor:
            record = self._lock(cursor)
            if _is_at_or_after(record.at, to):
                self._seen = record
                return
            self._check_unmoved(record)
            place = self._place(plan.key)
            self._waiting = land_batch(cursor, place, plan, self._pace, changes, to, before)
            written = self._write(cursor, record, changes, to)
            hit("postgres.applied")
        hit("postgres.committed")
        self._seen = written

    def _place(self, key: tuple[str, ...]) -> Quarantine:
        return Quarantine(self.name, self._pipeline, key, self._delivery.quarantine_rows)

    def retry(self, ids: Sequence[int] | None = None) -> Replayed:
        """Apply parked rows again, those of `ids` or all; those that pass leave the quarantine.

        Raises:
            DestinationConflictError: the table follows its source's schema just now.
            DivergedError: the table never took anything, or is gone.
        """
        record = self._read()
        if record is None or record.schema is None:
            raise self._unrecorded()
        with self._replaying(record.schema) as (cursor, place, make):
            return replay.retry(cursor, place, record.schema, make, ids)

    @contextmanager
    def _replaying(
        self, schema: TableSchema
    ) -> Iterator[tuple[Cursor, Quarantine, replay.MakeParts]]:
        """A transaction that holds the record of a table that has `schema`: an apply waits for it,
        or is waited for, and neither sees the other half done."""
        plan = self._plan_for(schema)
        ensure(self._session, stagings(plan))
        with self._writing() as cursor:
            if self._lock(cursor).schema != schema:
                raise self._moved("columns")
            make = partial(parts, cursor, plan, Landing(cursor, plan, self._pace))
            yield cursor, self._place(plan.key), make

    def _write(self, cursor: Cursor, record: Record, changes: NetChanges, to: Checkpoint) -> Record:
        schema, when = self._named(changes.schema), changes.commit_ts
        new = None if record.schema is not None and record.schema.same_shape(schema) else schema
        records.write(
            cursor, self.name, self._pipeline, to, commit_ts=when, schema=new, rules=self._rules
        )
        return replace(
            record,
            at=to,
            commit_ts=when or record.commit_ts,
            schema=new or record.schema,
            rules=self._rules or record.rules,
        )

    def parents(self) -> Mapping[TableId, bool]:
        """The other tables that its rows refer to, and whether each ever took anything."""
        with self._session.transaction() as cursor:
            known = records.are_there(cursor)
            names = foreign_keys.parents(cursor.connection, self.name)
            kept = {name: records.read(cursor, name) if known else None for name in names}
        return {name: record is not None and record.at is not None for name, record in kept.items()}

    def retry_waiting(self) -> int:
        """Apply parked rows whose foreign key can be fulfilled by now; how many others are left.

        Asks nothing where this run knows that none waits.

        Raises:
            DivergedError: the table is gone, or no longer this pipeline's.
        """
        if self._waiting == 0:
            return 0
        with self._session.transaction() as cursor:
            waits = records.are_there(cursor) and quarantine.waits(cursor, self.name)
            record = records.read(cursor, self.name) if waits else None
        if record is None or record.schema is None:
            self._waiting = 0
            return 0
        with self._replaying(record.schema) as (cursor, place, make):
            left = replay.retry_waiting(cursor, place, record.schema, make).waiting
        self._waiting = left
        return left

    # -- what is known of it -----------------------------------------------------------------------

    def _read(self) -> Record | None:
        """The table's record; none where it is another pipeline's, which `prepare` refuses."""
        with self._session.transaction() as cursor:
            found = records.read(cursor, self.name) if records.are_there(cursor) else None
        self._seen = found if found is not None and found.pipeline == self._pipeline else None
        return self._seen

    def _mine(self) -> Record | None:
        """What is recorded, unless it is of another pipeline's table."""
        record = self._read()
        return record if record is not None and record.pipeline == self._pipeline else None

    def _lock(self, cursor: Cursor) -> Record:
        record = records.read(cursor, self.name, lock=True)
        if record is None or record.pipeline != self._pipeline:
            raise self._unrecorded()
        return record

    def _unrecorded(self) -> DivergedError:
        return DivergedError(
            f"{self.name} is not recorded as a table of the pipeline {self._pipeline!r}",
            hint=f"headrace resync {self.name}",
            table=str(self.name),
        )

    def _check_unmoved(self, record: Record) -> None:
        if self._seen is not None and self._seen.at != record.at:
            raise self._moved("checkpoint")

    def _moved(self, what: str) -> DestinationConflictError:
        return DestinationConflictError(
            f"the {what} of {self.name} was changed by another run of the pipeline",
            hint="stop the other run; this one looks again",
            table=str(self.name),
        )

    def _plan_for(self, schema: TableSchema) -> WritePlan:
        if self._plan is None or self._plan[0] != schema:
            with self._session.transaction() as cursor:
                target = self._target(cursor)
            mine = self._named(schema)
            preparing.refuse_blockers(self.name, judge(mine, target, self._delivery))
            self._plan = (schema, write_plan(mine, target, self._delivery))
        return self._plan[1]

    def _target(self, cursor: Cursor) -> Target:
        target = read_target(cursor, self.name)
        if target is None:
            raise DivergedError(
                f"{self.name} is gone: somebody dropped it",
                hint=f"headrace resync {self.name}",
                table=str(self.name),
            )
        return target


def stagings(plan: WritePlan, *, fills: bool = False) -> Iterator[Staging]:
    """The staging tables that a batch needs."""
    yield delete_staging(plan)
    yield upsert_staging(plan)
    if fills:
        yield upsert_staging(plan, numbered=True)
        yield fill_staging(plan)


def _is_at_or_after(at: Checkpoint | None, to: Checkpoint) -> bool:
    """A commit may be applied in parts, which end at LSNs; a log without LSNs may have 0."""
    if at is None or at.log_id != to.log_id or at.commit < to.commit:
        return False
    return at.commit > to.commit or not at.lsn < to.lsn or not at.lsn
