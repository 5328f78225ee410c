"""How long a slot will last, and who keeps the server from letting go of its WAL.

Postgres documentation, "pg_replication_slots" (wal_status, safe_wal_size) and "Replication"
(max_slot_wal_keep_size, idle_replication_slot_timeout). Shown by `headrace status`, and warned of
in the log of a run while something can be done about it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from headrace.connectors.postgres.slot_state import END_OF_WAL, SlotState

SEGMENT: Final = 16 << 20  # what a server keeps of its WAL is whole segments of this size

WARN_SECONDS: Final = 86_400.0  # a slot that is lost within a day wants a person's attention
WARN_SHARE: Final = 0.5  # and so does one that uses half of what it may
WARN_BYTES: Final = 10 << 30  # where there is no limit but the disk
TELL_INTERVAL: Final = 600.0  # seconds between two warnings of the same kind

# The rate at which WAL is written, since the last checkpoint (on a standby: restartpoint) began;
# and the two limits of a slot's life, of which the second is of 18.
WEATHER: Final = f"""
SELECT pg_catalog.pg_wal_lsn_diff(w.lsn, c.redo_lsn)
         / greatest(extract(epoch FROM pg_catalog.clock_timestamp() - c.checkpoint_time), 1)
         AS rate,
       pg_catalog.pg_size_bytes(pg_catalog.current_setting('max_slot_wal_keep_size')) AS keep,
       extract(epoch FROM coalesce(
         pg_catalog.current_setting('idle_replication_slot_timeout', true), '0')::interval) AS idle,
       extract(epoch FROM pg_catalog.clock_timestamp() - %s::timestamptz) AS inactive
  FROM pg_catalog.pg_control_checkpoint() c, ({END_OF_WAL}) w
"""  # noqa: S608  # a constant

# Decoding has to begin anew where the oldest open transaction began, in whatever database. One that
# has written nothing has no xid, and holds up nothing.
TRANSACTIONS: Final = """
SELECT pid, usename::text AS role, datname::text AS database, application_name AS application,
       xact_start AS since, NULL AS gid, pg_catalog.age(backend_xid) AS age
  FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL
 UNION ALL
SELECT NULL, owner::text, database::text, NULL, prepared, gid, pg_catalog.age(transaction)
  FROM pg_catalog.pg_prepared_xacts
 ORDER BY age DESC LIMIT 1
"""

# synchronized_standby_slots (17) makes a walsender wait for standbys, for as long as they are away.
WAITING: Final = """
SELECT pg_catalog.current_setting('synchronized_standby_slots', true)
  FROM pg_catalog.pg_stat_activity WHERE pid = %s AND wait_event = 'WaitForStandbyConfirmation'
