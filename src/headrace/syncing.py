"""Puts the parts of one pipeline from Delta tables to Postgres together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from threading import Event, Lock
from typing import Any, Final

from headrace import assembly
from headrace.config import SelectedTable, Settings
from headrace.config import Sync as SyncSettings
from headrace.connectors.delta.check_source import CheckedTable
from headrace.connectors.delta.check_source import check as check_source
from headrace.connectors.delta.check_source import fix as fix_source
from headrace.connectors.delta.source import DeltaSource
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.replaceable_table import ReplaceableTable
from headrace.engine.sync import Sync
from headrace.engine.sync_state import SyncTarget
from headrace.engine.sync_table import transform_of
from headrace.engine.table_state import Phase
from headrace.engine.throttle import Throttle
from headrace.errors import ConfigError, ObjectMissingError, SourceError, TableNotFoundError
from headrace.model import Mode, TableId, TableSchema
from headrace.model.finding import Finding, Severity
from headrace.model.schedule import Schedule

PROBE_INTERVAL: Final = 1.0  # seconds between two looks at how quickly the destination answers


def source(sync: SyncSettings) -> DeltaSource:
    """The place that a pipeline reads its tables from."""
    return assembly.delta_source(sync.source_connection, sync.pipeline.poll)


def destination(
    sync: SyncSettings, pace: Callable[[int, int], None] | None = None
) -> PostgresDestination:
    """The database that a pipeline writes to."""
    return PostgresDestination(sync.destination_connection, pace=pace)


@contextmanager
def running(
    settings: Settings, sync: SyncSettings, resync: Collection[TableId] = ()
) -> Iterator[Sync]:
    """Everything that one pipeline needs to run; its destination is claimed when the run begins,
    which fails with DestinationLockedError while another run writes this pipeline's tables."""
    quitting = Event()
    with ExitStack() as held:
        probed = held.enter_context(closing(destination(sync)))
        place = held.enter_context(closing(destination(sync, _pace(sync, probed, quitting))))
        yield Sync(
            sync.name,
            [_sync_target(sync, place, table) for table in assembly.selected(settings, sync.name)],
            schedule=Schedule.parse(sync.pipeline.schedule),
            journal=lambda record: _record(settings, sync.name, record),
            recorded=recorded(settings, sync.name),
            resync=resync,
            begin=lambda: held.enter_context(place.running(sync.name)),
            quitting=quitting,
        )


def target(
    place: PostgresDestination, sync: SyncSettings, table: SelectedTable
) -> ReplaceableTable:
    """A selected table at its destination; nothing is read or made yet."""
    return place.table(table.target, sync.name, table.delivery)


def _sync_target(
    sync: SyncSettings, place: PostgresDestination, table: SelectedTable
) -> SyncTarget:
    return SyncTarget(
        source(sync).table(table.source, table.key or ()),
        target(place, sync, table),
        table.rules,
        table.delivery,
        table.shape.mode,
    )


# -- before a run ----------------------------------------------------------------------------------


def check(settings: Settings, sync: SyncSettings) -> list[Finding]:
    """Every preflight of one pipeline: its source, its tables, its destination."""
    tables = assembly.selected(settings, sync.name)
    with closing(destination(sync)) as place:
        found = place.check()
        reached = all(finding.severity is not Severity.BLOCKER for finding in found)
        read = [_checked(place, sync, table, ask=reached) for table in tables]
        found += check_source(source(sync), read)
        for table in tables:
            found += _check_table(sync, place if reached else None, table)
    return found


def _checked(
    place: PostgresDestination, sync: SyncSettings, table: SelectedTable, *, ask: bool
) -> CheckedTable:
    appends = table.shape.mode is Mode.APPEND
    applied = target(place, sync, table).standing() if ask else None
    return CheckedTable(table.source, table.key or (), appends, applied)


def _check_table(
    sync: SyncSettings, place: PostgresDestination | None, table: SelectedTable
) -> list[Finding]:
    """What is wrong with a table's rules, or keeps the destination's from taking its rows; nothing
    where nobody can tell."""
    try:
        schema = wanted_schema(sync, table)
    except ConfigError as error:
        wrong = Severity.BLOCKER, "row-rules", error.message, (str(table.source),)
        return [Finding(*wrong, fix=error.hint)]
    except SourceError:  # as the check of the source tells
        return []
    return [] if schema is None or place is None else target(place, sync, table).check(schema)


