"""What a synced table is, where it stands and what it is doing: the words of engine/sync.py."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from headrace.engine.judging import RuleCount
from headrace.engine.protocols import SyncedTable, VersionedTable
from headrace.engine.table_state import Phase
from headrace.engine.transform import Transform
from headrace.errors import HeadraceError
from headrace.model import Checkpoint, Delivery, Mode, RowCounts, RowRules, TableId, TableVersion

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much is held in memory at a time, and from when on building anew is the better way."""

    # Versions are applied together up to so many rows of the feed: fixed costs vanish there.
    batch_rows: int = 500_000
    # One version, or what two versions differ by, is merged up to so many rows, and so many bytes
    # as Arrow holds them; netting and staging need about three times that.
    merge_rows: int = 2_000_000
    merge_bytes: int = 256 << 20
    # Below so many changes a merge takes less than the locks and indexes of a rebuild.
    rebuild_rows: int = 10_000
    # Rows of both sides that are compared by fingerprint: 32 bytes for each at the source, 16 at
    # the destination, and as much again while they are sorted.
    diff_rows: int = 10_000_000


@dataclass(frozen=True)
class SyncTarget:
    """One table of a pipeline: what it is read from, where it goes, and how."""

    source: VersionedTable
    destination: SyncedTable
    rules: RowRules = field(default_factory=RowRules)
    delivery: Delivery = field(default_factory=Delivery)
    mode: Mode = Mode.SCD1

    @property
    def table(self) -> TableId:
        """Its name at the source."""
        return self.source.name


@dataclass
class SyncState:
    """Where one table stands. Written by the table's own thread, read by displays.

    `checkpoint` is what the destination holds; `head` the source's newest version as last seen, and
    `behind_since` the commit time of the oldest version that is known and not applied. While rows
    are copied, `copied_rows` of `expected_rows` (None where nobody knows) have been read. `notice`
    says what was done out of the ordinary, and why; it stays until something else is to be said.
    """

    target: SyncTarget
    phase: Phase = Phase.WAITING
    error: HeadraceError | None = None
    notice: str | None = None
    checkpoint: Checkpoint | None = None
    commit_ts: datetime | None = None
    head: TableVersion | None = None
    behind_since: datetime | None = None
    copied_rows: int = 0
    expected_rows: int | None = None
    applied_rows: int = 0
    written: RowCounts = field(default_factory=RowCounts)
    transforms: list[Transform] = field(default_factory=list)  # one per schema since the start
    resync: bool = False
    caught_up: bool = False  # at least once since the run began

    def saw(self, head: TableVersion, standing: Checkpoint | None) -> None:
        """Both ends told where they are."""
        self.head, self.checkpoint = head, standing
        here = standing is not None and (standing.log_id, standing.commit) == (
            head.log_id,
            head.number,
        )
        self.behind_since = None if here else head.commit_ts

    def loads(self) -> None:
        """The whole table is about to be copied."""
        self.phase, self.copied_rows, self.expected_rows = Phase.LOADING, 0, None

    def applied(self, at: Checkpoint, commit_ts: datetime, rows: RowCounts) -> None:
        """The destination holds everything up to `at`."""
        self.checkpoint, self.commit_ts = at, commit_ts
        self.applied_rows += rows.upserted + rows.deleted
        self.written += rows

    def arrived(self) -> None:
        """The destination holds what the source had when it was asked."""
        self.phase, self.error, self.behind_since = Phase.STREAMING, None, None
        self.resync, self.caught_up = False, True

    def hold(self, reason: str) -> None:
        """The table is left alone."""
        self.phase, self.error = Phase.HELD, None
        self.note(reason)

    def note(self, notice: str) -> None:
        """Say what is done out of the ordinary, and why."""
        self.notice = notice
        log.debug("table=%s notice=%r", self.target.table, notice)

    @property
    def version(self) -> int | None:
        return self.checkpoint.commit if self.checkpoint else None

    @property
    def lag_versions(self) -> int | None:
        """Versions that are known and not applied; None before either end is known."""
        if self.checkpoint is None or self.head is None:
            return None
        same = self.checkpoint.log_id == self.head.log_id
        return max(self.head.number - (self.checkpoint.commit if same else -1), 0)

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest version that is known and not applied; 0 if there is none."""
        if self.behind_since is None:
            return 0.0
        return max((datetime.now(UTC) - self.behind_since).total_seconds(), 0.0)

    @property
    def counts(self) -> dict[str, RuleCount]:
        """Per expectation, the rows that were looked at and those that broke it."""
        total: dict[str, RuleCount] = {}
        for transform in list(self.transforms):
            for name, count in transform.counts.items():
                total[name] = total.get(name, RuleCount()) + count
        return total

    @property
    def settled(self) -> bool:
        """Nothing is left to do of what was asked at the start, or nothing more can be done."""
        return self.caught_up or self.phase in (Phase.FAILED, Phase.HELD)

    def describe(self, applied_before: int = 0) -> dict[str, Any]:
        """What `headrace status` shows, as JSON; `applied_before` counts earlier runs' rows."""
        return {
            "phase": self.phase.value,
            "log_id": self.checkpoint.log_id if self.checkpoint else None,
            "version": self.version,
            "commit_ts": _text(self.commit_ts),
            "head": self.head.number if self.head else None,
            "lag_versions": self.lag_versions,
            "behind_since": _text(self.behind_since),
            "rows_applied": applied_before + self.applied_rows,
            "upserted": self.written.upserted,
            "deleted": self.written.deleted,
            "rows_copied": self.copied_rows,
            "rows_expected": self.expected_rows,
            "expectations": {
                name: {"checked": count.checked, "breaches": count.breaches}
                for name, count in self.counts.items()
            },
            "notice": self.notice,
            "error": str(self.error) if self.error else None,
        }


@dataclass(frozen=True)
class SyncView:
    """What a display may read of one pipeline while it runs; never written by it."""

    pipeline: str
    tables: Mapping[TableId, SyncState]

    @property
    def rows_applied(self) -> int:
        """Rows that the destination took, since the run began."""
        return sum(state.applied_rows for state in self.tables.values())

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest version that some table knows of and has not applied."""
        return max((state.lag_seconds for state in self.tables.values()), default=0.0)


def digest(rules: RowRules, delivery: Delivery) -> str:
    """A name for what makes a table's rows: another one means that they may differ.

    The secret of a mask is a part of it, but cannot be guessed from what is written down.
    """
    settled = {name: _ordered(value) for name, value in vars(rules).items()}
    secrets = sorted((column, _blurred(m.key)) for column, m in rules.masks.items() if m.key)
    told = (sorted(settled.items()), secrets, delivery.on_delete.value)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


@functools.cache
def _blurred(secret: str) -> bytes:
    """Two bytes of a slow hash: they tell nearly every other secret, and prove none."""
    return hashlib.pbkdf2_hmac("sha256", secret.encode(), b"headrace", 100_000)[:2]


def _ordered(value: object) -> object:
    return sorted(value.items()) if isinstance(value, Mapping) else value


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
