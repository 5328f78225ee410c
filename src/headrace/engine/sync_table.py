"""One table's way to the version that its source has: load, follow, heal, build anew.

The destination holds each step's rows and checkpoint in one commit, and is asked where the table
stands before anything else: a commit of which we never learnt is simply found done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa

from headrace import failpoints
from headrace.engine.diff import Bounds, TooManyRowsError
from headrace.engine.healing import file_changes, hash_changes
from headrace.engine.netting import append_rows, append_schema, as_feed, feed_schema, net
from headrace.engine.pinned import Pinned, pinned_rows
from headrace.engine.sync_state import Limits, SyncState, digest
from headrace.engine.transform import Transform
from headrace.errors import (
    CopyStoppedError,
    HistoryLostError,
    SourceUnavailableError,
    TableNotFoundError,
    UnsupportedSchemaChangeError,
)
from headrace.model import (
    Checkpoint,
    FeedPlan,
    FileDiff,
    Loss,
    LossKind,
    Lsn,
    Mode,
    NetChanges,
    RowCounts,
    RowPart,
    RowRules,
    SchemaPolicy,
    TableSchema,
    TableVersion,
    VersionChanges,
)
from headrace.model.delivery import QUARANTINE_ROWS

Versions = Sequence[VersionChanges]


class _BuildAnewError(Exception):
    """Changes are not to be merged; the message says why. Never leaves this module."""


class TableSync:
    """Takes one table along, from one thread; what it does is told in `state`."""

    def __init__(self, state: SyncState, limits: Limits, quitting: threading.Event) -> None:
        self._state = state
        self._source = state.target.source
        self._destination = state.target.destination
        self._rules = state.target.rules
        self._delivery = state.target.delivery
        self._appends = state.target.mode is Mode.APPEND
        self._limits = limits
        self._quitting = quitting
        self._counting = threading.Lock()
        self._current: tuple[TableSchema, Transform] | None = None
        self._digest = digest(self._rules, self._delivery)
        self._destination.under(self._digest)

    def catch_up(self) -> None:
        """Take the table to the version that its source has now.

        Raises:
            CopyStoppedError: the run ends before that.
            HeadraceError: whatever else keeps the table from getting there.
        """
        self._go_on()
        held = None if self._state.resync else self._destination.held()
        head = self._head()
        standing = self._destination.standing()
        self._state.saw(head, standing)
        if held is not None:
            self._state.hold(held)
            return
        try:
            self._advance(standing, head)
        except _BuildAnewError as why:
            in_place = self._load(head, standing)
            self._state.note(_rebuilt(head, str(why), in_place))
        self._state.arrived()

    def _head(self) -> TableVersion:
        """A table that was there, and is not to be found now, may be back with its storage."""
        try:
            return self._source.head()
        except TableNotFoundError as error:
            if self._state.head is None:
                raise
            raise SourceUnavailableError(
                f"{self._source.name} was there before: {error.message}", hint=error.hint
            ) from error

    def _advance(self, standing: Checkpoint | None, head: TableVersion) -> None:
        if standing is None:
            self._load(head, None)
        elif self._state.resync:
            raise _BuildAnewError("a resync was asked for")
        elif self._rules_changed():
            self._obey(standing, head)
        else:
            self._follow_from(standing, head)

    def _follow_from(self, standing: Checkpoint, head: TableVersion) -> None:
        if standing == _checkpoint(head):
            return
        plan = self._source.plan(standing, head.number)
        if plan.loss is not None:
            self._heal(standing, head, plan.loss)
        else:
            self._follow(plan, head.log_id)

    def _rules_changed(self) -> bool:
        """Whether rows stand there that other rules made."""
        if self._state.caught_up:  # by this run: nobody else may write them
            return False
        known = self._destination.made_by()
        return known is not None and known != self._digest

    def _obey(self, standing: Checkpoint, head: TableVersion) -> None:
        """Let the rows that stand be as the rules of now make them; appended ones are history."""
        changed = "the rules of the table changed"
        if self._appends:
            self._state.note(f"{changed}; rows that were appended before stay as they are")
            self._follow_from(standing, head)
            return
        schema = self._transform(self._named(self._source.schema(head.number))).schema
        self._destination.prepare(schema)  # for the column that marks deleted rows
        if self._destination.standing() is None:  # the table was gone
            self._load(head, None)
        else:
            self._heal(standing, head, Loss(LossKind.FEED_OFF, changed))

    def _go_on(self) -> None:
        if self._quitting.is_set():
            raise CopyStoppedError(
                f"{self._source.name}: the run ends", hint="the next run goes on from here"
            )

    # -- whole tables ------------------------------------------------------------------------------

    def _load(self, head: TableVersion, standing: Checkpoint | None) -> str | None:
        """Make the rows of one version the whole content: whatever comes next begins after it.

        Returns why that was done in place, if it was.
        """
        self._state.loads()
        schema = self._named(self._source.schema(head.number))
        transform = self._transform(schema)
        if standing is None or self._state.resync:  # whoever asks for one may have dropped it
            self._destination.prepare(transform.schema)
        parts, rejected = self._pinned(schema, head)
        counted = [self._counted(part) for part in parts]
        self._state.expected_rows = _total(parts)
        at = _checkpoint(head)
        in_place = self._destination.replace(transform.schema, counted, at, rejected)
        failpoints.hit("sync.loaded")
        self._state.applied(at, head.commit_ts, RowCounts(self._state.copied_rows))
        return in_place

    def _pinned(self, schema: TableSchema, at: TableVersion) -> Pinned:
        """The rows of a version as the destination is to have them, and what it must not."""
        parts = [self._stoppable(part) for part in self._source.rows(at.number)]
        transform = self._transform(schema)
        if self._appends:
            return transform.parts([_inserted(part, schema, at) for part in parts])
        return pinned_rows(
            schema,
            parts,
            at,
            transform,
            newest_by=self._rules.newest_by,
            quarantine_rows=self._delivery.quarantine_rows,
        )

    def _stoppable(self, part: RowPart) -> RowPart:
        def read() -> Iterator[pa.RecordBatch]:
            for batch in part.read():
                self._go_on()
                yield batch

        return RowPart(read, part.rows)

    def _counted(self, part: RowPart) -> RowPart:
        """Counts each row once, however often the part is read."""
        counted = 0

        def read() -> Iterator[pa.RecordBatch]:
            nonlocal counted
            rows = 0
            for batch in part.read():
                rows += batch.num_rows
                with self._counting:
                    self._state.copied_rows += max(rows - counted, 0)
                    counted = max(rows, counted)
                yield batch

        return RowPart(read, part.rows)

    # -- the feed ----------------------------------------------------------------------------------

    def _follow(self, plan: FeedPlan, log_id: str) -> None:
        """Apply version after version, each schema change where it belongs between them."""
        told = sum(version.rows for segment in plan.segments for version in segment.versions)
        self._rather_build_anew(told // 2)  # an update is told by two rows
        for segment in plan.segments:
            self._state.behind_since = segment.versions[0].commit_ts
            self._adopt(self._named(segment.schema), segment.versions[0].number)
            for versions in batches(segment.versions, self._limits.batch_rows):
                self._apply_versions(segment.schema, versions, log_id)

    def _apply_versions(self, schema: TableSchema, versions: Versions, log_id: str) -> None:
        """Apply versions in one commit, or in several if they are more than may be held."""
        self._go_on()
        self._state.behind_since = versions[0].commit_ts
        feed = self._feed(schema, versions)
        if feed is not None:
            last = versions[-1]
            at = TableVersion(log_id, last.number, last.commit_ts)
            self._deliver(self._net(self._named(schema), feed), at)
        elif len(versions) > 1:
            half = len(versions) // 2
            self._apply_versions(schema, versions[:half], log_id)
            self._apply_versions(schema, versions[half:], log_id)
        else:
            raise _BuildAnewError(f"version {versions[0].number} is too large to be merged")

    def _feed(self, schema: TableSchema, versions: Versions) -> pa.Table | None:
        """What the feed tells of `versions`; None if that is more than may be held in memory."""
        read: list[pa.RecordBatch] = []
        rows = held = 0
        for batch in self._source.changes(schema, versions[0].number, versions[-1].number):
            self._go_on()
            rows, held = rows + batch.num_rows, held + batch.nbytes
            too_many = rows > self._limits.merge_rows or held > self._limits.merge_bytes
            if too_many and (len(versions) > 1 or not self._appends):
                return None
            read.append(batch)
        return pa.Table.from_batches(read, feed_schema(schema))

    def _net(self, schema: TableSchema, feed: pa.Table) -> NetChanges:
        if self._appends:
            changes = append_rows(schema, feed)
        else:
            changes = net(schema, feed, self._rules.newest_by)
        return self._transform(schema).changes(changes)

    def _deliver(self, changes: NetChanges, at: TableVersion) -> None:
        """Apply what leads to version `at`, in one commit with the checkpoint."""
        rows = changes.upserts.num_rows + changes.deletes.num_rows
        self._rather_build_anew(rows)
        self._destination.apply(replace(changes, commit_ts=at.commit_ts), _checkpoint(at))
        failpoints.hit("sync.applied")
        self._state.applied(_checkpoint(at), at.commit_ts, changes.counts)

    def _rather_build_anew(self, rows: int) -> None:
        """Where so many rows changed that a merge would take longer; appended rows never do."""
        if self._appends or rows <= self._limits.rebuild_rows:
            return
        held = self._destination.count()
        if rows > self._delivery.rebuild_above * held:
            raise _BuildAnewError(f"{rows} rows changed of {held}")

    # -- schemas -----------------------------------------------------------------------------------

    def _named(self, schema: TableSchema) -> TableSchema:
        """A schema of the source under the destination's name: what is handed on bears that."""
        return replace(schema, table=self._destination.name)

    def _transform(self, schema: TableSchema) -> Transform:
        """The rules for one schema; those of the newest are kept."""
        if self._current is None or self._current[0] != schema:
            limit = self._delivery.quarantine_rows
            transform = transform_of(schema, self._rules, self._state.target.mode, limit)
            self._state.transforms.append(transform)
            self._current = (schema, transform)
        return self._current[1]

    def _adopt(self, schema: TableSchema, version: int) -> None:
        """Let the destination follow a schema that differs from what it was given last."""
        wanted, known = self._transform(schema).schema, self._destination.applied_schema()
        if known is not None and not _difference(known, wanted):
            return
        policy = self._delivery.schema_policy
        if known is not None and policy is SchemaPolicy.FREEZE:
            raise self._frozen(known, wanted, version)
        if policy is SchemaPolicy.RESYNC and not self._appends:
            raise _BuildAnewError(f"{_difference(known, wanted)} in version {version}")
        self._destination.evolve(wanted)

    def _frozen(
        self, known: TableSchema, wanted: TableSchema, version: int
    ) -> UnsupportedSchemaChangeError:
        table = self._source.name
        return UnsupportedSchemaChangeError(
            f"{table}: {_difference(known, wanted)} in version {version}, and schema: is freeze",
            hint=f"headrace resync {table} takes the columns as they are now; "
            "schema: evolve follows such changes",
            table=str(table),
        )

    # -- what the feed cannot tell -----------------------------------------------------------------

    def _heal(self, standing: Checkpoint, head: TableVersion, loss: Loss) -> None:
        """Find out what differs without the feed; if that cannot be done, build anew."""
        if self._appends:
            raise self._unhealable(loss)
        schema = self._named(self._source.schema(head.number))
        if not schema.key or _not_after(head, standing):
            raise _BuildAnewError(loss.reason)
        try:
            self._adopt(schema, head.number)
            changes, how = self._differences(schema, standing, head)
        except UnsupportedSchemaChangeError as error:
            if self._delivery.schema_policy is SchemaPolicy.FREEZE:
                raise
            raise _BuildAnewError(f"{loss.reason}; {error.message}") from error
        except TooManyRowsError:
            raise _BuildAnewError(f"{loss.reason}; too many rows to compare") from None
        self._deliver(changes, head)
        self._state.note(f"{loss.reason}; caught up with version {head.number} by comparing {how}")

    def _unhealable(self, loss: Loss) -> HistoryLostError:
        table = self._source.name
        again = f"headrace resync {table} begins anew with the rows that there are now"
        return HistoryLostError(
            f"{table}: {loss.reason}; changes that were lost cannot be appended",
            hint=f"{loss.hint}; {again}" if loss.hint else again,
            table=str(table),
        )

    def _differences(
        self, schema: TableSchema, standing: Checkpoint, head: TableVersion
    ) -> tuple[NetChanges, str]:
        diff = self._source.file_diff(standing, head.number)
        if diff is not None and diff.rows <= self._limits.merge_rows and not self._rules_changed():
            return self._file_changes(schema, diff, head), "files"
        transform, limits = self._transform(schema), self._limits
        bounds = Bounds(limits.diff_rows, limits.merge_rows)
        pinned = self._pinned(schema, head)
        return hash_changes(pinned, head, transform.schema, self._destination, bounds), "all rows"

    def _file_changes(self, schema: TableSchema, diff: FileDiff, head: TableVersion) -> NetChanges:
        stoppable = FileDiff(
            tuple(map(self._stoppable, diff.added)),
            None if diff.removed is None else tuple(map(self._stoppable, diff.removed)),
            tuple(map(self._stoppable, diff.keys)),
            diff.rows,
        )
        transform, limits = self._transform(schema), self._limits
        return file_changes(
            schema,
            stoppable,
            head,
            transform,
            self._destination,
            newest_by=self._rules.newest_by,
            compared=limits.diff_rows,
        )


