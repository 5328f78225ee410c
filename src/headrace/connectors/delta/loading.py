"""Snapshot files of the change log become a table's content, in one commit.

What stood before goes; or it stays beside the snapshot, where the table keeps every change; or the
snapshot is taken for changes to it, where it keeps every version of its rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.adopt import adopt, snapshot_rows
from headrace.connectors.delta.conversion import purged
from headrace.connectors.delta.evolution import evolve
from headrace.connectors.delta.kinds import kind_of, mode_of, require_nothing_lost
from headrace.connectors.delta.live import Commit, LiveTable
from headrace.connectors.delta.plans import LOG_ID, replacement
from headrace.connectors.delta.retained import boundary, require_same_partitions, retained
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.versions import continued
from headrace.model import Checkpoint, Delivery, Mode, SchemaPolicy, Shape, TableFormat, TableSchema


@dataclass(frozen=True)
class Loader:
    """Loads one table, in the way that its shape asks for."""

    live: LiveTable
    options: Mapping[str, str]
    shape: Shape
    delivery: Delivery
    layout: TableFormat

    def load(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """As `DestinationTable.load`; raises as `MergeOnReadTable.load` does."""
        standing = self.live.refresh_ours()
        if standing is not None:
            self.live.check_protocol()
            require_nothing_lost(standing, self.live.name, self.shape)
        same_mode = standing is not None and mode_of(standing) is self.shape.mode
        if standing is None or not same_mode or self.shape.mode is Mode.SCD1:
            self._replace(standing if same_mode else None, schema, files, at)
            return
        require_same_partitions(standing, schema, self.layout)
        self._require_newer(at)
        evolving = replace(self.delivery, schema_policy=SchemaPolicy.EVOLVE)
        evolve(self.live, schema, evolving, by_snapshot=True)
        if self.shape.mode is Mode.APPEND:
            self._append(schema, files, at)
        else:
            self._continue(schema, files, at)

    def _replace(
        self, former: TableState | None, schema: TableSchema, files: Sequence[str], at: Checkpoint
    ) -> None:
        """Make the table, or swap its content; rows of `former` that are kept come along."""
        storage = self.live.storage
        self.live.revise(partial(purged, storage))
        adds = adopt(storage, self.options, schema, files, self.layout)
        if former is not None:
            adds += retained(storage, former, schema, adds, self.shape, self.layout)
        self._commit(schema, adds, at)

    def _append(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """Put the snapshot beside what stands, with a row that tells them apart."""
        adds = adopt(self.live.storage, self.options, schema, files, self.layout)
        adds += boundary(self.live.storage, schema, at, self.layout)
        self._commit(schema, adds, at, keeps_files=True)

    def _commit(
        self,
        schema: TableSchema,
        adds: Sequence[Action],
        at: Checkpoint,
        *,
        keeps_files: bool = False,
    ) -> None:
        checkpoint = actions.transactions(self.live.app_id(at.log_id), at)

        def plan(state: TableState) -> list[Action]:
            replaced = replacement(
                state,
                schema,
                adds,
                at,
                pipeline=self.live.pipeline,
                layout=self.layout,
                kind=kind_of(self.shape),
                keeps_files=keeps_files,
            )
            return replaced + checkpoint

        self.live.forget_index()
        self.live.revise(plan)

    def _continue(self, schema: TableSchema, files: Sequence[str], at: Checkpoint) -> None:
        """Take a snapshot as changes to the versions that stand, unless another writer changes the
        table meanwhile."""
        live = self.live
        live.revise(partial(purged, live.storage))
        live.forget_index(exact=False)
        state, index = live.known(), live.index(schema)
        snapshot = snapshot_rows(live.storage, self.options, schema, state.columns, files)
        changed = continued(live.storage, state, index, schema, snapshot, self.shape)
        configuration = {**state.configuration, LOG_ID: at.log_id}
        commit = Commit(
            [
                actions.commit_info("MERGE", at=at),
                {"metaData": {**state.metadata, "configuration": configuration}},
                *changed,
                *actions.transactions(live.app_id(at.log_id), at),
            ]
        )
        live.forget_index()
        live.commit(lambda: commit, attempts=1)

    def _require_newer(self, at: Checkpoint) -> None:
        """Refuse a snapshot of before what a table holds that keeps its past."""
        known = self.live.checkpoint(at.log_id)
        if known is not None and at.lsn <= known.lsn:
            raise self.live.diverged(f"it holds changes behind the snapshot of {at.lsn}")
