"""Which version of a table holds what its source held at an LSN: read from the table's own log.

Each of our commits tells the LSN that it brings the table to, and the one up to which the version
before it was still what the source was. Between those two lie changes that one commit took
together: no version stands there. Commits that change no row (compaction, checkpoints) tell none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltalake import DeltaTable

from headrace.connectors.delta.actions import LSN_SUFFIX
from headrace.connectors.delta.history import TableHistory
from headrace.connectors.delta.plans import LOG_ID, PIPELINE, SOURCE
from headrace.errors import NoVersionError
from headrace.log.storage import Storage
from headrace.model import Lsn, Reached, TableId

_NEWEST = "headrace lsn tells the newest LSN that all tables have reached"


@dataclass(frozen=True)
class Span:
    """A version whose rows are those of the source at every LSN from `first` to `last`."""

    version: int
    first: Lsn
    last: Lsn


@dataclass(frozen=True)
class _Told:
    """What the newest commit of ours at or before a version says; `after` as in NetChanges."""

    lsn: Lsn
    after: Lsn | None


class Timeline:
    """One table's versions by the LSNs of its source, as far as its log goes back.

    `reached` is asked for what the pipeline noted beside its change log, by pipeline, log and
    source table. It must have been noted before the table is looked at: later notes may speak of
    versions that were not there yet.
    """

    def __init__(
        self,
        name: TableId,
        storage: Storage,
        options: Mapping[str, str],
        reached: Callable[[str, str], Reached | None],
    ) -> None:
        self.name = name
        self._storage = storage
        self._options = dict(options) or None
        self._newest = self._table(None)
        self.head = self._newest.version()
        known = self._newest.metadata().configuration
        self.pipeline = known.get(PIPELINE)
        self.log_id = known.get(LOG_ID)
        self.source = known.get(SOURCE, "")
        self._history = TableHistory(lambda: storage)
        self._spans: dict[int, _Told | None] = {}
        self.standing = self._standing(self._newest)
        self.reached = self._reached(reached)

    def span(self, lsn: Lsn) -> Span:
        """The newest version that came no later than `lsn`, and for how long it was the source's.

        Raises:
            NoVersionError: the table was loaded later, or its log no longer goes back so far.
        """
        version = self._newest_until(lsn)
        told = self._told(version)
        assert told is not None  # else it would not have been found
        if version == self.head:
            return Span(version, told.lsn, self.reached)
        following = self._told(version + 1)
        after = following.after if following else None
        return Span(version, told.lsn, max(told.lsn, after or told.lsn))

    def version_at(self, lsn: Lsn) -> int:
        """The version that holds exactly what the source held at `lsn`.

        Raises:
            NoVersionError: there is none; says why, and which LSN has one.
        """
        span = self.span(lsn)
        if lsn <= span.last:
            return self._steady(span.version)
        if span.version == self.head:
            raise NoVersionError(
                f"{self.name} holds its source up to {span.last}, not yet to {lsn}",
                hint=_NEWEST,
                table=str(self.name),
            )
        raise NoVersionError(
            f"{self.name} has no version that stands at {lsn}: version {span.version} is its "
            f"source up to {span.last}, the next one is that of a later LSN",
            hint=f"headrace lsn --at {lsn} tells the newest LSN before that each table stands at",
            table=str(self.name),
        )

    # -- where the table stands --------------------------------------------------------------------

    def _table(self, version: int | None) -> DeltaTable:
        return DeltaTable(self._storage.url, version, storage_options=self._options)

    def _standing(self, table: DeltaTable) -> tuple[int, Lsn] | None:
        """The commit of the change log that a version stands at, and its LSN."""
        app_id = f"headrace/{self.log_id}/{self.pipeline}/{self.name}"
        commit = table.transaction_version(app_id)
        lsn = table.transaction_version(app_id + LSN_SUFFIX)
        return None if commit is None or lsn is None else (commit, Lsn(lsn))

    def _reached(self, reached: Callable[[str, str], Reached | None]) -> Lsn:
        """Up to where the newest version is what the source was.

        Commits bring a table on only where it changed; that nothing else came is noted elsewhere.
        """
        if self.standing is None or not (self.pipeline and self.log_id):
            return Lsn(0)
        commit, lsn = self.standing
        noted = reached(self.pipeline, self.source)
        if noted is None or noted.log_id != self.log_id or noted.applied > commit:
            return lsn  # of another life of the table, such as before a restore
        return max(lsn, noted.lsn)

    # -- versions ----------------------------------------------------------------------------------

    @cached_property
    def _oldest(self) -> int:
        return self._history.oldest()

    def _newest_until(self, lsn: Lsn) -> int:
        """The newest version that came no later than `lsn`; found by halving what lies between."""
        if self._is_until(self.head, lsn):
            return self.head
        low, high = self._oldest, self.head  # the answer is before `high`
        step = 1
        while high - step > low:
            if self._is_until(high - step, lsn):
                low = high - step
            else:
                high, step = high - step, step * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._is_until(middle, lsn) else (low, middle)
        if not self._is_until(low, lsn) or self._told(low) is None:
            raise self._too_old(lsn, self._told(high if self._told(low) is None else low))
        return low

    def _is_until(self, version: int, lsn: Lsn) -> bool:
        """Whether a version came no later; those of an earlier change log came before all."""
        told = self._told(version)
        return told is None or told.lsn <= lsn

    def _told(self, version: int) -> _Told | None:
        """None for a version that holds nothing of this change log."""
        if version not in self._spans:
            self._spans[version] = self._look(version)
        return self._spans[version]

    def _look(self, version: int) -> _Told | None:
        for number in range(version, self._oldest - 1, -1):
            commit = self._history.commit(number)
            if commit is None:
                break
            info: Mapping[str, Any] = commit.info.get("headrace") or {}
            if info and info["logId"] != self.log_id:
                return None
            if info:
                after = info.get("after")
                return _Told(Lsn.parse(info["lsn"]), Lsn.parse(after) if after else None)
        found = self._standing(self._table(self._oldest))
        return None if found is None else _Told(found[1], None)

    def _steady(self, version: int) -> int:
        """`version`, or before it the last one that no other writer and no new columns changed."""
        first = version
        while first > self._oldest and not self._is_ours(first):
            first -= 1
        for number in range(first + 1, version + 1):
            if self._changes_something(number):
                return number - 1
        return version

    def _is_ours(self, version: int) -> bool:
        commit = self._history.commit(version)
        return commit is None or bool(commit.info.get("headrace"))

    def _changes_something(self, version: int) -> bool:
        commit = self._history.commit(version)
        if commit is None:
            return False
        if any(commit.changed("add")) or any(commit.changed("remove")):
            return True
        return any(commit.of("metaData")) and self._columns(version) != self._columns(version - 1)

    def _columns(self, version: int) -> object:
        header = self._history.header(version)
        return header and header.metadata["schemaString"]

    def _too_old(self, lsn: Lsn, oldest: _Told | None) -> NoVersionError:
        where = f" as of {oldest.lsn}" if oldest else ""
        if self._oldest == 0 or self._told(self._oldest) is None:
            why, hint = f"{self.name} was loaded{where}, after {lsn}", _NEWEST
        else:
            why = f"the log of {self.name} goes back to a version{where}, no longer to {lsn}"
            hint = f"raise the table property delta.logRetentionDuration; {_NEWEST}"
        return NoVersionError(why, hint=hint, table=str(self.name))
