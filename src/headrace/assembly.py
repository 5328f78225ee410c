"""Puts the parts of one capture together: source, change log, destinations, materializations."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from threading import Event
from typing import Any

import psycopg

from headrace.config import Capture as CaptureSettings
from headrace.config import SelectedTable, Settings, named_tables, select_tables
from headrace.config.connections import DeltaConnection, PostgresConnection, Snapshots
from headrace.config.refining import refresh_policy
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.source import DeltaSource
from headrace.connectors.postgres.catalog import ReadAs, discover
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.coverage import (
    Coverage,
    departures,
    from_record,
    read_coverage,
    to_record,
)
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.read_as import impossible
from headrace.connectors.postgres.slot_state import slot_state
from headrace.connectors.postgres.slots import drop_slot
from headrace.connectors.postgres.source import PostgresSource
from headrace.continuity import lineage
from headrace.engine.copying import CopyLimits
from headrace.engine.materialize import Materialization
from headrace.engine.protocols import DestinationTable
from headrace.engine.runner import Runner
from headrace.engine.table_state import TableTarget
from headrace.errors import HeadraceError, LogError, LogLockedError, ObjectMissingError
from headrace.log import CommitDraft, LogReader, LogWriter, Storage, open_storage
from headrace.log.layout import Layout
from headrace.log.local import local_path
from headrace.log.requests import RefreshRequest, put_request
from headrace.model import SchemaPolicy, TableId

Selection = Mapping[str, Sequence[SelectedTable]]  # by pipeline
Unfit = Mapping[tuple[str, TableId], HeadraceError]  # by pipeline and the source's table


def log_storage(settings: Settings) -> Storage:
    """Where the change logs of this project are."""
    return open_storage(settings.state)


def select(settings: Settings, capture: CaptureSettings) -> Selection:
    """The tables of each of the capture's pipelines, from what the source has now.

    Raises:
        ConfigError: an entry matches nothing.
        SourceUnavailableError: the source cannot be asked.
    """
    with source_session(capture.connection) as session:
        selection = {name: _select(settings, name, session) for name in capture.pipelines}
        _check_wishes(settings, session, selection)
    return selection


def _select(
    settings: Settings, pipeline: str, session: psycopg.Connection[Any]
) -> list[SelectedTable]:
    found = discover(session, named=named_tables(settings, pipeline))
    return select_tables(settings, pipeline, [table.table for table in found])


def _check_wishes(
    settings: Settings, session: psycopg.Connection[Any], selection: Selection
) -> None:
    """Raises ConfigError: a column cannot be read as the file says."""
    for pipeline, tables in selection.items():
        wishes = {table.source: table.read_as for table in tables if table.read_as}
        for _, column, why in impossible(session, wishes) if wishes else ():
            path = ("pipelines", pipeline, "tables")
            raise settings.origin.error(path, why, f"mend columns: {{as: {{{column}: …}}}}")


def read_as(settings: Settings, selection: Selection) -> Mapping[TableId, ReadAs]:
    """How columns are read by the one capture that all these pipelines share.

    Raises:
        ConfigError: two pipelines want to have a table read differently.
    """
    wishes: dict[TableId, tuple[str, ReadAs]] = {}
    for pipeline, tables in selection.items():
        for table in tables:
            first, wish = wishes.setdefault(table.source, (pipeline, table.read_as))
            if wish != table.read_as:
                raise settings.origin.error(
                    ("pipelines", pipeline, "tables"),
                    f"{table.source} is read by one slot for this pipeline and {first}, but "
                    "columns: as: differs",
                    "say the same in both, or give this pipeline a slot of its own",
                )
    return {table: wish for table, (_, wish) in wishes.items()}


def selected(settings: Settings, pipeline: str) -> Sequence[SelectedTable]:
    """The tables of one pipeline; see `select`."""
    connection = settings.source(pipeline)
    if isinstance(connection, DeltaConnection):
        return select_tables(settings, pipeline, delta_source(connection).tables())
    with source_session(connection) as session:
        return _select(settings, pipeline, session)


def delta_source(connection: DeltaConnection, poll: float = 1.0) -> DeltaSource:
    """A place of Delta tables to read from; `poll` is in seconds."""
    options = {k: v.get_secret_value() for k, v in connection.storage_options.items()}
    return DeltaSource(connection.location, options, poll=poll)


def selected_tables(selection: Selection) -> list[TableId]:
    """All tables of a capture, each once."""
    return list(dict.fromkeys(t.source for tables in selection.values() for t in tables))


Destination = DeltaDestination | PostgresDestination


def destination(settings: Settings, pipeline: str) -> Destination:
    """The destination that a pipeline writes to."""
    connection = settings.destination(pipeline)
    if isinstance(connection, PostgresConnection):
        return PostgresDestination(connection)
    options = {k: v.get_secret_value() for k, v in connection.storage_options.items()}
    state = local_path(settings.state)
    return DeltaDestination(
        connection.location,
        options,
        storage_root=connection.storage_root,
        indexes=None if state is None else state / "index",
    )


def target_table(place: Destination, table: SelectedTable, pipeline: str) -> DestinationTable:
    """A selected table at its destination; nothing is read or made yet."""
    if isinstance(place, PostgresDestination):
        return place.table(table.target, pipeline, table.delivery)
    return place.table(table.target, pipeline, table.shape, table.delivery, table.format)


def open_reader(settings: Settings, capture: CaptureSettings) -> LogReader | None:
    """The capture's change log, or None if it has not begun."""
    try:
        return LogReader.open(log_storage(settings), capture.name)
    except LogError as error:
        if isinstance(error.__cause__, ObjectMissingError):
            return None
        raise


