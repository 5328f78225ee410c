"""Copying tables of a capture anew: in a run of our own, or in the one that goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from headrace import assembly
from headrace.config import Capture, Settings
from headrace.engine.table_state import Phase
from headrace.errors import HeadraceError, LogLockedError
from headrace.model import TableId

LOOK_INTERVAL: Final = 0.2  # seconds


@dataclass(frozen=True)
class TableFailure:
    """A table that waits for a person, while the others went on."""

    pipeline: str
    table: TableId
    error: HeadraceError


def refreshed(
    settings: Settings,
    capture: Capture,
    tables: Sequence[TableId],
    why: str,
    run: Callable[[], list[TableFailure]],
    stop: threading.Event,
) -> list[TableFailure]:
    """Have tables of the source copied anew, and give those that failed.

    `run` runs the capture until it has caught up; where another process does, that one takes the
    request up, and is waited for. A request stands until some run has taken it up.
    """
    request = assembly.ask_refresh(settings, capture, tables, why)
    while not stop.is_set():
        try:
            return run()
        except LogLockedError:
            while not stop.wait(LOOK_INTERVAL):
                if assembly.is_pending(settings, request):
                    if assembly.lock_holder(settings, capture) is None:
                        break  # that run has ended without having seen it
                elif not _is_copying(settings, capture, tables):
                    return list(_failures(settings, capture, tables))
                elif assembly.lock_holder(settings, capture) is None:
                    break  # what it began is recorded, and ours goes on with
    return []


def _is_copying(settings: Settings, capture: Capture, tables: Sequence[TableId]) -> bool:
    return any(known.get("refreshing") for _, _, known in _recorded(settings, capture, tables))


def _failures(
    settings: Settings, capture: Capture, tables: Sequence[TableId]
) -> Iterator[TableFailure]:
    for pipeline, table, known in _recorded(settings, capture, tables):
        if known["phase"] == Phase.FAILED.value:
            message, _, hint = str(known["error"]).partition("\nhint: ")
            yield TableFailure(pipeline, table, HeadraceError(message, hint=hint))


def _recorded(
    settings: Settings, capture: Capture, tables: Sequence[TableId]
) -> Iterator[tuple[str, TableId, dict[str, Any]]]:
    """What the run that goes on has recorded of the tables, by pipeline."""
    reader = assembly.open_reader(settings, capture)
    for pipeline in capture.pipelines:
        known = (reader and reader.position(pipeline)) or {"tables": {}}
        for table in tables:
            if str(table) in known["tables"]:
                yield pipeline, table, known["tables"][str(table)]