def transform_of(
    schema: TableSchema, rules: RowRules, mode: Mode, quarantine_rows: int = QUARANTINE_ROWS
) -> Transform:
    """The rules for a source's schema, as the mode takes it.

    Raises:
        ConfigError: a rule does not fit the schema.
    """
    taken = append_schema(schema) if mode is Mode.APPEND else schema
    return Transform(rules, taken, quarantine_rows=quarantine_rows)


def batches(versions: Versions, rows: int) -> Iterator[Versions]:
    """Whole versions together, up to `rows` of the feed; a larger one stands alone."""
    batch: list[VersionChanges] = []
    held = 0
    for version in versions:
        if batch and held + version.rows > rows:
            yield batch
            batch, held = [], 0
        batch.append(version)
        held += version.rows
    if batch:
        yield batch


def _rebuilt(head: TableVersion, why: str, in_place: str | None) -> str:
    done = "built anew" if in_place is None else f"changed in place, not built anew ({in_place}),"
    return f"{done} as of version {head.number}: {why}"


def _checkpoint(at: TableVersion) -> Checkpoint:
    return Checkpoint(at.log_id, at.number, Lsn(max(round(at.commit_ts.timestamp() * 1000), 0)))


def _not_after(head: TableVersion, standing: Checkpoint) -> bool:
    """Whether a checkpoint of `head` would not count as progress."""
    return head.log_id == standing.log_id and head.number <= standing.commit


