"""`headrace verify`: brings both ends of each table to one LSN or version, and compares them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Final

import pyarrow as pa

from headrace import assembly, syncing
from headrace.config import Capture, SelectedTable, Settings, Sync
from headrace.config.connections import DeltaConnection
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.reading import PinnedTable
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.source import PostgresSource
from headrace.engine.collapse import collapse
from headrace.engine.keyed import keyed
from headrace.engine.placing import place
from headrace.engine.protocols import Snapshot
from headrace.engine.table_state import Phase
from headrace.errors import (
    DestinationError,
    DestinationLockedError,
    LogLockedError,
    VerificationImpossibleError,
)
from headrace.log import LogReader
from headrace.log.layout import Layout
from headrace.model import ChangeBatch, Checkpoint, Lsn, Mode, TableId, TableSchema, Visibility
from headrace.refreshes import TableFailure
from headrace.verify import TableVerification
from headrace.verify.captured import Expected, LakeComparison, verify_transfer
from headrace.verify.folded import FoldedChanges
from headrace.verify.pace import Pace
from headrace.verify.synced import SyncedPair, verify_synced

# How long a running pipeline may take to come to where the source was; it records its position
# every second, and that of an idle source every ten.
PATIENCE: Final = 60.0
LOOK_INTERVAL: Final = 0.2


@dataclass(frozen=True)
class Repairs:
    """How differences are mended: under the log's lock, or else by a run that copies tables anew.

    `refresh` copies tables of a source, in a run of its own or in the one that goes on, and gives
    those that failed.
    """

    refresh: Callable[[Sequence[TableId], str], Sequence[TableFailure]]


FOUND: Final = "a verification found differences"  # why a table is copied anew


def verify_capture(
    settings: Settings,
    capture: Capture,
    names: Sequence[str],
    catch_up: Callable[[], object],
    repairs: Repairs | None = None,
    pace: Pace | None = None,
) -> list[TableVerification]:
    """Compare every table of the named pipelines; `catch_up` is called where nobody runs them.

    With `repairs`, what differs in Delta tables is written there; nothing else is.

    Raises:
        VerificationImpossibleError: the destination does not come to where the source is.
    """
    selection = assembly.select(settings, capture)
    tables = assembly.selected_tables({name: selection[name] for name in names})
    pace = pace or Pace()
    source = PostgresSource(
        capture.connection,
        capture.slot,
        capture.publication,
        tables,
        {},
        stop=pace.stop,
        read_as=assembly.read_as(settings, selection),
    )
    log = _Log(settings, capture, catch_up, pace.stop)
    with (
        source.snapshot(dict.fromkeys(tables, ()), 1, log.placer(source)) as snapshot,
        ExitStack() as held,
    ):
        reader = log.caught_up()
        mend = repairs is not None and _held_still(settings, capture, held)
        verified = [
            found
            for name in names
            for found in _verify_pipeline(
                settings, name, selection[name], _Moment(reader, snapshot, pace, mend)
            )
        ]
    return verified if repairs is None else _refreshed(settings, verified, repairs)


@dataclass(frozen=True)
class _Log:
    """The change log of a capture, which a run goes on writing, or nobody."""

    settings: Settings
    capture: Capture
    catch_up: Callable[[], object]
    stop: Event

    def caught_up(self) -> LogReader:
        """The log, brought to where the source is where nobody runs. Raises
        VerificationImpossibleError where there is none."""
        if assembly.lock_holder(self.settings, self.capture) is None:
            with suppress(LogLockedError):  # a run may begin just now
                self.catch_up()
        reader = assembly.open_reader(self.settings, self.capture)
        if reader is None:
            raise VerificationImpossibleError(
                f"there is no change log of {self.capture.name} yet", hint="headrace run"
            )
        return reader

    def placer(self, source: PostgresSource) -> Callable[[Visibility], Lsn | None]:
        """What finds the LSN of a snapshot that is taken from now on."""
        known = assembly.open_reader(self.settings, self.capture)
        after = known.head() if known else 0

        def placed(seen: Visibility) -> Lsn | None:
            until = source.current_lsn()
            reader = self.caught_up()
            _await(reader, self.capture.name, self.stop, lambda: _commit_reaching(reader, until))
            return place(reader, after, until, seen)

        return placed


def _held_still(settings: Settings, capture: Capture, held: ExitStack) -> bool:
    """Keep runs out until `held` ends, so that a table may be written; False: one is going on."""
    try:
        lock = assembly.log_storage(settings).lock(Layout(capture.name).lock)
    except LogLockedError:
        return False
    held.callback(lock.release)
    return True


def _refreshed(
    settings: Settings, verified: Sequence[TableVerification], repairs: Repairs
) -> list[TableVerification]:
    """What could not be mended in place is copied anew, by what differs."""
    wanting = [
        found
        for found in verified
        if (found.differs or found.problem is not None)
        and not found.repaired
        and isinstance(settings.destination(found.pipeline), DeltaConnection)
    ]
    if not wanting:
        return list(verified)
    tables = list(dict.fromkeys(found.table for found in wanting))
    failed = {(f.pipeline, f.table): f.error for f in repairs.refresh(tables, FOUND)}
    return [
        found
        if found not in wanting
        else replace(
            found,
            repaired=(found.pipeline, found.table) not in failed,
            problem=failed.get((found.pipeline, found.table)),
        )
        for found in verified
    ]


@dataclass(frozen=True)
class _Moment:
    """The source as of one LSN, the log of what came since, and whether tables may be mended."""

    reader: LogReader
    snapshot: Snapshot
    pace: Pace
    mend: bool


def _verify_pipeline(
    settings: Settings, name: str, tables: Sequence[SelectedTable], moment: _Moment
) -> Iterator[TableVerification]:
    passed = _passed_by(moment.reader, name, moment.snapshot.lsn)
    _await(moment.reader, name, moment.pace.stop, passed)
    place = assembly.destination(settings, name)
    for table in tables:
        ends = _Ends(name, table, moment)
        try:
            ends.require_going_on()
            if isinstance(place, PostgresDestination):
                yield _verify_in_database(ends, place)
            else:
                yield _verify_in_lake(ends, place)
        except (VerificationImpossibleError, DestinationError) as error:
            yield TableVerification(name, table.source, None, 0, 0, 0, problem=error)


@dataclass(frozen=True)
class _Ends:
    """One table of a pipeline: the source as of one moment, and the log of what came since."""

    pipeline: str
    table: SelectedTable
    moment: _Moment

    @property
    def reader(self) -> LogReader:
        return self.moment.reader

    @property
    def schema(self) -> TableSchema:
        return keyed(self.moment.snapshot.schema(self.table.source), self.table.key)

    def require_going_on(self) -> None:
        """Raises VerificationImpossibleError where the table has stopped."""
        tables = (self.reader.position(self.pipeline) or {"tables": {}})["tables"]
        known = tables.get(str(self.table.source))
        if known is not None and known["phase"] == Phase.FAILED.value:
            message, _, hint = str(known["error"]).partition("\nhint: ")
            raise VerificationImpossibleError(
                f"not compared, because it has stopped: {message}", hint=hint
            )

    def expected(self, at: Checkpoint | None) -> Expected:
        """What a destination must hold that stands at `at`."""
        if at is None or at.log_id != self.reader.log_id:
            raise VerificationImpossibleError(
                f"{self.table.target} has taken nothing from this change log yet",
                hint="headrace run",
            )
        after = self.moment.snapshot.lsn
        changes = _changes(self.reader, self.schema, after, at)
        rows = self.moment.pace.paced(self._source_rows)
        return Expected(self.schema, rows, collapse(self.schema, changes, after))

    def _source_rows(self) -> Iterator[pa.Table]:
        for chunk in self.moment.snapshot.chunks(self.table.source):
            for batch in self.moment.snapshot.read(chunk):
                yield pa.Table.from_batches([batch])


def _verify_in_lake(ends: _Ends, place: DeltaDestination) -> TableVerification:
    table, target = ends.table, ends.table.target
    if table.shape.mode is Mode.APPEND and not ends.schema.key:
        raise VerificationImpossibleError(
            f"not compared: {target} keeps every change of a table without a key",
            hint="a primary key at the source tells which rows its changes leave",
        )
    writer = place.table(target, ends.pipeline, table.shape, table.delivery, table.format)
    app_id = writer.app_id(ends.reader.log_id)
    pinned = PinnedTable(place.open(target), app_id, ends.reader.log_id)
    at = pinned.checkpoint
    expected = ends.expected(at)
    assert at is not None
    read = ends.moment.pace.paced(pinned.rows)
    if table.shape.mode is Mode.APPEND:
        read = FoldedChanges(read, ends.schema).rows
    compared = LakeComparison(ends.pipeline, ends.schema, expected, read, table.shape)
    found = compared.verification(at.lsn)
    if found.differs and ends.moment.mend:
        return replace(found, repaired=_mended(writer, compared, ends.schema, at, pinned.version))
    return found


def _mended(
    writer: MergeOnReadTable,
    compared: LakeComparison,
    schema: TableSchema,
    at: Checkpoint,
    version: int,
) -> bool:
    """Write what differs, in one commit; False where the table is to be copied anew."""
    content, changes = writer.content(schema), compared.repair()
    if content is None or changes is None or content.version != version:
        return False
    writer.mend(changes, at, content)
    return True


def _verify_in_database(ends: _Ends, place: PostgresDestination) -> TableVerification:
    target, delivery = ends.table.target, ends.table.delivery
    with (
        closing(place.table(target, ends.pipeline, delivery)) as table,
        table.reading() as reading,
    ):
        expected = ends.expected(reading.at)
        return verify_transfer(ends.pipeline, ends.schema, expected, reading, target, delivery)


def _changes(
    reader: LogReader, schema: TableSchema, after: Lsn, at: Checkpoint
) -> list[ChangeBatch]:
    """The log's changes of a table after the snapshot, as far as the destination holds them."""
    found: list[ChangeBatch] = []
    for number in range(at.commit, reader.floor, -1):
        manifest = next(reader.manifests(number - 1, number))
        if manifest.to_lsn <= after:
            break
        mine = [file for file in manifest.files if file.table == schema.table]
        found[:0] = reader.read_all(mine)
    return found


