"""Applies a stretch of one table's changes to its destination, in one commit for each schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from headrace.engine.keyed import keyed
from headrace.engine.parting import Parts, held_at_once, read_together
from headrace.engine.shaping import net_of, shaped
from headrace.engine.table_state import Stretch, TableState, is_held_together
from headrace.engine.versions import Section, committed_at, sections
from headrace.log import LogReader
from headrace.model import (
    ChangeBatch,
    Checkpoint,
    Lsn,
    Mode,
    NetChanges,
    RowCounts,
    TableSchema,
    no_changes,
    no_rows,
)


@dataclass(frozen=True)
class StretchApplier:
    """`went_on` is told of a table that took rows."""

    reader: LogReader
    went_on: Callable[[TableState], None]

    def apply(self, state: TableState, stretch: Sequence[Stretch]) -> None:
        """Take the table to where the stretch ends. Raises as the destination does."""
        position = state.checkpoint
        assert position is not None  # ready() sees to it
        files = [file for part in stretch if part.to_lsn > position.lsn for file in part.files]
        found = sections(files, position.lsn)
        for section in found[:-1]:
            # Of the commit that its last transaction is in, more is to come.
            commit = next(s.commit for s in stretch if s.to_lsn >= section.to) - 1
            to = Checkpoint(position.log_id, commit, section.to)
            self._apply_section(state, stretch, section, None, to)
        last = stretch[-1]
        to = Checkpoint(position.log_id, last.commit, max(position.lsn, last.to_lsn))
        if found:
            self._apply_section(state, stretch, found[-1], last.commit_ts, to)
        state.checkpoint = to

    def _apply_section(
        self,
        state: TableState,
        stretch: Sequence[Stretch],
        section: Section,
        commit_ts: datetime | None,
        to: Checkpoint,
    ) -> None:
        """Apply changes to the columns that the newest of them were made under; `commit_ts`, where
        it is known, is when the stretch was committed."""
        position, target = state.checkpoint, state.target
        assert position is not None
        schema = keyed(self.reader.schema(target.table, section.version), target.key)
        if schema.version != state.schema_version:
            target.destination.evolve(shaped(schema, target.shape))
            state.schema_version = schema.version
        after = max(position.lsn, stretch[0].from_lsn)
        net = partial(self._net, state, schema, position.lsn, after)
        read = partial(self._changes, state, section)
        few = is_held_together(section.rows, section.bytes)
        batches = held_at_once(read()) if few else None
        if batches is not None:
            self._apply_at_once(state, batches, net, to)
        else:
            whole = target.shape.mode is Mode.SCD2
            rest = no_changes(shaped(schema, target.shape))
            with closing(Parts(read, net, whole_transactions=whole)) as parts:
                target.destination.apply(replace(rest, commit_ts=commit_ts, after=after), to, parts)
            self._took(state, parts.rows, parts.counts, to, is_empty=parts.is_empty)

    def _apply_at_once(
        self,
        state: TableState,
        batches: Sequence[ChangeBatch],
        net: Callable[[Sequence[ChangeBatch]], NetChanges],
        to: Checkpoint,
    ) -> None:
        if not batches:
            return
        # Changes that come to nothing are committed too: in between, the source was another.
        changes = net(batches)
        state.target.destination.apply(changes, to)
        rows = sum(batch.num_rows for batch in batches)
        self._took(state, rows, changes.counts, to, is_empty=changes.is_empty)

    def _took(
        self, state: TableState, rows: int, counts: RowCounts, to: Checkpoint, *, is_empty: bool
    ) -> None:
        state.checkpoint = state.durable = to
        if not is_empty:
            self.went_on(state)
        state.took(rows, counts)

    def _changes(self, state: TableState, section: Section) -> Iterator[ChangeBatch]:
        key = state.target.key
        for files in read_together(section.files):
            for batch in self.reader.read_all(files):
                part = section.part(batch)
                if part.num_rows:
                    yield replace(part, schema=keyed(part.schema, key))

    def _net(
        self,
        state: TableState,
        schema: TableSchema,
        since: Lsn,
        after: Lsn,
        batches: Sequence[ChangeBatch],
    ) -> NetChanges:
        """What changes come to under `schema`, which is that of the newest, if not of these."""
        made = committed_at(batches)
        if batches[-1].schema.version != schema.version:
            batches = [*batches, no_rows(schema)]
        target = state.target
        changes = net_of(target.shape, target.destination, schema, batches, since)
        return replace(changes, commit_ts=made, after=after)
