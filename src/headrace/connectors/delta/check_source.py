"""Preflight of Delta tables as sources: what would stop a run, or lose its changes, beforehand.

Only what is cheap is looked at: logs, never rows. The Change Data Feed is the one thing that can be
switched on from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pyarrow.types as t
from deltalake import DeltaTable

from headrace.connectors.delta.failures import source_errors
from headrace.connectors.delta.feed import switch_on
from headrace.connectors.delta.history import FEED, Header
from headrace.connectors.delta.maintenance import duration_ms
from headrace.connectors.delta.scan import READABLE
from headrace.connectors.delta.source import DeltaSource, DeltaSourceTable
from headrace.errors import HeadraceError, TableNotFoundError
from headrace.model import Checkpoint, TableId, TableSchema
from headrace.model.finding import Finding, Severity

FEED_FINDING: Final = "change-data-feed"

# PROTOCOL.md and its writers: what holds where a table does not say.
_LOG: Final = ("delta.logRetentionDuration", "interval 30 days")
_FILES: Final = ("delta.deletedFileRetentionDuration", "interval 7 days")
_CAREFUL: Final = 0.5  # of the retention: half of it is left to notice and to act


@dataclass(frozen=True)
class CheckedTable:
    """A table that a pipeline reads; `every_change` where it must have each change (mode append),
    `applied` where its destination stands."""

    name: TableId
    key: tuple[str, ...]
    every_change: bool = False
    applied: Checkpoint | None = None


def check(
    source: DeltaSource, tables: Sequence[CheckedTable], now: datetime | None = None
) -> list[Finding]:
    """Everything looked at, in the order of looking; what is fine too, as OK.

    Storage that cannot be read, or refuses us, is a finding like any other.
    """
    try:
        known = source.tables()
    except HeadraceError as error:
        return [_blocker("reachable", error, source.location)]
    found = [Finding(Severity.OK, "reachable", f"{len(known)} Delta tables at {source.location}")]
    for table in tables:
        found += _table(source, table, now or datetime.now(UTC))
    return found


def _blocker(name: str, error: HeadraceError, concerned: object) -> Finding:
    return Finding(Severity.BLOCKER, name, error.message, (str(concerned),), fix=error.hint)


def _table(source: DeltaSource, table: CheckedTable, now: datetime) -> Iterator[Finding]:
    reader = source.table(table.name, table.key)
    try:
        head = reader.head()
        header = reader.header(head.number)
    except TableNotFoundError as error:
        yield _blocker("table-exists", error, table.name)
        return
    except HeadraceError as error:
        yield _blocker("log-readable", error, table.name)
        return
    name = (str(table.name),)
    yield Finding(Severity.OK, "table-exists", f"{table.name} is at version {head.number}", name)
    yield _features(table.name, header)
    yield _feed(table, header, can_fix=source.is_writable)
    yield from _schema(reader, head.number)
    if table.applied is not None:
        yield _history(reader, table, head.number, header, now)


def _features(name: TableId, header: Header) -> Finding:
    unknown = ", ".join(sorted(header.reader_features - READABLE))
    if not unknown:
        return Finding(
            Severity.OK, "features", f"{name} uses no feature unknown here", (str(name),)
        )
    return Finding(
        Severity.WARNING,
        "features",
        f"{name} uses {unknown}: it is read by deltalake if that can, and always whole",
        (str(name),),
        fix="drop the feature, or give the pipeline a copy of the table",
        sql=tuple(f"ALTER TABLE {name} DROP FEATURE {f}" for f in unknown.split(", ")),
    )


def _feed(table: CheckedTable, header: Header, *, can_fix: bool) -> Finding:
    name = (str(table.name),)
    if header.has_feed:
        return Finding(Severity.OK, FEED_FINDING, f"{table.name} has its Change Data Feed on", name)
    instead = (
        "and each change is wanted (mode: append)"
        if table.every_change
        else "so that changed files are read whole and compared instead"
    )
    return Finding(
        Severity.BLOCKER if table.every_change else Severity.WARNING,
        FEED_FINDING,
        f"{table.name} has its Change Data Feed off, {instead}",
        name,
        evidence=f"{FEED} = {header.configuration.get(FEED, 'not set')}",
        fix="switch it on; changes are told from then on",
        sql=(switch_on(table.name),),
        safe=can_fix,
    )


def _schema(reader: DeltaSourceTable, version: int) -> Iterator[Finding]:
    try:
        schema = reader.schema(version)
    except HeadraceError as error:
        yield _blocker("columns", error, reader.name)
        return
    yield Finding(
        Severity.OK,
        "columns",
        f"{reader.name} has {len(schema.columns)} columns",
        (str(reader.name),),
    )
    yield _key(schema, reader.null_counts(version))


def _key(schema: TableSchema, nulls: dict[str, int]) -> Finding:
    name = (str(schema.table),)
    listed = ", ".join(schema.key)
    if not schema.key:
        return Finding(Severity.OK, "key", f"{schema.table} is read without a key", name)
    with_nulls = [f"{nulls[column]} of {column}" for column in schema.key if nulls.get(column)]
    floats = [c.name for c in schema.columns if c.name in schema.key and t.is_floating(c.type)]
    if with_nulls:
        return Finding(
            Severity.WARNING,
            "key",
            f"{schema.table} has nulls in its key ({listed}): such rows go to quarantine",
            name,
            evidence=f"statistics: nulls {', '.join(with_nulls)}",
            fix="name columns that are never null in `key:`, or clean the table",
        )
    if floats:
        return Finding(
            Severity.WARNING,
            "key",
            f"{schema.table}: {', '.join(floats)} is a floating-point number and a poor key",
            name,
            fix="name columns in `key:` whose values are exact",
        )
    return Finding(Severity.OK, "key", f"{schema.table} has the key {listed}", name)


def _history(
    reader: DeltaSourceTable, table: CheckedTable, head: int, header: Header, now: datetime
) -> Finding:
    """Whether the changes that wait to be applied are there, and for how long they will be."""
    assert table.applied is not None
    name = (str(table.name),)
    plan = reader.plan(table.applied, head)
    if plan.loss is not None:
        return Finding(
            Severity.BLOCKER if table.every_change else Severity.WARNING,
            "history",
            f"{table.name}: changes since version {table.applied.commit} cannot be read "
            f"({plan.loss.kind.value}): {plan.loss.reason}",
            name,
            fix=plan.loss.hint or "the next run compares the table with its destination instead",
        )
    if not plan.segments:
        return Finding(Severity.OK, "history", f"{table.name}: nothing waits to be applied", name)
    kept, setting = min((_kept(header, *each), each[0]) for each in (_LOG, _FILES))
    since = plan.segments[0].versions[0].commit_ts
    left = since + kept - now
    evidence = f"the oldest change waits since {since:%Y-%m-%d %H:%M}, {setting} is {_days(kept)}"
    if left > kept * _CAREFUL:
        text = f"{table.name}: changes that wait are kept for {_days(left)}"
        return Finding(Severity.OK, "history", text, name, evidence)
    return Finding(
        Severity.WARNING,
        "history",
        f"{table.name}: changes that wait may be cleaned away "
        + ("any time" if left <= timedelta(0) else f"in {_days(left)}"),
        name,
        evidence,
        fix="run the pipeline now, or keep history for longer",
        sql=(f"ALTER TABLE {table.name} SET TBLPROPERTIES ('{setting}' = 'interval 30 days')",),
    )


def _kept(header: Header, setting: str, default: str) -> timedelta:
    milliseconds = duration_ms(header.configuration.get(setting, default))
    return timedelta(milliseconds=min(milliseconds, 10**14))


def _days(span: timedelta) -> str:
    hours = span.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} hours"


def fix(source: DeltaSource, findings: Iterable[Finding]) -> list[str]:
    """Switch on the feeds that safe findings name; gives the SQL of what was done.

    Raises:
        SourceError: a table could not be altered; those before it stay so.
    """
    done: list[str] = []
    for finding in findings:
        if finding.safe and finding.name == FEED_FINDING:
            _switch_on(source, TableId.parse(finding.objects[0]))
            done += finding.sql
    return done


def _switch_on(source: DeltaSource, name: TableId) -> None:
    with source_errors(name):
        place = source.place(name)
        options: dict[str, Any] = dict(place.options)
        table = DeltaTable(place.url, storage_options=options or None)
        table.alter.set_table_properties({FEED: "true"})
