"""Turns at work: many tables, a few threads, and each table in one of them at a time at most."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from headrace.engine.table_state import TableState
from headrace.model import TableId

# A commit waits for the disk or the store for half of its time, or most of it. Turns that bring
# much are bounded by memory instead.
WORKERS: Final = 4
LARGE: Final = 2
LARGE_ROWS: Final = 20_000
LARGE_BYTES: Final = 2 << 20  # of files of the change log, twenty times that in memory at most


class Turns:
    """`take` is what a table does at its turn, and raises what ends the run. All methods but `room`
    are called from the one thread that gives turns."""

    def __init__(self, take: Callable[[TableState], None], name: str, workers: int) -> None:
        self._take = take
        self._name = name
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._working: dict[TableId, Future[None]] = {}
        self._large = threading.Semaphore(LARGE)

    @contextmanager
    def at_work(self) -> Iterator[ThreadPoolExecutor]:
        """Turns that have not begun when the block ends are not taken."""
        with ThreadPoolExecutor(self._workers, self._name) as pool:
            self._pool = pool
            try:
                yield pool
            finally:
                self.cancel()

    @property
    def tables(self) -> Collection[TableId]:
        """Those that are at their turn, or wait for it."""
        return self._working.keys()

    def give(self, states: Iterable[TableState]) -> None:
        """Let tables that are not at work take a turn, in this order."""
        assert self._pool is not None
        for state in states:
            self._working[state.target.table] = self._pool.submit(self._take, state)

    def see(self, patience: float | None = None) -> None:
        """Wait until all turns are over, or so many seconds, and take note of those that are."""
        over = wait(self._working.values(), patience).done
        for table, turn in list(self._working.items()):
            if turn in over:
                del self._working[table]
                if not turn.cancelled():
                    turn.result()

    def cancel(self) -> None:
        """Take back the turns that have not begun."""
        for turn in self._working.values():
            turn.cancel()

    def room(self, rows: int, size: int) -> AbstractContextManager[object]:
        """Memory to bring so many rows, of files of so many bytes; waits for others where it is
        much."""
        return self._large if rows > LARGE_ROWS or size > LARGE_BYTES else nullcontext()