"""

_log = logging.getLogger("headrace.run")


@dataclass(frozen=True)
class Holder:
    """Who keeps a slot's restart_lsn where it is. What is None does not apply, or may not be seen.

    `kind` is `nobody_reads`, `transaction`, `prepared`, `standby` or `reader`: the process `pid`
    that reads from the slot has not confirmed more.
    """

    kind: str
    pid: int | None = None
    role: str | None = None
    database: str | None = None
    application: str | None = None
    since: datetime | None = None
    gid: str | None = None
    standbys: str | None = None

    @property
    def told(self) -> str:
        """For people."""
        since = f" since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        whose = f" (user {self.role}, database {self.database}"
        match self.kind:
            case "nobody_reads":
                return f"nobody reads from it{since}"
            case "transaction":
                return f"a transaction of process {self.pid}{whose}, {self.application!r}){since}"
            case "prepared":
                return f"the prepared transaction {self.gid!r}{whose}){since}"
            case "standby":
                return f"the server waits for the standbys {self.standbys}"
        return f"process {self.pid} ({self.application!r}), which reads from it, lags"

    @property
    def cure(self) -> str:
        """SQL or a command that lets the slot move on."""
        match self.kind:
            case "nobody_reads":
                return "headrace run"
            case "transaction":
                return f"SELECT pg_terminate_backend({self.pid})"
            case "prepared":
                gid = (self.gid or "").replace("'", "''")
                return f"ROLLBACK PREPARED '{gid}' (or COMMIT PREPARED)"
            case "standby":
                return "bring them back, or ALTER SYSTEM SET synchronized_standby_slots"
        return "headrace status tells how far the run is behind"


@dataclass(frozen=True)
class SlotOutlook:
    """`rate` is in bytes of WAL a second, since the last checkpoint began; `limit` what a slot may
    retain, None without limit. `lost_in` is how many seconds it lasts if it does not move on; None
    if nothing threatens it. `holder` is None where it retains next to nothing."""

    rate: float
    limit: int | None
    lost_in: float | None
    holder: Holder | None


def read_outlook(session: psycopg.Connection[Any], slot: SlotState) -> SlotOutlook:
    """What awaits a slot."""
    with session.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(WEATHER, (slot.inactive_since,)).fetchone()
    assert row is not None
    rate, limit = max(float(row["rate"] or 0), 0.0), int(row["keep"])
    idle, inactive = float(row["idle"]), row["inactive"]
    left = None if inactive is None or not idle else max(idle - float(inactive), 0.0)
    return SlotOutlook(
        rate=rate,
        limit=None if limit < 0 else limit,
        lost_in=forecast(slot, rate, left),
        holder=_holder(session, slot) if (slot.retained_bytes or 0) > SEGMENT else None,
    )


def forecast(slot: SlotState, rate: float, idle_left: float | None) -> float | None:
    """Seconds until a slot that does not move on is lost; 0 if it is, None if nothing threatens it.

    `idle_left` are the seconds until the server gives up a slot that nobody reads from.
    """
    if slot.lost_because:
        return 0.0
    left = [] if idle_left is None or slot.active_pid else [idle_left]
    if slot.safe_wal_size is not None and (rate > 0 or slot.safe_wal_size <= 0):
        left.append(max(slot.safe_wal_size, 0) / rate if rate > 0 else 0.0)
    return min(left, default=None)


def _holder(session: psycopg.Connection[Any], slot: SlotState) -> Holder:
    if slot.active_pid is None:
        return Holder("nobody_reads", since=slot.inactive_since)
    waiting = session.execute(WAITING, (slot.active_pid,)).fetchone()
    if waiting is not None:
        return Holder("standby", standbys=waiting[0])
    with session.cursor(row_factory=dict_row) as cursor:
        oldest = cursor.execute(TRANSACTIONS).fetchone()
    if oldest is None or (
        # A reader of prepared transactions confirms nothing of what came since the oldest of them.
        (slot.lag_bytes or 0) > (slot.retained_bytes or 0) / 2
        and not (slot.two_phase and oldest["gid"])
    ):
        return Holder("reader", pid=slot.active_pid, application=slot.application_name)
    del oldest["age"]
    return Holder("prepared" if oldest["gid"] else "transaction", **oldest)


def alarms(slot: SlotState, outlook: SlotOutlook) -> bool:
    """Whether a person should look at a slot now, in good time before it is lost."""
    retained = slot.retained_bytes or 0
    if outlook.limit is None:
        return retained >= WARN_BYTES
    soon = outlook.lost_in is not None and outlook.lost_in < WARN_SECONDS
    return retained > SEGMENT and (
        retained >= WARN_SHARE * outlook.limit or (soon and slot.wal_status != "reserved")
    )


class SlotWatch:
    """Warns in the log of a run; `look` is called every few seconds, by one thread."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def look(self, session: psycopg.Connection[Any], slot: SlotState) -> None:
        """Warn of a slot that comes into danger, not too often for the same cause."""
        outlook = read_outlook(session, slot)
        holder = outlook.holder
        if holder is None or not alarms(slot, outlook):
            return
        if time.monotonic() < self._told.get(holder.kind, 0.0):
            return
        self._told[holder.kind] = time.monotonic() + TELL_INTERVAL
        _log.warning(
            "slot_retains_wal slot=%s wal_status=%s retained_bytes=%s limit_bytes=%s lost_in=%s "
            'held_by="%s" hint="%s"',
            *(slot.name, slot.wal_status, slot.retained_bytes, outlook.limit),
            "never" if outlook.lost_in is None else f"{outlook.lost_in:.0f}s",
            *(holder.told, holder.cure),
        )
