"""The tables of one pipeline that refer to one another at the destination, by its foreign keys.

Each table has a thread of its own, and nothing says in which order their sources were written. A
row that comes before the one that it refers to is refused, and parked; a few may wait there, a
whole table cannot. So a table's first rows come after those that they refer to; one whose
quarantine overflows lets the tables that it refers to catch up before it gives up; and parked rows
are tried again when the others are done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from headrace.engine.sync_state import SyncState
from headrace.engine.table_state import Phase
from headrace.errors import HeadraceError, RowsWaitError
from headrace.model import Checkpoint, TableId

# One wait for another table; its thread wakes us, this only bounds what somebody else did.
LOOK: Final = 1.0

Positions = Mapping[TableId, Checkpoint | None]


class References:
    """Shared by the threads of a pipeline's tables. Tables bear the destination's names here."""

    def __init__(self, states: Iterable[SyncState], quitting: threading.Event) -> None:
        self._states = {state.target.destination.name: state for state in states}
        self._quitting = quitting
        self._changed = threading.Condition()
        self._parents: dict[TableId, frozenset[TableId]] = {}
        self._working = set(self._states)  # a run begins with each, whichever thread is the first
        self._watching: set[TableId] = set()
        self._asked: set[TableId] = set()
        self._progress = 0  # how often rows may have come that others waited for
        self._tried: dict[TableId, int] = {}  # by who tries parked rows again: the progress known
        self._left: dict[TableId, Positions] = {}  # where all stood when rows had still to wait

    def wake(self) -> None:
        """Make waits look at whether the run ends."""
        with self._changed:
            self._changed.notify_all()

    # -- what a table's thread is doing ------------------------------------------------------------

    @contextmanager
    def working(self, state: SyncState) -> Iterator[None]:
        """The table is on its way to where its source is, for the length of the block."""
        self.begin(state)
        try:
            yield
        finally:
            with self._changed:
                self._leave(state)

    def begin(self, state: SyncState) -> None:
        """Inside `working`: on its way again, after `settle` or `parents_moved`."""
        with self._changed:
            self._working.add(_name(state))
            self._asked.discard(_name(state))

    def _leave(self, state: SyncState) -> None:
        self._working.discard(_name(state))
        self._progress += 1
        self._changed.notify_all()

    @contextmanager
    def watching(self, state: SyncState) -> Iterator[None]:
        """The table waits for a newer version, or until `is_asked`, for the length of the block."""
        with self._changed:
            self._watching.add(_name(state))
        try:
            yield
        finally:
            with self._changed:
                self._watching.discard(_name(state))

    def is_asked(self, state: SyncState) -> bool:
        """Whether another table waits for this one to look at its source, or has gone on since
        rows of this one were tried that wait for others."""
        name = _name(state)
        if name in self._asked:
            return True
        since = self._left.get(name)
        if since is None:
            return False
        return any(since[other] != at for other, at in self.positions().items() if other != name)

    # -- before and after --------------------------------------------------------------------------

    def await_parents(self, state: SyncState) -> None:
        """Return when the table may take its first rows, or has some: those that they refer to are
        there, or will not come. Of tables that refer to each other in a circle one goes first.

        Raises:
            HeadraceError: the destination cannot be asked.
        """
        first = state.checkpoint is None and state.target.destination.standing() is None
        while not self._quitting.is_set():
            parents = self._ask(state) if first or _name(state) not in self._parents else {}
            empty = [parent for parent, filled in parents.items() if not filled]
            with self._changed:
                if not first or not any(self._comes_first(p, _name(state)) for p in empty):
                    return
                self._changed.wait(LOOK)

    def settle(self, state: SyncState, *, patient: bool) -> None:
        """Try parked rows again that wait for rows of others; `patient`, until those are done.

        To be called inside `working`, which is over for the other tables then.

        Raises:
            HeadraceError: the destination cannot be asked.
        """
        before = None
        with self._changed:  # from working to settling without a gap, in which others would give up
            self._tried[_name(state)] = -1
            self._leave(state)
        try:
            while not self._quitting.is_set():
                seen, stood = self._progress, self.positions()
                left = state.target.destination.retry_waiting()
                with self._changed:
                    self._note_left(_name(state), stood if left else None)
                    self._tried[_name(state)] = seen
                    self._progress += before != left
                    self._changed.notify_all()
                    if not (left and patient) or self._is_over():
                        return
                    if self._progress == seen:
                        self._changed.wait(LOOK)
                before = left
        finally:
            with self._changed:
                self._tried.pop(_name(state), None)
                self._changed.notify_all()

    def _note_left(self, table: TableId, stood: Positions | None) -> None:
        if stood is None:
            self._left.pop(table, None)
        else:
            self._left[table] = stood

    def _is_over(self) -> bool:
        """Whether nobody is left who might bring what parked rows wait for."""
        return not self._working and all(t == self._progress for t in self._tried.values())

    # -- a quarantine that overflows ---------------------------------------------------------------

    def positions(self) -> Positions:
        """Where all tables stand, as far as is known."""
        return {name: state.checkpoint for name, state in self._states.items()}

    def may_pass_later(self, state: SyncState, error: HeadraceError) -> bool:
        """Whether what was refused may be for want of rows that are still to come."""
        return isinstance(error, RowsWaitError) and bool(self._parents.get(_name(state)))

    def parents_moved(self, state: SyncState, since: Positions) -> bool:
        """Let the tables that a table refers to catch up; whether any moved since `since`.

        To be called inside `working`, which is over for the other tables then.
        """
        parents = self._parents.get(_name(state), frozenset())
        with self._changed:
            self._leave(state)
            self._asked |= parents & self._watching
        for parent in parents:
            self._states[parent].target.source.wake()
        with self._changed:
            while not self._quitting.is_set() and (self._working | self._asked) & parents:
                self._changed.wait(LOOK)
        now = self.positions()
        return any(now[parent] != since[parent] for parent in parents)

    # -- who refers to whom ------------------------------------------------------------------------

    def _ask(self, state: SyncState) -> Mapping[TableId, bool]:
        """The tables of this pipeline that one refers to, and whether each took anything yet."""
        found = state.target.destination.parents()
        ours = {name: filled for name, filled in found.items() if name in self._states}
        with self._changed:
            if self._parents.get(_name(state)) != ours.keys():
                self._parents[_name(state)] = frozenset(ours)
                self._changed.notify_all()
        return ours

    def _comes_first(self, parent: TableId, child: TableId) -> bool:
        waits = self._states[parent].phase not in (Phase.FAILED, Phase.HELD)
        return waits and child not in self._reached_from(parent)

    def _reached_from(self, table: TableId) -> set[TableId]:
        reached: set[TableId] = set()
        front = {table}
        while front:
            reached |= front
            front = {p for t in front for p in self._parents.get(t, ())} - reached
        return reached


def _name(state: SyncState) -> TableId:
    return state.target.destination.name
