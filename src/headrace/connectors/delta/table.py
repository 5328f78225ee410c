"""One Delta table that holds the current state of a source table, written by merge-on-read.

A batch of changes becomes one deletion-vector file for the rows that go, one data file for those
that come, and one log entry that names both and holds the checkpoint (DESIGN.md §9). Nothing here
remembers more than the log says, but for the key index, which is rebuilt from the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyroaring import BitMap

from headrace.connectors.delta import actions, maintenance
from headrace.connectors.delta.actions import LSN_SUFFIX, Action
from headrace.connectors.delta.adopt import adopt, snapshot_rows
from headrace.connectors.delta.arrangement import check_layout, check_partition_columns
from headrace.connectors.delta.change_files import changes_of, write_change_files
from headrace.connectors.delta.changeset import Changeset, RowsMissingError, set_against
from headrace.connectors.delta.compaction import Compaction, Replacement
from headrace.connectors.delta.conversion import converted, has_feed, has_vectors, purged
from headrace.connectors.delta.evolution import commit, evolution
from headrace.connectors.delta.kinds import kind_of, mode_of, require_kind, require_nothing_lost
from headrace.connectors.delta.maintenance import Policy
from headrace.connectors.delta.plans import LOG_ID, PIPELINE, replacement
from headrace.connectors.delta.preserving import Preserved
from headrace.connectors.delta.retained import all_marked, require_same_partitions, retained
from headrace.connectors.delta.rewriting import rewrite
from headrace.connectors.delta.rows import RowIndex, count_rows, load_vector
from headrace.connectors.delta.schema import arrow_schema, check_protocol
from headrace.connectors.delta.standing import (
    StandingContent,
    has_columns,
    redescribed,
    stored_columns,
)
from headrace.connectors.delta.state import TableState, follow, load_state
from headrace.connectors.delta.types import stored_schema, to_stored
from headrace.connectors.delta.upkeep import Upkeep
from headrace.connectors.delta.versions import Closed, all_closed, continued, standing
from headrace.connectors.delta.writer import CommitLostError, put_commit, write_files
from headrace.errors import (
    DestinationConflictError,
    DivergedError,
    ForeignTableError,
    UnsupportedSchemaChangeError,
)
from headrace.failpoints import hit
from headrace.log.storage import Storage
from headrace.model import (
    END_AT,
    ChangeFeed,
    Checkpoint,
    Delivery,
    Lsn,
    Mode,
    NetChanges,
    OnDelete,
    SchemaPolicy,
    Shape,
    TableFormat,
    TableId,
    TableSchema,
)
from headrace.model.fingerprint import Hasher, NullKeyError

# What a table's log may grow by, a second: each entry names every file that it touches, and the log
# is kept for a day. Under a lasting load commits get rarer and larger, where one is dear.
LOG_BYTES_PER_SECOND: Final = 32 << 10

ATTEMPTS: Final = 10  # commits lost in a row to other writers before the engine gets a turn


class MergeOnReadTable:
    """Fulfils `DestinationTable`; used by one thread at a time, the table's only steady writer.

    Other writers' commits (compaction, properties, appends) are followed as they are met: a commit
    that is lost to one is planned anew against the table as it then is.
    """

    def __init__(
        self,
        storage: Storage,
        name: TableId,
        pipeline: str,
        options: Mapping[str, str],
        *,
        shape: Shape,
        delivery: Delivery,
        layout: TableFormat,
        beside: Executor,
        policy: Policy | None = None,
        saved_index: Preserved | None = None,
    ) -> None:
        self.name = name
        self.storage = storage
        self._pipeline = pipeline
        self._options = options
        self._shape = shape
        self._delivery = delivery
        self._layout = layout
        self._state: TableState | None = None
        self._rows: RowIndex | None = None
        self._saved_index = saved_index
        self._exact = True  # False once a null was met in an integer key
        self._checked: tuple[object, ...] = ()
        policy = policy or Policy.of(layout.cluster_by)
        self._upkeep = Upkeep(storage, options, beside, policy, layout.clustering)
        self._entry_bytes = 0

    # -- DestinationTable --------------------------------------------------------------------------

    def checkpoint(self, log_id: str) -> Checkpoint | None:
        """Where this table stands in that log; None if it never took anything from it.

        Raises:
            LogError: the table's log cannot be read.
            DestinationError: the table's log is not one that we can read.
            UnsuitableTableError: its rows are kept in another mode than they are to be.
        """
        state = self._refresh()
        if state is not None:
            require_kind(state, self.name, self._pipeline, self._shape)
        return None if state is None else self._standing(state, log_id)

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """Replace the whole content by snapshot files, in one commit that holds the checkpoint.

        Rows that the table keeps though its source has them no more stand beside those of the
        snapshot; in mode append all rows do.

        Raises:
            ForeignTableError: a table stands here that this pipeline did not make.
            DestinationError: Delta cannot hold a column's type.
            UnsupportedSchemaChangeError: rows that are kept cannot stand in the new columns.
            UnsuitableTableError: rows that only this table has would be lost.
        """
        standing = self._refresh_ours()
        if standing is not None:
            self._check_protocol()
            require_nothing_lost(standing, self.name, self._shape)
        former = standing if standing and mode_of(standing) is self._shape.mode else None
        if former is not None and self._shape.mode is Mode.SCD2:
            self._continue(former, schema, files, at)
            return
        keeps_files = former is not None and self._shape.mode is Mode.APPEND
        if former is not None and keeps_files:
            require_same_partitions(former, schema, self._layout)
            self._require_older(former, at)
            self._evolve(schema, replace(self._delivery, schema_policy=SchemaPolicy.EVOLVE))
        if standing is not None and not keeps_files:
            self._purge()
        adds = adopt(self.storage, self._options, schema, files, self._layout)
        if former is not None:
            adds += retained(self.storage, former, schema, adds, at, self._shape, self._layout)
        checkpoint = actions.transactions(self.app_id(at.log_id), at)
        self._rows, self._exact = None, True
        self._commit_any(
            lambda state: replacement(
                state,
                schema,
                adds,
                checkpoint,
                at,
                pipeline=self._pipeline,
                layout=self._layout,
                kind=kind_of(self._shape),
                keeps_files=keeps_files,
            )
        )

    def standing(
        self, schema: TableSchema, keys: pa.Table, since: datetime
    ) -> tuple[npt.NDArray[np.intp], pa.Table]:
        """In mode scd2, the current versions under `keys`, and of keys without one those that ended
        at `since` or later, of which the key and the times are told: positions in `keys`, and rows.
        """
        state = self._known_state()
        stored = self._columns(state)
        try:
            rows = self._row_index(state, schema, stored)
            return standing(self.storage, state, rows, keys, stored, since)
        except NullKeyError:
            self._rows, self._exact = None, False
            return self.standing(schema, keys, since)

    def _continue(
        self, former: TableState, schema: TableSchema, files: Sequence[str], at: Checkpoint
    ) -> None:
        """Take a snapshot as changes to the versions that stand, in one commit.

        Raises:
            DestinationConflictError: another writer has changed the table meanwhile.
        """
        require_same_partitions(former, schema, self._layout)
        self._require_older(former, at)
        self._evolve(schema, replace(self._delivery, schema_policy=SchemaPolicy.EVOLVE))
        self._purge()
        state, self._rows, self._exact = self._known_state(), None, False
        stored = self._columns(state)
        index = self._row_index(state, schema, stored)
        snapshot = snapshot_rows(self.storage, self._options, schema, stored, files)
        changed = continued(self.storage, state, index, schema, stored, snapshot, self._shape)
        described = {**state.metadata["configuration"], LOG_ID: at.log_id}
        try:
            self._put(
                [
                    actions.commit_info("MERGE", at=at),
                    {"metaData": {**state.metadata, "configuration": described}},
                    *changed,
                    *actions.transactions(self.app_id(at.log_id), at),
                ]
            )
        except CommitLostError as error:
            self._refresh_ours()
            raise self._conflict() from error
        self._rows, self._exact = None, True

    def _require_older(self, former: TableState, at: Checkpoint) -> None:
        """Refuse a snapshot of before what a table holds that keeps its past."""
        known = self._standing(former, at.log_id)
        if known is not None and at.lsn <= known.lsn:
            raise self._diverged(f"it holds changes behind the snapshot of {at.lsn}")

    def follows(self) -> str | None:
        """The id of the change log that the content comes from; None where there is no table."""
        state = self._refresh_ours()
        return None if state is None else state.configuration.get(LOG_ID)

    def content(self, schema: TableSchema) -> StandingContent | None:
        """What the table holds, if differences from `schema`'s rows can be written.

        Raises:
            ForeignTableError: a table stands here that this pipeline did not make.
        """
        state = self._refresh_ours()
        if state is None or not (self._shows_rows_as_they_are and has_columns(state, schema)):
            return None
        self._check_protocol()
        columns = stored_columns(schema)
        return StandingContent(self.storage.url, self._options, state.version, columns)

    @property
    def _shows_rows_as_they_are(self) -> bool:
        """No more and no other than the source has."""
        shape, on_delete = self._shape, self._delivery.on_delete
        return shape == Shape() and on_delete is OnDelete.DELETE

    def mend(self, changes: NetChanges, at: Checkpoint, basis: StandingContent) -> None:
        """Make `changes` to the content `basis`, in one commit that puts the table at `at`.

        Raises:
            DestinationConflictError: another writer has changed the table since it was read.
        """
        state = self._known_state()
        if state.version != basis.version:
            raise self._conflict()
        try:
            self._apply_once(state, changes, at, redescribed(state, changes.schema, at.log_id))
        except NullKeyError:
            self._rows, self._exact = None, False
            self.mend(changes, at, basis)
        except CommitLostError as error:
            self._refresh_ours()
            raise self._conflict() from error
        except RowsMissingError as error:
            raise self._diverged(str(error)) from error

    def apply(self, changes: NetChanges, to: Checkpoint) -> None:
        """Apply changes and checkpoint in one commit; at or before the checkpoint, do nothing.

        Raises:
            DivergedError: the table lacks rows that the change log says it must have.
            DestinationConflictError: other writers commit faster than we can follow.
            UnsupportedSchemaChangeError: another writer changed the table's columns.
        """
        for _ in range(ATTEMPTS):
            state = self._known_state()
            if self._is_done(state, to):
                return
            self._check_columns(state, changes.schema)
            self._convert()
            try:
                self._apply_once(state, changes, to)
            except CommitLostError:
                self._refresh_ours()
            except NullKeyError:
                self._rows, self._exact = None, False
            except RowsMissingError as error:
                raise self._diverged(str(error)) from error
            else:
                self._maintain()
                return
        raise self._conflict()

    @property
    def index_bytes(self) -> int:
        """What the key index takes, in memory or mapped."""
        return 0 if self._rows is None else self._rows.nbytes

    def settle(self) -> None:
        """Finish the upkeep that is under way, if any.

        Raises:
            DestinationUnavailableError, LogError: it failed; what was applied before stands.
        """
        self._maintain(last=True)

    def held(self) -> str | None:
        """A Delta table's last rebuild cannot be undone."""
        return None

    def retry_waiting(self) -> int:
        """A Delta table's rows wait for no others."""
        return 0

    def rest(self) -> float:
        """Seconds from the last commit to the next, for the table's log to stay readable."""
        return self._entry_bytes / LOG_BYTES_PER_SECOND

    def evolve(self, schema: TableSchema) -> None:
        """Follow the source's columns, in one commit; rows that stand get the constants that the
        source has for them, and values that stand keep to their column.

        Raises:
            UnsupportedSchemaChangeError: the table cannot follow, or its user does not want it to.
            DestinationError: Delta cannot hold a column's type, or such names.
        """
        self._known_state()
        self._refresh_ours()
        self._check_protocol()
        self._evolve(schema, self._delivery)

    def _evolve(self, schema: TableSchema, delivery: Delivery) -> None:
        found = evolution(self._known_state(), schema, delivery)
        if found is not None and found.touches_files and found.changes_rows:
            self._purge()

        def plan(state: TableState | None) -> list[Action]:
            found = evolution(state or TableState(), schema, delivery)
            if found is None:
                return []
            if found.touches_files or not schema.key:
                self._rows = None
            return commit(self.storage, state or TableState(), found)

        self._commit_any(plan)

    def planned(self, schema: TableSchema) -> tuple[str, ...]:
        """What `evolve` would do, in words. Raises as it does."""
        state = self._refresh_ours()
        found = None if state is None else evolution(state, schema, self._delivery)
        return () if found is None else found.sentences

    # -- the state ---------------------------------------------------------------------------------

    def _refresh(self) -> TableState | None:
        """Follow the log to its end."""
        state, rows = self._state, self._rows
        self._state = self._rows = None  # an error half-way leaves nothing of another version
        if state is None:
            state = load_state(self.storage)
            if state is not None:
                check_partition_columns(self.storage, state.files.values(), state.partition_by)
            self._state = state
            return state
        seen = follow(self.storage, state)
        added = [action["add"] for action in seen if "add" in action]
        check_partition_columns(self.storage, added, state.partition_by)
        self._state, self._rows = state, rows
        if any("add" in action or "remove" in action for action in seen):
            self._sync()
        return self._state

    def _refresh_ours(self) -> TableState | None:
        state = self._refresh()
        if state is not None and state.configuration.get(PIPELINE) != self._pipeline:
            owner = state.configuration.get(PIPELINE)
            made = f"the pipeline {owner!r} made" if owner else "Headrace did not make"
            raise ForeignTableError(
                f"{self.storage.url} is a Delta table that {made}",
                hint=f"move it away, or give {self.name} another `name:` in headrace.yaml",
                table=str(self.name),
            )
        return state

    def _known_state(self) -> TableState:
        """The state as we know it; another writer's commits since then make ours fail."""
        state = self._state if self._state is not None else self._refresh_ours()
        if state is None:
            raise self._diverged("there is no table, though it was loaded once")
        return state

    def _sync(self) -> None:
        """Bring the index, if there is one, to the state's version, or let go of it."""
        rows, self._rows = self._rows, None
        if rows is not None and self._state is not None:
            try:
                rows.sync(self._state)
            except NullKeyError:
                self._exact = False
            else:
                self._rows = rows

    def app_id(self, log_id: str) -> str:
        """The application id of this table's checkpoints in a log."""
        return f"headrace/{log_id}/{self._pipeline}/{self.name}"

    def _standing(self, state: TableState, log_id: str) -> Checkpoint | None:
        """Only of the log that the content comes from: transactions of earlier ones stay behind."""
        if state.configuration.get(LOG_ID) != log_id:
            return None
        app_id = self.app_id(log_id)
        commit, lsn = state.txns.get(app_id), state.txns.get(app_id + LSN_SUFFIX)
        return None if commit is None or lsn is None else Checkpoint(log_id, commit, Lsn(lsn))

    def _is_done(self, state: TableState, to: Checkpoint) -> bool:
        standing = self._standing(state, to.log_id)
        if standing is None:
            raise self._diverged(f"it never took anything from the change log {to.log_id}")
        return to <= standing

    def _check_columns(self, state: TableState, schema: TableSchema) -> None:
        """Refuse what other writers may have made of the table since we last looked."""
        seen = (state.metadata, state.protocol, schema)
        if self._checked and all(a is b for a, b in zip(self._checked, seen, strict=True)):
            return
        self._check_protocol()
        check_layout(stored_schema(schema.arrow()), self._layout)
        follow = replace(self._delivery, schema_policy=SchemaPolicy.EVOLVE)
        lacking = evolution(state, schema, follow)
        if lacking is not None and lacking.sentences:
            raise UnsupportedSchemaChangeError(
                f"{self.storage.url} has other columns than {schema.table}: a table that follows "
                + "; ".join(lacking.sentences),
                hint=f"headrace resync {self.name}",
                table=str(self.name),
            )
        self._checked = seen

    def _columns(self, state: TableState) -> pa.Schema:
        """The columns that files are written with: also those that the source dropped."""
        return arrow_schema(state.metadata["schemaString"])

    def _check_protocol(self) -> None:
        state = self._known_state()
        check_protocol(state.protocol, state.metadata, self.storage.url)

    def _convert(self) -> None:
        """Bring the table's properties to what its user says now; seldom is there anything to do.

        A checkpoint follows, so that readers without deletion vectors need not read the log before.
        """
        state = self._known_state()
        before = state.protocol
        self._commit_any(lambda state: converted(self.storage, state or TableState(), self._layout))
        if state.protocol is not before:
            maintenance.write_checkpoint(self.storage.url, self._options)
            state.checkpoint_version = state.version

    # -- commits -----------------------------------------------------------------------------------

    def _commit_any(self, plan: Callable[[TableState | None], list[Action]]) -> None:
        """Commit what `plan` makes of the newest state, until no other writer comes between."""
        for _ in range(ATTEMPTS):
            commit = plan(self._state)
            if not commit:
                return
            try:
                self._put(commit)
            except CommitLostError:
                self._refresh_ours()
            else:
                self._sync()
                return
        raise self._conflict()

    def _put(self, commit: Sequence[Action]) -> None:
        state = self._state or TableState()
        if state.version >= 0 and not self.storage.exists(actions.log_path(state.version)):
            raise self._diverged("its newest version is gone, as if the folder had been replaced")
        self._entry_bytes = put_commit(self.storage, state.version + 1, commit)
        state.replay(state.version + 1, commit)
        self._state = state

    def _apply_once(
        self,
        state: TableState,
        changes: NetChanges,
        to: Checkpoint,
        metadata: Sequence[Action] = (),
    ) -> None:
        stored = self._columns(state)
        if self._shape.mode is Mode.APPEND:
            self._put_rows("WRITE", state, to_stored(changes.upserts, stored), changes, to)
            return
        if changes.truncate and self._shape.on_delete is OnDelete.MARK:
            self._mark_all(state, changes, to)
            return
        if changes.truncate and self._shape.mode is not Mode.SCD2:
            self._truncate(state, changes, to)
            return
        rows = self._row_index(state, changes.schema, stored)
        batch = set_against(rows, changes, stored)
        going, closed = rows.deletions(batch.doomed), Closed()
        if changes.truncate:
            assert changes.truncated_at is not None  # Postgres tells it of every change
            closed = all_closed(self.storage, state, going, stored, changes.truncated_at)
            going = closed.deletions
        deletions, emptied = self._divide(state, going)
        marked = has_vectors(state)
        vectors = deletions if marked else {}
        written = write_files(self.storage, batch.upserts, vectors, state.partition_by)
        touched = [(state.files[path], gone) for path, gone in deletions.items()]
        metrics = {"numUpsertedRows": batch.upserts.num_rows, "numDeletedRows": batch.deleted}
        commit = [
            actions.commit_info("MERGE", at=to, after=changes.after, metrics=metrics),
            *metadata,
            *(actions.remove(state.files[path]) for path in [*deletions, *emptied]),
            *(
                actions.with_vector(file, written.descriptors[file["path"]], self._total(file))
                for file, _ in touched
                if marked
            ),
            *([] if marked else rewrite(self.storage, touched, stored)),
            *(add for add, _ in written.adds),
            *closed.adds,
            # Versions that a truncate ends are told by the files alone: there may be many.
            *(
                []
                if changes.truncate
                else self._told(
                    state, batch, changes.schema.key, rewritten=bool(touched) and not marked
                )
            ),
            *actions.transactions(self.app_id(to.log_id), to),
        ]
        self._put(commit)
        if closed.adds or not marked:
            self._sync()
            return
        rows.committed(
            {path: (written.descriptors[path], gone) for path, gone in deletions.items()},
            emptied,
            [(a["add"]["path"], batch.hashes_of(positions)) for a, positions in written.adds],
        )

    def _told(
        self, state: TableState, batch: Changeset, key: Sequence[str], *, rewritten: bool
    ) -> list[Action]:
        """What the Change Data Feed has to be told of a batch."""
        if self._rows is None or not has_feed(state):
            return []
        images = self._layout.change_feed is ChangeFeed.IMAGES
        told = changes_of(self._rows, batch, key, images=images, rewritten=rewritten)
        return [] if told is None else write_change_files(self.storage, told, state.partition_by)

    def _put_rows(
        self,
        operation: str,
        state: TableState,
        rows: pa.Table,
        changes: NetChanges,
        to: Checkpoint,
        *,
        kept: Sequence[Action] | None = None,
        deleted: int = 0,
    ) -> None:
        """Add rows; with `kept` these files stand in the place of all that stood."""
        written = write_files(self.storage, rows, {}, state.partition_by)
        metrics = {"numUpsertedRows": rows.num_rows, "numDeletedRows": deleted}
        self._put(
            [
                actions.commit_info(operation, at=to, after=changes.after, metrics=metrics),
                *(actions.remove(file) for file in state.files.values() if kept is not None),
                *(kept or ()),
                *(add for add, _ in written.adds),
                *actions.transactions(self.app_id(to.log_id), to),
            ]
        )
        self._sync()

    def _truncate(self, state: TableState, changes: NetChanges, to: Checkpoint) -> None:
        self._purge()
        live = sum(self._total(file) - _cardinality(file) for file in state.files.values())
        upserts = to_stored(changes.upserts, self._columns(state))
        self._put_rows("TRUNCATE", state, upserts, changes, to, kept=(), deleted=live)

    def _mark_all(self, state: TableState, changes: NetChanges, to: Checkpoint) -> None:
        """All rows that stand are marked, but for those whose keys came back."""
        self._purge()
        stored = self._columns(state)
        rows = self._row_index(state, changes.schema, stored)
        batch = set_against(rows, replace(changes, truncate=False), stored)
        assert changes.truncated_at is not None  # Postgres tells it of every change
        replaced = rows.deletions(batch.doomed)
        marked = all_marked(self.storage, state, replaced, stored, changes.truncated_at)
        self._put_rows("TRUNCATE", state, batch.upserts, changes, to, kept=marked)

    def _total(self, file: Mapping[str, Any]) -> int:
        return count_rows(self.storage, file, maintenance.known_rows(file))

    def _divide(
        self, state: TableState, deletions: Mapping[str, BitMap]
    ) -> tuple[dict[str, BitMap], list[str]]:
        """Files that lose rows, and those that leave the table with their last.

        Where there is a feed, a file that has a vector stays until it is compacted: of one that is
        removed, `load_cdf` (deltalake 1.6.6) tells the rows that the vector had taken before.
        """
        stays = has_feed(state)
        emptied = [
            path
            for path, gone in deletions.items()
            if len(gone) == self._total(file := state.files[path])
            and not (stays and file.get("deletionVector"))
        ]
        return {p: gone for p, gone in deletions.items() if p not in set(emptied)}, emptied

    def _purge(self) -> None:
        """Leave no deletion vector, for the reason that `_divide` has: all files are to go."""
        self._commit_any(
            lambda state: purged(self.storage, state) if state and has_feed(state) else []
        )

    # -- rows --------------------------------------------------------------------------------------

    def _row_index(self, state: TableState, schema: TableSchema, stored: pa.Schema) -> RowIndex:
        """The index by the schema's key; built at first need, or when the key has changed."""
        columns = pa.schema([stored.field(name) for name in schema.key or schema.names])
        if self._rows is None or self._rows.is_worn or not self._rows.schema.equals(columns):
            history = stored.field(END_AT) if self._shape.mode is Mode.SCD2 else None
            hasher = Hasher.of(columns, exact=self._exact)
            memory = self._layout.index_memory
            rows = RowIndex(self.storage, columns, hasher, history, memory, self._saved_index)
            rows.sync(state)
            self._rows = rows
        return self._rows

    # -- upkeep ------------------------------------------------------------------------------------

    def _maintain(self, *, last: bool = False) -> None:
        """Between two commits: take up what was done beside them, and begin what is due.

        Raises:
            DestinationUnavailableError, LogError: it failed; what was applied before stands.
        """
        if self._state is None:
            return
        compaction = self._upkeep.finished(self._state, wait=last)
        if compaction is not None:
            self._compact(compaction)
        if self._rows is not None:
            self._rows.preserve(self._state, last=last)
        if not last:
            self._upkeep.begin(self._state, self._rows)

    def _compact(self, compaction: Compaction) -> None:
        """Put the copies in the place of their sources, unless the table has gone another way."""
        for _ in range(ATTEMPTS):
            plan = compaction.against(self.storage, self._known_state(), self._deleted)
            if plan is None:
                break
            try:
                self._put(plan.commit)
            except CommitLostError:
                self._refresh_ours()
                continue
            hit("delta.compacted")
            self._follow(compaction, plan)
            self.storage.delete(plan.empty)
            return
        compaction.abandon(self.storage)

    def _follow(self, compaction: Compaction, plan: Replacement) -> None:
        rows, self._rows = self._rows, None
        moved = [m for m in plan.moved if m is not None]
        if rows is not None and rows is compaction.index and len(moved) == len(plan.moved):
            rows.moved(plan.removed, moved)
            self._rows = rows
        elif rows is not None:
            self._rows = rows
            self._sync()

    def _deleted(self, file: Mapping[str, Any]) -> BitMap:
        if self._rows is not None:
            return self._rows.deleted(file["path"])
        return load_vector(self.storage, file.get("deletionVector"))

    # -- errors ------------------------------------------------------------------------------------

    def _conflict(self) -> DestinationConflictError:
        return DestinationConflictError(
            f"{self.storage.url}: {ATTEMPTS} commits in a row were lost to other writers",
            hint="let nothing else write to this table while Headrace runs",
            table=str(self.name),
        )

    def _diverged(self, why: str) -> DivergedError:
        return DivergedError(
            f"{self.name} at {self.storage.url} is not as the change log says: {why}",
            hint=f"headrace resync {self.name}",
            table=str(self.name),
        )


def _cardinality(file: Mapping[str, Any]) -> int:
    vector = file.get("deletionVector")
    return int(vector["cardinality"]) if vector else 0
