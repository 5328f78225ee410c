"""`headrace verify`: brings source, change log and destination to one LSN and compares them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import pyarrow as pa

from headrace import assembly
from headrace.config import Capture, SelectedTable, Settings, Sync
from headrace.connectors.delta.reading import PinnedTable
from headrace.connectors.postgres.source import PostgresSource
from headrace.engine.materialize import Phase
from headrace.engine.protocols import Snapshot
from headrace.errors import VerificationImpossibleError
from headrace.log import LogReader
from headrace.model import ChangeBatch, Checkpoint, Lsn, TableSchema
from headrace.verify import TableVerification, verify_table

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
        app_id = place.table(table.target, name).app_id(reader.log_id)
        pinned = PinnedTable(place.open(table.target), app_id, reader.log_id)
        yield _verify_table(name, table, pinned, reader, snapshot)


def _verify_table(
    name: str,
    table: SelectedTable,
    destination: PinnedTable,
    reader: LogReader,
    snapshot: Snapshot,
) -> TableVerification:
    at = destination.checkpoint
    if at is None:
        raise VerificationImpossibleError(
            f"{table.target} has taken nothing from this change log yet", hint="headrace run"
        )
    schema = snapshot.schema(table.source)
    if table.key is not None:
        schema = replace(schema, key=table.key)

    def source_rows() -> Iterator[pa.Table]:
        for chunk in snapshot.chunks(table.source):
            for batch in snapshot.read(chunk):
                yield pa.Table.from_batches([batch])

    changes = _changes(reader, schema, snapshot.lsn, at)
    return verify_table(name, schema, source_rows, destination.rows, changes, snapshot.lsn, at.lsn)


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


def verify_sync(
    settings: Settings, sync: Sync, catch_up: Callable[[], object]
) -> list[TableVerification]:
    """Compare every table of a pipeline with the version of its source that it stands at."""
    raise NotImplementedError
