"""One Delta table as a pipeline writes it: what the engine asks of it, in which order.

A batch of changes becomes one deletion-vector file for the rows that go, one data file for those
that come, and one log entry that names both and holds the checkpoint (DESIGN.md §9). How a batch,
a snapshot or other columns become actions is told in `applying`, `loading` and `evolution`; `live`
has the table's state and makes the commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.connectors.delta import maintenance
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.applying import planned
from headrace.connectors.delta.arrangement import check_layout
from headrace.connectors.delta.conversion import converted
from headrace.connectors.delta.evolution import evolution, evolve
from headrace.connectors.delta.kinds import require_kind
from headrace.connectors.delta.live import Commit, LiveTable
from headrace.connectors.delta.loading import Loader
from headrace.connectors.delta.maintenance import Policy
from headrace.connectors.delta.plans import LOG_ID
from headrace.connectors.delta.preserving import Preserved
from headrace.connectors.delta.standing import (
    StandingContent,
    has_columns,
    redescribed,
    stored_columns,
)
from headrace.connectors.delta.types import stored_schema
from headrace.connectors.delta.upkeep import Upkeep
from headrace.connectors.delta.versions import standing
from headrace.errors import UnsupportedSchemaChangeError
from headrace.log.storage import Storage
from headrace.model import (
    ChangeFeed,
    Checkpoint,
    Delivery,
    Mode,
    NetChanges,
    OnDelete,
    SchemaPolicy,
    Shape,
    TableFormat,
    TableId,
    TableSchema,
)

# What a table's log may grow by, a second: each entry names every file that it touches, and the log
# is kept for a day. Under a lasting load commits get rarer and larger, where one is dear.
LOG_BYTES_PER_SECOND: Final = 32 << 10


class MergeOnReadTable:
    """Fulfils `HistoryTable` and `MendableTable`; used by one thread at a time, the table's only
    steady writer."""

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
        self._options = options
        self._shape = shape
        self._delivery = delivery
        self._layout = layout
        self._live = LiveTable(
            storage,
            name,
            pipeline,
            history=shape.mode is Mode.SCD2,
            index_memory=layout.index_memory,
            saved_index=saved_index,
        )
        policy = policy or Policy.of(layout.cluster_by)
        self._upkeep = Upkeep(storage, options, beside, policy, layout.clustering)
        self._checked: tuple[object, ...] = ()

    # -- where it stands ---------------------------------------------------------------------------

    def checkpoint(self, log_id: str) -> Checkpoint | None:
        """Where this table stands in that log; None if it never took anything from it.

        Raises:
            LogError: the table's log cannot be read.
            DestinationError: the table's log is not one that we can read.
            UnsuitableTableError: its rows are kept in another mode than they are to be.
        """
        state = self._live.refresh()
        if state is not None:
            require_kind(state, self.name, self._live.pipeline, self._shape)
        return self._live.checkpoint(log_id)

    def app_id(self, log_id: str) -> str:
        """The application id of this table's checkpoints in a log."""
        return self._live.app_id(log_id)

    def follows(self) -> str | None:
        """The id of the change log that the content comes from; None where there is no table."""
        state = self._live.refresh_ours()
        return None if state is None else state.configuration.get(LOG_ID)

    def held(self) -> str | None:
        """A Delta table's last rebuild cannot be undone."""
        return None

    # -- rows --------------------------------------------------------------------------------------

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """Replace the whole content by snapshot files, in one commit that holds the checkpoint.

        Rows that the table keeps though its source has them no more stand beside those of the
        snapshot; in mode append all rows do; in mode scd2 differences become versions.

        Raises:
            ForeignTableError: a table stands here that this pipeline did not make.
            DestinationError: Delta cannot hold a column's type.
            UnsupportedSchemaChangeError: rows that are kept cannot stand in the new columns.
            UnsuitableTableError: rows that only this table has would be lost.
            DivergedError: it keeps its past, and knows of changes behind the snapshot.
            DestinationConflictError: another writer changed the table meanwhile.
        """
        loader = Loader(self._live, self._options, self._shape, self._delivery, self._layout)
        loader.load(schema, files, at)

    def apply(self, changes: NetChanges, to: Checkpoint, before: Iterable[NetChanges] = ()) -> None:
        """Apply changes and checkpoint in one commit; at or before the checkpoint, do nothing.

        `before`: parts of the changes, to be applied first; they are asked for anew where another
        writer's commit came between.

        Raises:
            DivergedError: the table lacks rows that the change log says it must have.
            DestinationConflictError: other writers commit faster than we can follow.
            UnsupportedSchemaChangeError: another writer changed the table's columns.
        """

        def plan() -> Commit | None:
            if self._is_done(to):
                return None
            self._check_columns(changes.schema)
            self._convert()
            return self._planned(changes, to, before)

        if self._live.commit(plan):
            self._upkeep.between(self._live)

    def _planned(
        self,
        changes: NetChanges,
        to: Checkpoint,
        before: Iterable[NetChanges] = (),
        metadata: Sequence[Action] = (),
    ) -> Commit:
        return planned(
            self._live,
            changes,
            to,
            self._shape,
            images=self._layout.change_feed is ChangeFeed.IMAGES,
            before=before,
            metadata=metadata,
        )

    def _is_done(self, to: Checkpoint) -> bool:
        self._live.known()
        standing = self._live.checkpoint(to.log_id)
        if standing is None:
            raise self._live.diverged(f"it never took anything from the change log {to.log_id}")
        return to <= standing

    def _check_columns(self, schema: TableSchema) -> None:
        """Refuse what other writers may have made of the table since we last looked."""
        state = self._live.known()
        seen = (state.metadata, state.protocol, schema)
        if self._checked and all(a is b for a, b in zip(self._checked, seen, strict=True)):
            return
        self._live.check_protocol()
        check_layout(stored_schema(schema.arrow()), self._layout)
        evolving = replace(self._delivery, schema_policy=SchemaPolicy.EVOLVE)
        lacking = evolution(state, schema, evolving)
        if lacking is not None and lacking.sentences:
            raise UnsupportedSchemaChangeError(
                f"{self.storage.url} has other columns than {schema.table}: a table that follows "
                + "; ".join(lacking.sentences),
                hint=f"headrace resync {self.name}",
                table=str(self.name),
            )
        self._checked = seen

    def _convert(self) -> None:
        """Bring the table's properties to what its user says now; seldom is there anything to do.

        A checkpoint follows, so that readers without deletion vectors need not read the log before.
        """
        state = self._live.known()
        before = state.protocol
        self._live.revise(partial(converted, self.storage, layout=self._layout))
        if state.protocol is not before:
            maintenance.write_checkpoint(self.storage.url, self._options)
            state.checkpoint_version = state.version

    def retry_waiting(self) -> int:
        """A Delta table's rows wait for no others."""
        return 0

    def standing(
        self, schema: TableSchema, keys: pa.Table, since: datetime
    ) -> tuple[npt.NDArray[np.intp], pa.Table]:
        """In mode scd2, the current versions under `keys`, and of keys without one those that ended
        at `since` or later, of which the key and the times are told: positions in `keys`, and rows.
        """
        state = self._live.working
        return self._live.indexed(
            schema, lambda rows: standing(self.storage, state, rows, keys, since)
        )

    # -- comparing and mending ---------------------------------------------------------------------

    def content(self, schema: TableSchema) -> StandingContent | None:
        """What the table holds, if differences from `schema`'s rows can be written.

        Raises:
            ForeignTableError: a table stands here that this pipeline did not make.
        """
        state = self._live.refresh_ours()
        if state is None or not (self._shows_rows_as_they_are and has_columns(state, schema)):
            return None
        self._live.check_protocol()
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
        state = self._live.known()
        if state.version != basis.version:
            raise self._live.conflict()
        described = redescribed(state, changes.schema, at.log_id)
        self._live.commit(lambda: self._planned(changes, at, metadata=described), attempts=1)

    # -- columns -----------------------------------------------------------------------------------

    def evolve(self, schema: TableSchema) -> None:
        """Follow the source's columns, in one commit; rows that stand get the constants that the
        source has for them, and values that stand keep to their column.

        Raises:
            UnsupportedSchemaChangeError: the table cannot follow, or its user does not want it to.
            DestinationError: Delta cannot hold a column's type, or such names.
        """
        self._live.refresh_ours()
        self._live.check_protocol()
        evolve(self._live, schema, self._delivery)

    def planned(self, schema: TableSchema) -> tuple[str, ...]:
        """What `evolve` would do, in words. Raises as it does."""
        state = self._live.refresh_ours()
        found = None if state is None else evolution(state, schema, self._delivery)
        return () if found is None else found.sentences

    # -- between commits ---------------------------------------------------------------------------

    def settle(self) -> None:
        """Finish the upkeep that is under way, if any, and let go of the key index.

        Raises:
            DestinationUnavailableError, LogError: it failed; what was applied before stands.
        """
        try:
            self._upkeep.between(self._live, last=True)
        finally:
            self._live.release_index()

    def rest(self) -> float:
        """Seconds from the last commit to the next, for the table's log to stay readable."""
        return self._live.entry_bytes / LOG_BYTES_PER_SECOND

    @property
    def index_bytes(self) -> int:
        """What the key index takes, in memory or mapped."""
        return 0 if self._live.rows is None else self._live.rows.nbytes