def _await(reader: LogReader, whom: str, stop: Event, come: Callable[[], object]) -> None:
    """Wait until what is true of the log tells that a run has come so far."""
    deadline = time.monotonic() + PATIENCE
    while not come():
        if stop.is_set() or time.monotonic() > deadline:
            raise VerificationImpossibleError(
                f"{whom} did not come to where the source was within {PATIENCE:.0f} s",
                hint="headrace status shows what holds it up",
            )
        reader.wait(reader.head(), LOOK_INTERVAL)


def _passed_by(reader: LogReader, pipeline: str, lsn: Lsn) -> Callable[[], bool]:
    """What tells whether the pipeline has passed every change up to `lsn`."""
    commit: int | None = None

    def passed() -> bool:
        nonlocal commit
        commit = commit or _commit_reaching(reader, lsn)
        return commit is not None and _passed(reader, pipeline, commit)

    return passed


def _commit_reaching(reader: LogReader, lsn: Lsn) -> int | None:
    """A commit that reaches `lsn`, once there is one."""
    head = reader.head()
    newest = next(reader.manifests(head - 1, head))
    return head if newest.to_lsn >= lsn else None


def _passed(reader: LogReader, pipeline: str, commit: int) -> bool:
    """Whether every table that goes on has; those that have stopped are not waited for."""
    tables = (reader.position(pipeline) or {"tables": {}})["tables"]
    going = [known for known in tables.values() if known["phase"] != Phase.FAILED.value]
    return bool(tables) and all(known["passed"] >= commit for known in going)


