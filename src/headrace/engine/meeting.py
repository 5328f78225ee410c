"""The commits of a change log at which all tables of a pipeline stand.

Tables under load commit out of step, and no LSN would ever be that of a version of each. So again
and again one commit is chosen that none of them passes without stopping there. That asks one more
commit of a table which is late, and nothing of the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from headrace.engine.table_state import TableState

# Times as long as it took all tables to pass the last one: of four commits that a table makes where
# all are late, one is a meeting's.
REST: Final = 3.0


class Meeting:
    """`commit` is the one at which every table is to stand, chosen at `called`; times in seconds of
    one clock."""

    def __init__(self) -> None:
        self.commit = 0
        self.called = 0.0
        self._next: float | None = 0.0  # not before; None while it is not over

    def look(self, states: Iterable[TableState], now: float) -> None:
        """Take note of it if all tables have passed the commit."""
        if self._next is None and all(state.is_past(self.commit) for state in states):
            self._next = now + REST * (now - self.called)

    def call(self, commit: int, now: float) -> None:
        """Choose a commit that no table has passed, if it is time for another one."""
        if self._next is not None and now >= self._next:
            self.commit, self.called, self._next = commit, now, None
