"""Where a table goes on: what its destination holds, set against the change log that there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.engine.mending import follows
from headrace.engine.refreshing import Refresher
from headrace.engine.table_state import Phase, TableState, TableTarget
from headrace.errors import LogGapError, TableStoppedError
from headrace.log import LogReader
from headrace.model import Checkpoint, TableId


class Resumer:
    """Tells of each table of one pipeline; `record` is what its last run recorded."""

    def __init__(self, reader: LogReader, record: Mapping[str, Any], refresher: Refresher) -> None:
        self._reader = reader
        self._record = record
        self._refresher = refresher

    def resume(self, target: TableTarget, floor: int) -> TableState:
        """Where the destination says that the table stands, or that it waits for a snapshot;
        `floor` is that of the log.

        Raises:
            DestinationError: it cannot tell.
        """
        held = target.destination.held()
        if held is not None:
            stopped = TableStoppedError(f"{target.table}: {held}", hint=resync_hint(target.table))
            return TableState(target, None, self._reader.head(), Phase.HELD, stopped)
        checkpoint = target.destination.checkpoint(self._reader.log_id)
        if checkpoint is None:
            return self._unknown_to_log(target, floor)
        resumed = max(checkpoint.commit, self._recorded_pass(target.table, checkpoint))
        head = self._reader.head()
        if not floor <= resumed <= head:
            error = LogGapError(
                f"{target.table}: the destination stands at commit {resumed}, the change log "
                f"holds those after {floor} up to {head}",
                hint="Headrace copies the table again; the old data stays readable until then",
            )
            # A log that lost its end gives numbers anew: only what comes from now on counts.
            floor = head if resumed > head else floor
            return self._refresher.lost(target, floor, error)
        return TableState(
            target, checkpoint, resumed, Phase.STREAMING, durable=checkpoint, passed=resumed
        )

    def _unknown_to_log(self, target: TableTarget, floor: int) -> TableState:
        """A table that never took anything of this log: a new one, or one of a log that is lost."""
        former = follows(target.destination)
        if former is None:
            return TableState(target, None, floor, Phase.WAITING)
        error = LogGapError(
            f"{target.table}: the destination follows the change log {former}, which was lost or "
            f"begun anew; the log is {self._reader.log_id} now",
            hint="Headrace compares the table with its source; the old data stays until then",
        )
        return self._refresher.lost(target, floor, error)

    def _recorded_pass(self, table: TableId, checkpoint: Checkpoint) -> int:
        """The commit that a run before had passed, if the destination still is as it left it."""
        known = self._record.get("tables", {}).get(str(table), {})
        return int(known["passed"]) if known.get("applied") == checkpoint.commit else 0


def stopped_by_log(table: TableId, reason: str) -> TableStoppedError:
    where = "" if str(table) in reason else f"{table}: "
    return TableStoppedError(f"{where}{reason}", hint=resync_hint(table))


def resync_hint(table: TableId) -> str:
    return f"headrace resync {table}"
