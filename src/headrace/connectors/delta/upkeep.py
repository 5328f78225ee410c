"""When a table's upkeep is due, between two commits of its one writer: what `maintenance` does."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.connectors.delta import actions, maintenance
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.plans import merging
from headrace.connectors.delta.state import TableState
from headrace.log.storage import Storage


class Upkeep:
    """One table's upkeep, in bounded portions."""

    def __init__(self, storage: Storage, options: Mapping[str, str]) -> None:
        self._storage = storage
        self._options = options
        self._swept = 0

    def compaction(self, state: TableState) -> list[Action]:
        """A commit that makes fewer files of many, if it is time for one."""
        if state.version % maintenance.MERGE_CHECK_EVERY:
            return []
        paths = maintenance.choose_merge(state.files)
        return merging(self._storage, state, paths) if paths else []

    def after_commit(self, state: TableState) -> None:
        """Checkpoints, and what they make superfluous.

        Raises:
            DestinationUnavailableError: it failed; the table stands as it is.
        """
        if state.version - state.checkpoint_version < maintenance.CHECKPOINT_EVERY:
            return
        maintenance.write_checkpoint(self._storage.url, self._options)
        state.checkpoint_version = state.version
        if state.version - self._swept >= maintenance.SWEEP_EVERY:
            maintenance.clean_log(self._storage.url, self._options)
            maintenance.sweep(self._storage, state, actions.now_ms())
            self._swept = state.version
