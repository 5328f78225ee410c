"""When a key index is saved, and how that goes beside the commits of its table.

A save writes what has changed since the last one, in another thread: leaves never change, and those
that the directory in the making names are kept until the next one stands.
"""

from __future__ import annotations

from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import Final

from headrace.connectors.delta.index_file import Claim, IndexFolder, Loaded, SavedIndex, Stamp
from headrace.connectors.delta.leaves import Pool
from headrace.errors import DestinationUnavailableError

# Entries that came since the last save: a restart reads their keys again, which takes a tenth of a
# second for a million, in as many files as there were commits.
DUE: Final = 1 << 20
DUE_SHARE: Final = 8  # one in eight of an index's entries, so that a restart reads few of the keys
DUE_LAST: Final = 1 << 14  # when the table is let go of; fewer are read as fast as they are saved


class Preserved:
    """The saved index of one table, in a folder of its own on local disk."""

    def __init__(self, folder: Path, claim: Claim, beside: Executor) -> None:
        self._path = folder
        self._folder = IndexFolder(folder, claim)
        self._beside = beside
        self._size = 0
        self._under_way: tuple[Future[None], SavedIndex, Pool, set[int]] | None = None
        self._standing: frozenset[int] = frozenset()  # leaves that the directory on disk names

    def new_leaves(self) -> Path | None:
        """Where another index may keep its leaves; None if another process uses the folder."""
        return self._folder.new_leaves() if self._claim() else None

    def _claim(self) -> bool:
        try:
            return self._folder.claim()
        except OSError as error:
            raise self._error(error) from error

    def load(self, wanted: Stamp, memory: int) -> Loaded | None:
        """What was saved, if it is of this table and key; another process's is not looked at."""
        if not self._claim():
            return None
        self._wait()
        loaded = self._folder.load(wanted, memory)
        if loaded is not None:
            self._standing = loaded.index.places()
        return loaded

    def is_due(self, fresh: int, *, last: bool) -> bool:
        """Whether to save an index that took in so many entries since. Ends a save that is done.

        Raises:
            DestinationUnavailableError: that one failed.
        """
        if not self._claim():
            return False
        if self._under_way is not None and (last or self._under_way[0].done()):
            self._end()
        wanted = DUE_LAST if last else max(DUE, self._size // DUE_SHARE)
        return self._under_way is None and fresh >= wanted

    def save(self, index: SavedIndex, pool: Pool, *, last: bool) -> None:
        """Begin to save; as the `last` thing, end it too. Raises DestinationUnavailableError."""
        changed, pool.changed = pool.changed, set()
        self._size = int(sum(tier[2].sum() for tier in index.all_tiers()))
        pool.pin(self._standing | index.places())
        if last:
            saving: Future[None] = Future()
            self._under_way = (saving, index, pool, changed)
            try:
                self._folder.save(index, pool, changed)
            except OSError as error:
                saving.set_exception(error)
            else:
                saving.set_result(None)
            self._end()
            return
        saving = self._beside.submit(self._folder.save, index, pool, sorted(changed))
        self._under_way = (saving, index, pool, changed)

    def release(self) -> None:
        """End a save that is under way, and let others have the folder.

        Raises:
            DestinationUnavailableError: the save failed.
        """
        try:
            self._wait()
        finally:
            self._folder.release()

    def _wait(self) -> None:
        if self._under_way is not None:
            self._end()

    def _end(self) -> None:
        """Take note of what became of a save; waits for it."""
        assert self._under_way is not None
        (saving, index, pool, changed), self._under_way = self._under_way, None
        try:
            saving.result()
        except CancelledError:
            pool.changed |= changed
        except OSError as error:
            pool.changed |= changed
            raise self._error(error) from error
        else:
            self._standing = index.places()
        pool.pin(self._standing)

    def _error(self, error: OSError) -> DestinationUnavailableError:
        return DestinationUnavailableError(
            f"cannot keep the index of a table in {self._path}: {error}",
            hint=f"the table stands; see what is in the way: df -h {self._path.parent}",
        )
