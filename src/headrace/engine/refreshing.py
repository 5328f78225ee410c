"""Which tables of a materialization are to be copied anew now, and why: those that somebody asks
for, and those that stopped for a cause that the user's policy answers by a refresh."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from headrace.engine.mending import Compared
from headrace.engine.table_state import Phase, TableState, TableTarget
from headrace.errors import (
    DivergedError,
    HeadraceError,
    LogGapError,
    TableStoppedError,
    UnsupportedSchemaChangeError,
)
from headrace.model import TableId
from headrace.model.refresh import RefreshCause, RefreshPolicy

_CAUSES: Final[Mapping[type[HeadraceError], RefreshCause]] = {
    UnsupportedSchemaChangeError: RefreshCause.SCHEMA_CHANGE,
    TableStoppedError: RefreshCause.SCHEMA_CHANGE,
    DivergedError: RefreshCause.DIVERGED,
    LogGapError: RefreshCause.LOG_LOST,
}


@dataclass(frozen=True)
class Refresh:
    """A copy that is to begin: of which table, why, in words."""

    table: TableId
    why: str


def cause_of(error: HeadraceError | None) -> RefreshCause | None:
    """The cause that a table's error is, if a refresh is an answer to it."""
    return next((cause for kind, cause in _CAUSES.items() if isinstance(error, kind)), None)


class Refresher:
    """Decides; the materialization carries out. `ask` may be called from any thread."""

    def __init__(self, policy: RefreshPolicy | None, record: Mapping[str, Any]) -> None:
        self._policy = policy
        self._asked: dict[TableId, str] = {}
        self._suspects: dict[TableId, str] = {}
        self._lock = threading.Lock()
        self._last: dict[str, datetime] = {}
        self._notices: dict[str, str] = {}
        for table, known in record.get("tables", {}).items():
            if known.get("refreshed"):
                self._last[table] = datetime.fromisoformat(known["refreshed"])
            if known.get("notice"):
                self._notices[table] = known["notice"]
            if known.get("refreshing"):  # it was cut short
                self._asked[TableId.parse(table)] = known["refreshing"]

    def ask(self, tables: Iterable[TableId], why: str) -> None:
        """Have tables copied anew as soon as can be, whatever the policy says."""
        with self._lock:
            self._asked.update(dict.fromkeys(tables, why))

    def suspect(self, table: TableId, why: str) -> None:
        """A table goes on, but is not as its source: it is copied anew if the policy says so."""
        with self._lock:
            self._suspects[table] = why

    def asked(self, tables: Collection[TableId]) -> bool:
        """Whether one of the tables was asked for and has not been begun yet."""
        with self._lock:
            return any(table in self._asked for table in tables)

    def due(self, states: Collection[TableState], now: datetime) -> list[Refresh]:
        """What is to begin at `now`; what was asked for stays so until it is `recorded`."""
        free = {state.target.table for state in states if state.comparing is None}
        with self._lock:
            asked = {table: why for table, why in self._asked.items() if table in free}
        return [*(Refresh(*entry) for entry in asked.items()), *self._answers(states, asked, now)]

    def recorded(self, refreshes: Iterable[Refresh]) -> None:
        """These have begun, and a crash does not forget them."""
        with self._lock:
            for refresh in refreshes:
                self._asked.pop(refresh.table, None)

    def _answers(
        self, states: Iterable[TableState], asked: Collection[TableId], now: datetime
    ) -> Iterator[Refresh]:
        for state in states:
            table = state.target.table
            start = None if table in asked else self.start(state, now)
            if start is not None and start <= now:
                error = state.error.message if state.error is not None else ""
                yield Refresh(table, error or self._suspects[table])

    def start(self, state: TableState, now: datetime) -> datetime | None:
        """From when on a stopped table may be copied anew by itself; None: never."""
        cause = cause_of(state.error) if state.phase is Phase.FAILED else None
        if state.phase is Phase.STREAMING and state.target.table in self._suspects:
            cause = RefreshCause.DIVERGED
        if self._policy is None or cause is None:
            return None
        return self._policy.start(cause, self._last.get(str(state.target.table)), now)

    def lost(self, target: TableTarget, floor: int, error: HeadraceError) -> TableState:
        """A table whose changes are lost: it waits for a snapshot, or until the policy lets it."""
        if self._policy is not None:
            return TableState(target, None, floor, Phase.FAILED, error)
        return TableState(target, None, floor, Phase.WAITING, error, refreshing=error.message)

    def began(self, refresh: Refresh, now: datetime) -> None:
        name = str(refresh.table)
        self._last[name] = now
        self._suspects.pop(refresh.table, None)
        self._notices[name] = f"is being copied anew: {refresh.why}"

    def ended(self, state: TableState, compared: Compared | None) -> None:
        """Say what a refresh came to; a first load is none."""
        name = str(state.target.table)
        if state.refreshing:
            done = "copied anew" if compared is None else f"compared with its source: {compared}"
            when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
            self._notices[name] = f"was {done} ({when}), because {state.refreshing}"

    def describe(self, state: TableState) -> dict[str, Any]:
        """What is recorded of a table, for the next run and for `headrace status`."""
        name = str(state.target.table)
        last, now = self._last.get(name), datetime.now(UTC)
        start, notice = self.start(state, now), self._notices.get(name)
        if start is not None:
            notice = f"is copied anew by itself from {start:%Y-%m-%d %H:%M} UTC on"
        return {
            "refreshed": last.isoformat() if last else None,
            "refreshing": state.refreshing or None,
            "notice": notice,
        }
