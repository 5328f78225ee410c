"""What a log says of a run: one event per change of state, made from two looks at it; pure."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from headrace.cli.numbers import (
    CopyNumbers,
    RunNumbers,
    StreamNumbers,
    SyncNumbers,
    TableNumbers,
)
from headrace.engine.table_state import Phase

_BARE: Final = re.compile(r"[^\s\"=]+\Z")
_LEVELS: Final = {
    Phase.RETRYING: logging.WARNING,
    Phase.HELD: logging.WARNING,
    Phase.FAILED: logging.ERROR,
}


@dataclass(frozen=True)
class Event:
    """One line of a log: lower-case name, fields, and a level of the `logging` module."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    level: int = logging.INFO

    def __str__(self) -> str:
        """`copy_finished table=public.orders rows=50000`."""
        return " ".join([self.name, *(f"{k}={_value(v)}" for k, v in self.fields.items())])

    def record(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {"event": self.name, **self.fields}


def _value(value: Any) -> str:
    text = str(value)
    return text if _BARE.match(text) else json.dumps(text, ensure_ascii=False)


def happenings(before: RunNumbers | None, now: RunNumbers) -> Iterator[Event]:
    """What has changed between two looks; `before` is None at the first."""
    streams = {s.pipelines: s for s in before.streams} if before else {}
    copies = {c.table: c for c in before.copies} if before else {}
    tables = {(t.pipeline, t.table): t for t in before.tables} if before else {}
    for stream in now.streams:
        yield from _of_stream(streams.get(stream.pipelines), stream)
    for copy in now.copies:
        yield from _of_copy(copies.get(copy.table), copy)
    for table in now.tables:
        known = tables.get((table.pipeline, table.table))
        yield from _of_table(known, table)
        if isinstance(table, SyncNumbers):
            yield from _of_sync(known if isinstance(known, SyncNumbers) else None, table)


def _of_stream(before: StreamNumbers | None, now: StreamNumbers) -> Iterator[Event]:
    was = before or StreamNumbers(now.pipelines, connected=False)
    if now.connected and not was.connected:
        yield Event("stream_connected", {"pipelines": now.pipelines})
    elif was.connected and not now.connected and now.error:  # without one it is closed: the end
        yield Event("stream_lost", {"pipelines": now.pipelines}, logging.WARNING)
    if now.error and now.error != was.error:
        fields = {"pipelines": now.pipelines, "error": now.error}
        yield Event("source_retrying", fields, logging.WARNING)


def _of_copy(before: CopyNumbers | None, now: CopyNumbers) -> Iterator[Event]:
    if _begun(now) and not (before and _begun(before)):
        yield Event("copy_started", {"table": now.table, "rows_expected": now.expected})
    if now.done and not (before and before.done):
        yield Event("copy_finished", {"table": now.table, "rows": now.rows})
    if now.error and not (before and before.error):
        fields = {"table": now.table, "error": now.error}
        yield Event("copy_failed", fields, logging.ERROR)


def _begun(copy: CopyNumbers) -> bool:
    return bool(copy.expected or copy.rows) or copy.ended


def _of_table(before: TableNumbers | None, now: TableNumbers) -> Iterator[Event]:
    if now.phase is (before.phase if before else Phase.WAITING):
        return
    fields: dict[str, Any] = _named(now) | {"phase": now.phase.value}
    if isinstance(now, SyncNumbers) and now.version is not None:
        fields["version"] = now.version
    if now.error:
        fields["error"] = now.error
    yield Event("table", fields, _LEVELS.get(now.phase, logging.INFO))


def _of_sync(before: SyncNumbers | None, now: SyncNumbers) -> Iterator[Event]:
    """What was done out of the ordinary, and the first breach of each rule."""
    if now.notice and now.notice != (before.notice if before else None):
        yield Event("notice", _named(now) | {"notice": now.notice}, logging.WARNING)
    known = dict(before.breaches) if before else {}
    for rule, rows in now.breaches:
        if rows and not known.get(rule):
            fields = _named(now) | {"rule": rule, "rows": rows}
            yield Event("expectation_broken", fields, logging.WARNING)


def _named(table: TableNumbers) -> dict[str, Any]:
    return {"pipeline": table.pipeline, "table": table.table}


def progress(before: RunNumbers, now: RunNumbers) -> Event:
    """How a run is going, over the time between two looks."""
    fields: dict[str, Any] = {}
    if now.copying:
        fields["rows_copied"] = sum(copy.rows for copy in now.copies)
        fields["rows_expected"] = sum(copy.expected for copy in now.copies)
    seconds = now.at - before.at
    if now.streams or not now.syncs:
        fields["changes"] = now.captured
        fields["changes_per_second"] = round(rate(before.captured, now.captured, seconds))
    fields["applied"] = now.applied
    fields["upserted"], fields["deleted"] = now.written.upserted, now.written.deleted
    if now.streams or not now.syncs:
        fields["lag_bytes"] = now.lag_bytes
    if now.syncs:
        fields["applied_per_second"] = round(rate(before.applied, now.applied, seconds))
        fields["lag_versions"] = now.lag_versions
        fields["breaches"] = sum(rows for table in now.syncs for _, rows in table.breaches)
    fields["lag_seconds"] = round(now.lag_seconds, 1)
    fields["failed_tables"] = len(now.in_phase(Phase.FAILED))
    return Event("progress", fields)


def rate(before: int, now: int, seconds: float) -> float:
    """Per second; 0 before any time has passed."""
    return (now - before) / seconds if seconds > 0 else 0.0
