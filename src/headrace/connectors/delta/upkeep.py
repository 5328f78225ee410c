"""A table's upkeep, beside the commits of its one writer: one piece of work at a time.

What takes long (copying rows, writing a checkpoint, listing the folder) runs in another thread,
which touches nothing that the writer uses. What it comes to is taken up by the writer between two
of its commits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from headrace.connectors.delta import actions, maintenance
from headrace.connectors.delta.compaction import Compaction, compact
from headrace.connectors.delta.live import Commit, LiveTable
from headrace.connectors.delta.maintenance import Policy, Sweep
from headrace.connectors.delta.rows import RowIndex
from headrace.connectors.delta.state import TableState
from headrace.errors import DestinationConflictError
from headrace.failpoints import hit
from headrace.log.storage import Storage


@dataclass(frozen=True)
class _Checked:
    """The version that has a checkpoint, and the sweep, if one was due."""

    version: int
    sweep: Sweep | None


class Upkeep:
    """One table's upkeep, in bounded portions; but for the work itself, of the writer's thread."""

    def __init__(
        self,
        storage: Storage,
        options: Mapping[str, str],
        beside: Executor,
        policy: Policy,
        cluster_by: Sequence[str] = (),
    ) -> None:
        self._storage = storage
        self._options = options
        self._beside = beside
        self._policy = policy
        self._cluster_by = cluster_by
        self._work: Future[Compaction | _Checked | None] | None = None
        self._looked = 0  # the version at which there was nothing to rewrite
        self._swept = 0

    def between(self, live: LiveTable, *, last: bool = False) -> None:
        """Between two commits: take up what was done beside them, and begin what is due; with
        `last`, what has been begun is waited for, and nothing else begins.

        Raises:
            DestinationUnavailableError, LogError: it failed; the table stands as it is.
        """
        if live.state is None:
            return
        compaction = self._finished(live.state, wait=last)
        if compaction is not None:
            self._put_in_place(live, compaction)
        live.preserve_index(last=last)
        if not last and live.state is not None:
            self._begin(live.state, live.rows)

    def _put_in_place(self, live: LiveTable, compaction: Compaction) -> None:
        """Commit copies in the place of their sources, unless the table has gone another way."""
        empty: list[str] = []

        def plan() -> Commit | None:
            made = compaction.against(live.storage, live.known(), live.deleted)
            if made is None:
                return None
            empty[:] = made.empty
            return Commit(made.commit, made.follow if live.rows is compaction.index else None)

        try:
            committed = live.commit(plan)
        except DestinationConflictError:
            committed = False
        if committed:
            hit("delta.compacted")
            live.storage.delete(empty)
        else:
            compaction.abandon(live.storage)

    def _begin(self, state: TableState, index: RowIndex | None) -> None:
        """Begin what is due, unless something is going on."""
        if self._work is None:
            work = self._due(state, index)
            if work is not None:
                self._work = self._beside.submit(work)

    def _due(
        self, state: TableState, index: RowIndex | None
    ) -> Callable[[], Compaction | _Checked | None] | None:
        if state.version - state.checkpoint_version >= maintenance.CHECKPOINT_EVERY:
            sweep = None
            if state.version - self._swept >= maintenance.SWEEP_EVERY:
                sweep = Sweep.of(state, actions.now_ms())
            checked = _Checked(state.version, sweep)
            return lambda: self._check(checked)
        if not self._looked or state.version - self._looked >= self._policy.every:
            self._looked = state.version
            metadata, files, clustering = state.metadata, [*state.files.values()], self._cluster_by

            def rewrite() -> Compaction | None:
                groups = maintenance.choose(files, self._policy, clustering)
                if not groups:
                    return None
                return compact(self._storage, metadata, groups, index, clustering)

            return rewrite
        return None

    def _check(self, due: _Checked) -> _Checked:
        maintenance.write_checkpoint(self._storage.url, self._options)
        if due.sweep is not None:
            maintenance.clean_log(self._storage.url, self._options)
            due.sweep.run(self._storage)
        return due

    def _finished(self, state: TableState, *, wait: bool = False) -> Compaction | None:
        """Take up what was finished since; gives the copies that are to be committed, if any.

        With `wait`, what has been begun is waited for, and what has not is let go of.

        Raises:
            DestinationUnavailableError, LogError: it failed; the table stands as it is.
        """
        work = self._work
        if work is None or not (work.done() or wait):
            return None
        self._work = None
        if not work.done() and work.cancel():
            return None
        done = work.result()
        if isinstance(done, _Checked):
            state.checkpoint_version = done.version
            if done.sweep is not None:
                self._swept = done.version
                _forget(state.retired, done.sweep.before)
        elif done is not None:
            self._looked = 0  # there may be more
            return done
        return None


def _forget(retired: dict[str, int], before: int) -> None:
    for path in [path for path, at in retired.items() if at < before]:
        del retired[path]