def _total(parts: Sequence[RowPart]) -> int | None:
    """The rows of all parts, where all of them tell."""
    counts = [part.rows for part in parts]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _inserted(part: RowPart, schema: TableSchema, at: TableVersion) -> RowPart:
    """The rows of a part as the feed would tell their insert."""

    def read() -> Iterator[pa.RecordBatch]:
        for batch in part.read():
            yield from as_feed(schema, pa.Table.from_batches([batch]), at).to_batches()

    return RowPart(read, part.rows)


def _difference(known: TableSchema | None, wanted: TableSchema) -> str:
    """In words, which columns came, went or changed; empty if a destination need not know of it.

    A column's number counts where both have one: another one is another column of that name.
    """
    old = {c.name: c for c in known.columns} if known else {}
    new = {c.name: c for c in wanted.columns}
    both = [(old[name], new[name]) for name in new if name in old]
    kinds = {
        "came": [name for name in new if name not in old],
        "went": [name for name in old if name not in new],
        "changed type": [
            a.name for a, b in both if (a.type, a.source_type) != (b.type, b.source_type)
        ],
        "was made anew": [
            a.name for a, b in both if a.attnum and b.attnum and a.attnum != b.attnum
        ],
        "is the key": list(wanted.key) if known and known.key != wanted.key else [],
    }
    return "; ".join(f"{', '.join(names)} {what}" for what, names in kinds.items() if names)
