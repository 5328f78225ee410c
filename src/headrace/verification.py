"""`headrace verify`: brings both ends of each table to one LSN or version, and compares them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa

from headrace import assembly, syncing
from headrace.config import Capture, SelectedTable, Settings, Sync
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.reading import PinnedTable
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.source import PostgresSource
from headrace.engine.collapse import collapse
from headrace.engine.keyed import keyed
from headrace.engine.protocols import Snapshot
from headrace.engine.table_state import Phase
from headrace.errors import DestinationLockedError, LogLockedError, VerificationImpossibleError
from headrace.log import LogReader
from headrace.model import ChangeBatch, Checkpoint, Lsn, TableSchema
from headrace.verify import TableVerification
from headrace.verify.captured import Expected, verify_lake, verify_transfer
from headrace.verify.synced import SyncedPair, verify_synced

# How long a running pipeline may take to come to where the source was; it records its position
# every second, and that of an idle source every ten.
PATIENCE: Final = 60.0
LOOK_INTERVAL: Final = 0.2


def verify_capture(
    settings: Settings, capture: Capture, names: Sequence[str], catch_up: Callable[[], object]
) -> list[TableVerification]:
    """Compare every table of the named pipelines; `catch_up` is called where nobody runs them.

    Raises:
        VerificationImpossibleError: the destination does not come to where the source is.
    """
    selection = assembly.select(settings, capture)
    tables = assembly.selected_tables({name: selection[name] for name in names})
    source = PostgresSource(capture.connection, capture.slot, capture.publication, tables, {})
    with source.snapshot(tables, connections=1) as snapshot:
        if assembly.lock_holder(settings, capture) is None:
            with suppress(LogLockedError):  # a run may begin just now
                catch_up()
        reader = assembly.open_reader(settings, capture)
        if reader is None:
            raise VerificationImpossibleError(
                f"there is no change log of {capture.name} yet", hint="headrace run"
            )
        return [
            verification
            for name in names
            for verification in _verify_pipeline(settings, name, selection[name], reader, snapshot)
        ]


def _verify_pipeline(
    settings: Settings,
    name: str,
    tables: Sequence[SelectedTable],
    reader: LogReader,
    snapshot: Snapshot,
) -> Iterator[TableVerification]:
    _await(reader, name, snapshot.lsn)
    place = assembly.destination(settings, name)
    for table in tables:
        ends = _Ends(name, table, reader, snapshot)
        if isinstance(place, PostgresDestination):
            yield _verify_in_database(ends, place)
        else:
            yield _verify_in_lake(ends, place)


@dataclass(frozen=True)
class _Ends:
    """One table of a pipeline: the source as of one moment, and the log of what came since."""

    pipeline: str
    table: SelectedTable
    reader: LogReader
    snapshot: Snapshot

    @property
    def schema(self) -> TableSchema:
        return keyed(self.snapshot.schema(self.table.source), self.table.key)

    def expected(self, at: Checkpoint | None) -> Expected:
        """What a destination must hold that stands at `at`."""
        if at is None or at.log_id != self.reader.log_id:
            raise VerificationImpossibleError(
                f"{self.table.target} has taken nothing from this change log yet",
                hint="headrace run",
            )
        after = self.snapshot.lsn
        changes = _changes(self.reader, self.schema, after, at)
        return Expected(self.schema, self._source_rows, collapse(self.schema, changes, after))

    def _source_rows(self) -> Iterator[pa.Table]:
        for chunk in self.snapshot.chunks(self.table.source):
            for batch in self.snapshot.read(chunk):
                yield pa.Table.from_batches([batch])


def _verify_in_lake(ends: _Ends, place: DeltaDestination) -> TableVerification:
    target = ends.table.target
    app_id = place.table(target, ends.pipeline).app_id(ends.reader.log_id)
    pinned = PinnedTable(place.open(target), app_id, ends.reader.log_id)
    expected = ends.expected(pinned.checkpoint)
    assert pinned.checkpoint is not None
    return verify_lake(ends.pipeline, ends.schema, expected, pinned, pinned.checkpoint.lsn)


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


def _await(reader: LogReader, pipeline: str, lsn: Lsn) -> None:
    """Wait until the pipeline has passed every change up to `lsn`."""
    deadline = time.monotonic() + PATIENCE
    commit: int | None = None
    while commit is None or not _passed(reader, pipeline, commit):
        if time.monotonic() > deadline:
            raise VerificationImpossibleError(
                f"{pipeline} did not come to {lsn} within {PATIENCE:.0f} s",
                hint="headrace status shows what holds it up",
            )
        reader.wait(reader.head(), LOOK_INTERVAL)
        commit = commit or _commit_reaching(reader, lsn)


def _commit_reaching(reader: LogReader, lsn: Lsn) -> int | None:
    """A commit that reaches `lsn`, once there is one."""
    head = reader.head()
    newest = next(reader.manifests(head - 1, head))
    return head if newest.to_lsn >= lsn else None


def _passed(reader: LogReader, pipeline: str, commit: int) -> bool:
    tables = (reader.position(pipeline) or {"tables": {}})["tables"]
    for table, known in tables.items():
        if known["phase"] == Phase.FAILED.value:
            raise VerificationImpossibleError(
                f"{pipeline}: {table} has stopped: {known['error']}", hint="headrace status"
            )
    return bool(tables) and all(known["passed"] >= commit for known in tables.values())


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