def lock_holder(settings: Settings, capture: CaptureSettings) -> str | None:
    """Who runs this capture now, or None. Takes the lock for a moment if nobody does."""
    try:
        log_storage(settings).lock(Layout(capture.name).lock).release()
    except LogLockedError as error:
        return "host {host}, process {pid}, since {since}".format(**error.context)
    return None


def ask_refresh(
    settings: Settings, capture: CaptureSettings, tables: Collection[TableId], why: str
) -> RefreshRequest:
    """Ask the run that holds the capture's log, or else the next one, to copy tables anew."""
    return put_request(log_storage(settings), Layout(capture.name), tables, why)


def is_pending(settings: Settings, request: RefreshRequest) -> bool:
    """Whether no run has taken a request up yet."""
    return log_storage(settings).exists(request.path)


def owns_slot(storage: Storage, capture: CaptureSettings) -> bool:
    """Whether Headrace created the slot, for `destroy` to drop."""
    try:
        return bool(json.loads(storage.get(_owned_path(capture))).get("slot") == capture.slot)
    except ObjectMissingError:
        return False


def _owned_path(capture: CaptureSettings) -> str:
    return f"{Layout(capture.name).root}/owned.json"


def _note_slot(storage: Storage, capture: CaptureSettings) -> None:
    """Before a slot is created, note that it is ours; one that exists is its creator's.

    Ours, if nothing was ever read from it, may be one that a killed run had yet to look into.
    """
    with source_session(capture.connection) as session:
        if slot_state(session, capture.slot) is None:
            storage.put(_owned_path(capture), json.dumps({"slot": capture.slot}).encode())
        elif owns_slot(storage, capture):
            drop_slot(session, capture.slot)


def _stop_departed(
    storage: Storage, log: LogWriter, capture: CaptureSettings, selected: Collection[TableId]
) -> Mapping[TableId, Coverage]:
    """What covers the selected tables now; those that it covered otherwise before are stopped.

    Changes may have been missed since: of a table that was excluded for a while, for one. The stop
    is durable before what covers the table now replaces what did.
    """
    with source_session(capture.connection) as session:
        now = read_coverage(session, capture.publication, selected) or {}
    path = Layout(capture.name).covered
    try:
        recorded = json.loads(storage.get(path))["tables"]
    except ObjectMissingError:
        recorded = []
    departed = departures(from_record(recorded), now, capture.publication)
    if departed and log.position is not None:
        log.commit(CommitDraft(None, stopped=list(departed.items())))
    _record_coverage(storage, capture, now)
    return now


def _record_coverage(
    storage: Storage, capture: CaptureSettings, covered: Mapping[TableId, Coverage]
) -> None:
    """Note what the next run compares with; stops that a difference brought are durable before."""
    record = json.dumps({"tables": to_record(covered)}, ensure_ascii=False)
    storage.put(Layout(capture.name).covered, record.encode())


@contextmanager
def running(
    settings: Settings,
    capture: CaptureSettings,
    opened: LogWriter,
    pipelines: Sequence[str],
    selection: Selection,
    stop: Event,
    unfit: Unfit | None = None,
) -> Iterator[Runner]:
    """Everything that one capture needs to run; the log that was `opened` is closed at the end.

    Tables in `unfit` are left alone, for the reason given.
    """
    storage = log_storage(settings)
    with opened as log, ExitStack() as places:
        if log.position is None:
            _note_slot(storage, capture)
        selected = selected_tables(selection)
        source = PostgresSource(
            capture.connection,
            capture.slot,
            capture.publication,
            selected,
            log.latest_schemas(),
            _stop_departed(storage, log, capture, selected),
            stop,
            lineage(storage, log.layout),
            read_as=read_as(settings, selection),
        )
        reader = LogReader.open(storage, capture.name, feed=log.feed)
        materializations = [
            _materialization(settings, name, selection[name], reader, places, unfit or {})
            for name in pipelines
        ]
        limits = _limits(capture.connection.snapshots)
        yield Runner(source, log, materializations, stop, limits=limits)
        _record_coverage(storage, capture, source.covered)


def _limits(settings: Snapshots) -> CopyLimits:
    return CopyLimits(
        settings.max_connections, settings.max_rows_per_second, settings.max_bytes_per_second
    )


def _materialization(
    settings: Settings,
    pipeline: str,
    tables: Sequence[SelectedTable],
    reader: LogReader,
    places: ExitStack,
    unfit: Unfit,
) -> Materialization:
    """One pipeline's; its destination is claimed when it can first be asked, until `places` end."""
    place = destination(settings, pipeline)

    def begin() -> None:
        if isinstance(place, PostgresDestination):
            places.enter_context(place.running(pipeline))

    places.enter_context(closing(place))
    targets = [_target(place, table, pipeline) for table in tables]
    mine = {table: error for (name, table), error in unfit.items() if name == pipeline}
    policy = refresh_policy(settings.pipelines[pipeline].auto_refresh)
    return Materialization(pipeline, reader, targets, begin=begin, unfit=mine, refresh=policy)


def _target(place: Destination, table: SelectedTable, pipeline: str) -> TableTarget:
    renewed = table.delivery.schema_policy is SchemaPolicy.RESYNC
    there = target_table(place, table, pipeline)
    return TableTarget(table.source, there, table.key, table.shape, renewed)
