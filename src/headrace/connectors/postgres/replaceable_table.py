"""A Postgres table whose whole content can be replaced, brought back, and read.

What it does change by change is in `synced_table`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

import pyarrow as pa

from headrace.connectors.postgres import generations, quarantine, records
from headrace.connectors.postgres.bisection import Refused
from headrace.connectors.postgres.existing import key_findings
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.connectors.postgres.preparing import refuse_blockers
from headrace.connectors.postgres.reading import Reading, read_table
from headrace.connectors.postgres.rebuild import rebuild
from headrace.connectors.postgres.reconcile import present_staging, reconcile
from headrace.connectors.postgres.snapshot_files import snapshot_part
from headrace.connectors.postgres.staging import ensure
from headrace.connectors.postgres.synced_table import PostgresTable, stagings
from headrace.connectors.postgres.target_session import Cursor, make_durable, target_errors
from headrace.errors import UnsupportedSchemaChangeError, UnswappableError
from headrace.failpoints import hit
from headrace.model import (
    DELETED_AT,
    Checkpoint,
    OnDelete,
    Rejected,
    RowPart,
    SchemaPolicy,
    TableSchema,
)

UNDONE: Final = "its last rebuild was undone; headrace resync {} builds it anew"

log = logging.getLogger(__name__)


class ReplaceableTable(PostgresTable):
    """Fulfils `SyncedTable`; used by one thread at a time."""

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """Replace the whole content by snapshot files, in one commit that holds the checkpoint."""
        self.prepare(schema)
        self.replace(schema, [snapshot_part(file) for file in files], at)

    def replace(
        self,
        schema: TableSchema,
        parts: Sequence[RowPart],
        at: Checkpoint,
        rejected: Callable[[], Sequence[Rejected]] = tuple,
    ) -> str | None:
        """Make `parts` the whole content, atomically with the checkpoint.

        A new generation is built beside the table and swapped in; the former one stays for `undo`.
        Where that would lose something, the table is changed in place, in one transaction: returns
        what would be lost.

        Raises:
            QuarantineFullError: too many rows are refused; nothing was applied.
            UnsuitableTableError: the table cannot hold `schema`.
            DestinationUnavailableError: the connection was lost; call again.
        """
        self._plan = self._waiting = None
        schema = self._named(schema)
        why = self._make_way(schema)
        if why is None:
            try:
                self._rebuild(schema, parts, at, rejected)
            except UnswappableError as error:
                why = error.message
            else:
                return None
        log.info("table=%s changed in place, not built anew: %s", self.name, why)
        self._reconcile(schema, parts, at, rejected)
        return why

    def _make_way(self, schema: TableSchema) -> str | None:
        """Let the table follow the schema; why it cannot be swapped, or None if it can.

        A table that cannot follow can still be swapped for one that is made for the schema.
        """
        record = self._read()
        unable = self._unable_to_follow(schema)
        with self._session.transaction() as cursor:
            target = self._target(cursor)
        if unable is not None and any(target.column(name) is None for name in schema.key):
            raise self._stuck(unable, "it has not the columns of the key")
        refuse_blockers(self.name, key_findings(schema, target, self._delivery))
        why = self._unswappable(schema, filled=record is not None and record.at is not None)
        if why is not None and unable is not None:
            raise self._stuck(unable, why)
        return why

    def _stuck(
        self, unable: UnsupportedSchemaChangeError, why: str
    ) -> UnsupportedSchemaChangeError:
        """Neither way is open: only another table will do."""
        away = f"ALTER TABLE {qualified(self.name)} RENAME TO {quoted(f'{self.name.name}_former')}"
        return UnsupportedSchemaChangeError(
            f"{unable.message}, and it cannot be built anew: {why}",
            hint=f"{away};\nheadrace resync {self.name} makes another one then",
            table=str(self.name),
        )

    def _unable_to_follow(self, schema: TableSchema) -> UnsupportedSchemaChangeError | None:
        """Follow the schema, whatever the policy: somebody asked for the table to be built anew."""
        try:
            self._follow(schema, replace(self._delivery, schema_policy=SchemaPolicy.EVOLVE))
        except UnsupportedSchemaChangeError as error:
            return error
        return None

    def _unswappable(self, schema: TableSchema, *, filled: bool) -> str | None:
        if filled and self._delivery.on_delete is not OnDelete.DELETE:
            return "rows that the source lost stay"
        former = self._former_schema()
        gone = former.names if former is not None and self._delivery.drop_columns else ()
        columns = [*schema.names, *gone, DELETED_AT]
        with target_errors(self._session.settings):
            return generations.swappable(self._session.connection(), self.name, columns)

    def _rebuild(
        self,
        schema: TableSchema,
        parts: Sequence[RowPart],
        at: Checkpoint,
        rejected: Callable[[], Sequence[Rejected]],
    ) -> None:
        def commit(cursor: Cursor, refused: Sequence[Refused], more: Sequence[Rejected]) -> None:
            record = self._lock(cursor)
            self._check_unmoved(record)
            self._settle(cursor, schema, refused, more, at)

        place = self._place(schema.key)
        rebuild(
            self._session,
            place,
            schema,
            self._delivery,
            self._pace,
            parts,
            rejected,
            commit,
            self._former_schema(),
        )
        self._read()

    def _former_schema(self) -> TableSchema | None:
        """What the table holds, as far as it was recorded."""
        return None if self._seen is None else self._seen.schema

    def _reconcile(
        self,
        schema: TableSchema,
        parts: Sequence[RowPart],
        at: Checkpoint,
        rejected: Callable[[], Sequence[Rejected]],
    ) -> None:
        plan = self._plan_for(schema)
        ensure(self._session, [*stagings(plan), present_staging(plan)])
        with self._writing() as cursor:
            record = self._lock(cursor)
            self._check_unmoved(record)
            place = self._place(schema.key)
            refused, contested = reconcile(cursor, plan, schema, place, self._pace, parts)
            self._settle(cursor, schema, refused, [*rejected(), *contested], at)
            hit("postgres.reconciled")
        self._read()

    def _settle(
        self,
        cursor: Cursor,
        schema: TableSchema,
        refused: Sequence[Refused],
        rejected: Sequence[Rejected],
        at: Checkpoint,
    ) -> None:
        """The content is new: so is what is parked, and where the table stands."""
        make_durable(cursor)
        quarantine.clear(cursor, self.name)
        quarantine.park(cursor, self._place(schema.key), refused, rejected, at)
        records.write(
            cursor,
            self.name,
            self._pipeline,
            at,
            schema=schema,
            loaded=True,
            rules=self._rules,
        )

    def read(self, schema: TableSchema, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows as `schema`'s types; those marked as deleted are left out."""
        marks = self._delivery.on_delete is OnDelete.MARK
        with self.reading() as reading:
            yield from reading.rows(self._named(schema), columns, only_live=marks)

    def reading(self) -> AbstractContextManager[Reading]:
        """The table as of one moment, with what is recorded of it; see `reading.read_table`."""
        return read_table(self._session.settings, self.name)

    def undo(self) -> tuple[str, ...]:
        """Bring the former generation back, with its checkpoint; the table is held then.

        Returns statements that were true of the table and could not be carried over. Hold the
        pipeline's claim.

        Raises:
            NoGenerationError: there is none.
            TableBusyError: others hold the table.
        """
        with target_errors(self._session.settings):
            connection = self._session.connection()
            return generations.undo(connection, self.name, UNDONE.format(self.name))