# -- tables from Delta -----------------------------------------------------------------------------


def verify_sync(
    settings: Settings, sync: Sync, catch_up: Callable[[], object]
) -> list[TableVerification]:
    """Compare every table of a pipeline with the version of its source that it stands at.

    `catch_up` is called first; where another run writes the tables, they are compared where they
    stand. A table that cannot be compared says so, and the others are.
    """
    with suppress(DestinationLockedError):
        catch_up()
    with closing(syncing.destination(sync)) as place:
        verified = [
            (table, verify_synced(_pair(sync, place, table)))
            for table in assembly.selected(settings, sync.name)
        ]
    states = syncing.recorded(settings, sync.name).get("tables", {})
    return [_with_failure(found, states.get(str(table.source))) for table, found in verified]


def _pair(sync: Sync, place: PostgresDestination, table: SelectedTable) -> SyncedPair:
    return SyncedPair(
        sync.name,
        syncing.source(sync).table(table.source, table.key or ()),
        syncing.target(place, sync, table),
        table.rules,
        table.delivery,
        table.shape.mode,
    )


def _with_failure(
    verified: TableVerification, state: Mapping[str, Any] | None
) -> TableVerification:
    """A table that goes no further may equal what its source had, not what it has."""
    failed = state is not None and state["phase"] == Phase.FAILED.value
    if state is None or not failed or verified.problem is not None:
        return verified
    problem = VerificationImpossibleError(
        f"{verified.table} has stopped at version {verified.version}: {state['error']}",
        hint="headrace status",
    )
    return replace(verified, problem=problem)
