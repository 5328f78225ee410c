"""What a stream has gathered, from raw text to change batches, in the order of the commits.

Rows of a streamed transaction come before its commit. Where their table looks as it did when it was
last known, they are read as they come; else they are kept raw, because what the transaction itself
made of the table is to be seen in the catalog only once it has committed. Until then nothing is
concluded from such a transaction: it may come to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np

from headrace.connectors.postgres.decoding import decode_batch, with_end, without_commit
from headrace.connectors.postgres.raw_spill import RawSpill
from headrace.connectors.postgres.schemas import CatalogSession, SchemaRegistry
from headrace.errors import (
    HeadraceError,
    SourceError,
    SourceUnavailableError,
    UnsupportedSchemaChangeError,
)
from headrace.model import (
    ChangeBatch,
    DecodedChanges,
    Finished,
    Lsn,
    TableId,
    TableSchema,
    TransactionEnd,
)
from headrace.pgoutput import Decoded, RawBatch, Relation, Streamed
from headrace.pgoutput import TransactionEnd as RawEnd

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class EarlyRead:
    """As what rows were read before their commit, and the subtransactions that they came of."""

    relation: Relation
    schema: TableSchema
    xids: set[int] = field(default_factory=set)


@dataclass
class InProgress:
    """A transaction of which some rows were handed over, in blocks or after its commit."""

    read: dict[TableId, dict[int, EarlyRead]] = field(default_factory=dict)
    late: set[TableId] = field(default_factory=set)  # tables that are to be read at its commit
    passed_over: set[TableId] = field(default_factory=set)  # nobody wanted them at the time
    rolled_back: set[int] = field(default_factory=set)
    spill: RawSpill | None = None

    def unfollowed(self, registry: SchemaRegistry) -> set[TableId]:
        """Of the tables that were read, those that nobody wants any more."""
        return {table for table in self.read if not registry.wanted(table)}

    def keep(self, raw: RawBatch) -> None:
        self.spill = self.spill or RawSpill()
        self.spill.add(raw)

    def kept(self) -> Iterator[RawBatch]:
        """What was kept raw, without what was rolled back."""
        gone = np.fromiter(self.rolled_back, np.uint32, len(self.rolled_back))
        for raw in self.spill.read() if self.spill else ():
            rest = raw.without(gone)
            if rest is not None:
                yield rest

    def close(self) -> None:
        if self.spill is not None:
            self.spill.close()


@dataclass(frozen=True)
class TakenChanges:
    """What the decoder gathered; `decode` may run in another thread, one at a time and in order.

    `in_progress` is kept from one take of a session to the next, by xid.
    """

    to_lsn: Lsn
    decoded: Decoded
    registry: SchemaRegistry
    in_progress: dict[int, InProgress]

    @property
    def transactions(self) -> int:
        return len(self.decoded.transactions.end_lsns)

    @property
    def commit_ts(self) -> datetime | None:
        times = self.decoded.transactions.commit_ts
        return _datetime(int(times[-1])) if len(times) else None

    def decode(self) -> Iterator[DecodedChanges]:
        """Cast every column; a table that cannot be read goes to `failed`, the others go on.

        A transaction that was altering tables while it was streamed comes in several parts, so that
        memory stays bounded.
        """
        at, finished = 0, self._finished()
        with self.registry.catalog() as catalog:
            reading = _Reading(self.registry, catalog, self.in_progress)
            for streamed in self.decoded.streamed:
                if streamed.end is not None:
                    yield reading.whole(self.decoded.batches[at : streamed.after], finished)
                    yield from reading.committed(streamed, streamed.end)
                    at, finished = streamed.after, ()
            yield reading.whole(self.decoded.batches[at:], finished)
            for streamed in self.decoded.streamed:
                if streamed.end is None:
                    yield reading.part(streamed)

    def _finished(self) -> Sequence[Finished]:
        """The transaction that was handed over in part, all or nothing of it for each table."""
        end = self.decoded.finished
        if end is None:
            return []
        progress = self.in_progress.pop(end.xid, InProgress())
        left_out = progress.passed_over | progress.unfollowed(self.registry)
        return [Finished(end.xid, _end(end), left_out=frozenset(left_out))]


@dataclass(frozen=True)
class _Reading:
    """Reads raw batches, with one catalog session for all of a take."""

    registry: SchemaRegistry
    catalog: CatalogSession
    in_progress: dict[int, InProgress]

    def whole(self, batches: Iterable[RawBatch], finished: Sequence[Finished]) -> DecodedChanges:
        """Transactions that came after their commit, the last one perhaps in part."""
        committed: list[ChangeBatch] = []
        unfinished: list[tuple[int, ChangeBatch]] = []
        failed: dict[TableId, HeadraceError] = {}
        for raw in batches:
            batch = self._read(raw, failed)
            if raw.complete < len(raw.ops):
                self._note(raw, passed_over=batch is None)
            if batch is None:
                continue
            committed.extend(_slice(batch, 0, raw.complete))
            rest = _slice(batch, raw.complete, batch.num_rows)
            unfinished.extend((int(raw.xids[-1]), without_commit(part)) for part in rest)
        return DecodedChanges(committed, unfinished, finished, [*failed.items()])

    def _note(self, raw: RawBatch, *, passed_over: bool) -> None:
        """The last transaction comes in part: what its other parts have to know."""
        progress = self.in_progress.setdefault(int(raw.xids[-1]), InProgress())
        if passed_over:
            progress.passed_over.add(_table(raw.relation))
        else:
            progress.read.setdefault(_table(raw.relation), {})

    def _read(self, raw: RawBatch, failed: dict[TableId, HeadraceError]) -> ChangeBatch | None:
        """The batch, if its table is followed; one that cannot be read is given up."""
        table = _table(raw.relation)
        if table in failed or not self.registry.wanted(table):
            return None
        try:
            return decode_batch(raw, self.registry.of_relation(raw.relation, self.catalog))
        except SourceUnavailableError:
            raise
        except HeadraceError as error:
            self._give_up(table, error, failed)
            return None

    def _give_up(
        self, table: TableId, error: HeadraceError, failed: dict[TableId, HeadraceError]
    ) -> None:
        failed[table] = error
        self.registry.give_up(table)

    # -- streamed transactions ---------------------------------------------------------------------

    def part(self, streamed: Streamed) -> DecodedChanges:
        """Rows of a transaction in progress, or word that it came to nothing."""
        if streamed.aborted:
            self.in_progress.pop(streamed.xid).close()
            return DecodedChanges(finished=[Finished(streamed.xid, None)])
        progress = self.in_progress.setdefault(streamed.xid, InProgress())
        progress.rolled_back |= streamed.rolled_back
        read = [self._read_early(raw, progress) for raw in streamed.batches]
        return DecodedChanges(
            unfinished=[(streamed.xid, without_commit(batch)) for batch in read if batch]
        )

    def _read_early(self, raw: RawBatch, progress: InProgress) -> ChangeBatch | None:
        """The batch, if its table is followed and can be read before the commit."""
        table = _table(raw.relation)
        if not self.registry.wanted(table):
            progress.passed_over.add(table)
            return None
        batch = None if table in progress.late else self._provisional(raw)
        if batch is None:
            progress.late.add(table)  # with all that follows, which so stays in order
            progress.keep(raw)
        else:
            uses = progress.read.setdefault(table, {})
            use = uses.setdefault(id(raw.relation), EarlyRead(raw.relation, batch.schema))
            use.xids.update(np.unique(raw.xids).tolist())
        return batch

    def _provisional(self, raw: RawBatch) -> ChangeBatch | None:
        try:
            bound = self.registry.provisional(raw.relation, self.catalog)
            return None if bound is None else decode_batch(raw, bound)
        except SourceUnavailableError:
            raise
        except HeadraceError:  # the table is given up for it if the transaction commits
            return None

    def committed(self, streamed: Streamed, end: RawEnd) -> Iterator[DecodedChanges]:
        """What is left of a transaction that has committed."""
        known = streamed.xid in self.in_progress
        with closing(self.in_progress.pop(streamed.xid, InProgress())) as progress:
            progress.rolled_back |= streamed.rolled_back
            failed = self._check(progress)
            if known:
                unfollowed = progress.unfollowed(self.registry)
                void = frozenset(progress.rolled_back), frozenset(unfollowed)
                finished = [Finished(streamed.xid, _end(end), *void)]
                yield DecodedChanges(finished=finished, failed=[*failed.items()])
            for raw in progress.kept():
                yield self._late([raw], end)
        yield self._late(streamed.batches, end)

    def _late(self, batches: Iterable[RawBatch], end: RawEnd) -> DecodedChanges:
        failed: dict[TableId, HeadraceError] = {}
        read = [self._read(raw, failed) for raw in batches]
        committed = [with_end(batch, _end(end)) for batch in read if batch is not None]
        return DecodedChanges(committed, failed=[*failed.items()])

    def _check(self, progress: InProgress) -> dict[TableId, HeadraceError]:
        """Whether what was read early was read right; the tables of which it was not.

        What was rolled back let go of its tables' locks: others may have altered them since.
        """
        failed: dict[TableId, HeadraceError] = {}
        for table in progress.passed_over:
            if self.registry.wanted(table):
                self._give_up(table, _missed(table), failed)
        for table, uses in progress.read.items():
            for use in uses.values():
                if self.registry.wanted(table) and not use.xids <= progress.rolled_back:
                    self._require_same(use.relation, use.schema, failed)
        return failed

    def _require_same(
        self, relation: Relation, schema: TableSchema, failed: dict[TableId, HeadraceError]
    ) -> None:
        """The catalog tells, now that it shows what the transaction made, the same columns."""
        try:
            found = self.registry.of_relation(relation, self.catalog).schema
            if found.version != schema.version:
                raise _replaced(schema.table)
        except SourceUnavailableError:
            raise
        except HeadraceError as error:
            self._give_up(schema.table, error, failed)


def _missed(table: TableId) -> SourceError:
    return SourceError(
        f"{table}: a large transaction changed it before it was followed, and committed after",
        hint=f"headrace resync {table}",
    )


def _replaced(table: TableId) -> UnsupportedSchemaChangeError:
    return UnsupportedSchemaChangeError(
        f"{table}: a large transaction replaced columns by others of the same name and type",
        hint=f"headrace resync {table}",
    )


def _table(relation: Relation) -> TableId:
    return TableId(relation.namespace, relation.name)


def _slice(batch: ChangeBatch, start: int, stop: int) -> Iterator[ChangeBatch]:
    if stop > start:
        yield ChangeBatch(batch.schema, batch.data.slice(start, stop - start))


def _end(end: RawEnd) -> TransactionEnd:
    return TransactionEnd(Lsn(end.end_lsn), _datetime(end.commit_ts), end.xid)


def _datetime(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)