def wanted_schema(sync: SyncSettings, table: SelectedTable) -> TableSchema | None:
    """What the destination is to hold, by the source's newest version; None without a source.

    Raises:
        ConfigError: a rule does not fit the source's columns.
    """
    versions = source(sync).table(table.source, table.key or ())
    try:
        schema = versions.schema(versions.head().number)
    except TableNotFoundError:
        return None
    return transform_of(schema, table.rules, table.shape.mode).schema


def fix(sync: SyncSettings, findings: Sequence[Finding]) -> list[str]:
    """Apply the safe fixes among `findings`; gives the SQL that stands for each."""
    return fix_source(source(sync), findings)


# -- what a run records for `headrace status` ------------------------------------------------------


def recorded(settings: Settings, pipeline: str) -> Mapping[str, Any]:
    """What the pipeline's last run recorded; empty if there was none."""
    try:
        found: dict[str, Any] = json.loads(assembly.log_storage(settings).get(_path(pipeline)))
    except ObjectMissingError:
        return {}
    return found


def _record(settings: Settings, pipeline: str, record: Mapping[str, Any]) -> None:
    data = json.dumps(record, ensure_ascii=False).encode()
    assembly.log_storage(settings).put(_path(pipeline), data)


def _record_held(
    settings: Settings, sync: SyncSettings, name: TableId, table: ReplaceableTable
) -> None:
    """Tell `headrace status` at once what the next run would find."""
    record = recorded(settings, sync.name)
    known = record.get("tables", {}).get(str(name))
    if known is None:
        return
    standing = table.standing()
    version = standing.commit if standing else None
    lag = None if version is None or known["head"] is None else known["head"] - version
    known |= {"phase": Phase.HELD.value, "notice": table.held(), "error": None}
    known |= {"version": version, "lag_versions": lag, "behind_since": known["commit_ts"]}
    _record(settings, sync.name, record)


def forget_record(settings: Settings, pipeline: str) -> None:
    """Forget what the pipeline's runs recorded."""
    assembly.log_storage(settings).delete([_path(pipeline)])


def _path(pipeline: str) -> str:
    return f"sync/{pipeline}.json"


# -- after a run -----------------------------------------------------------------------------------


def undo(settings: Settings, sync: SyncSettings, name: TableId) -> str | None:
    """Bring back the former generation of a table, named as at either end; None if not carried.

    Raises:
        NoGenerationError: there is none.
        DestinationLockedError: a run is going on.
    """
    named = [t for t in assembly.selected(settings, sync.name) if name in (t.source, t.target)]
    if not named:
        return None
    with closing(destination(sync)) as place, place.claim(sync.name):
        table = target(place, sync, named[0])
        lost = table.undo()
        standing = table.standing()
        _record_held(settings, sync, named[0].source, table)
    version = f"version {standing.commit}" if standing else "before its first load"
    again = f"headrace resync {named[0].target}"
    told = f"{named[0].target} is as of {version} again, and held until {again}"
    return "\n".join([told, *(f"not carried over: {statement}" for statement in lost)])


# -- going easy on the destination -----------------------------------------------------------------


def _pace(
    sync: SyncSettings, probed: PostgresDestination, quitting: Event
) -> Callable[[int, int], None] | None:
    limits = sync.pipeline.throttle
    if limits is None:
        return None
    throttle = Throttle(
        limits.max_rows_per_second,
        limits.max_bytes_per_second,
        limits.max_latency,
        wait=quitting.wait,
    )
    if limits.max_latency is None:
        return throttle
    return _Probed(throttle, probed)


class _Probed:
    """A throttle that learns now and then how long the destination takes for next to nothing."""

    def __init__(self, throttle: Throttle, place: PostgresDestination) -> None:
        self._throttle = throttle
        self._place = place
        self._lock = Lock()
        self._probed = 0.0

    def __call__(self, rows: int, size: int) -> None:
        if self._is_due():
            self._throttle.observe(self._place.latency())
        self._throttle(rows, size)

    def _is_due(self) -> bool:
        with self._lock:
            now = time.monotonic()
            due = now - self._probed >= PROBE_INTERVAL
            self._probed = now if due else self._probed
            return due
