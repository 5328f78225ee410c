"""What is found of a capture's destinations before a run, and what of it stops single tables only.

A destination that is away for now keeps nobody from going on: the source is captured, and the
destination catches up later (DESIGN.md §13, invariant 9).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg

from headrace import assembly
from headrace.config import Capture, SelectedTable, Settings
from headrace.connectors.delta.check_catalog import check_catalog
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.postgres.catalog import TypeCatalog, read_table_schema
from headrace.connectors.postgres.check_target import AWAY, unreached
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.needed_types import needed_types
from headrace.engine.keyed import keyed
from headrace.errors import (
    DestinationUnavailableError,
    ForeignTableError,
    HeadraceError,
    LogError,
    UnsuitableTableError,
    UnusableKeyError,
)
from headrace.log.storage import check_put_if_absent, is_local
from headrace.model import TableId, TableSchema
from headrace.model.finding import Finding, Severity, cures

# What keeps a table from being written, beside what its destination finds of it.
_UNUSABLE_KEY: Final = "target-key"
_OTHERS: Final = "target-owner"  # of a table that is not this pipeline's, as its check names it


@dataclass(frozen=True)
class DestinationCheck:
    """One pipeline's destination. `away` says that it cannot be reached for now; `tables` holds
    what was found of each table, by its name at the source."""

    pipeline: str
    place: Sequence[Finding]
    away: bool = False
    tables: Mapping[TableId, Sequence[Finding]] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        return [*self.place, *(finding for found in self.tables.values() for finding in found)]

    @property
    def unfit(self) -> dict[tuple[str, TableId], HeadraceError]:
        """Tables that cannot be written as they are, with all that is wrong."""
        blockers = {
            table: [finding for finding in found if finding.severity is Severity.BLOCKER]
            for table, found in self.tables.items()
        }
        return {
            (self.pipeline, table): _unsuitable(table, found)
            for table, found in blockers.items()
            if found
        }


def check_destination(
    settings: Settings, capture: Capture, pipeline: str, tables: Sequence[SelectedTable]
) -> DestinationCheck:
    """What a pipeline's destination lets us do, and what it is for each table."""
    place = assembly.destination(settings, pipeline)
    if not isinstance(place, PostgresDestination):
        return _in_lake(pipeline, place, tables)
    with closing(place):
        try:
            return _reached(capture, place, pipeline, tables)
        except DestinationUnavailableError as error:
            return DestinationCheck(pipeline, [unreached(error)], away=True)


def _reached(
    capture: Capture, place: PostgresDestination, pipeline: str, tables: Sequence[SelectedTable]
) -> DestinationCheck:
    found = place.check()
    if any(finding.severity is Severity.BLOCKER for finding in found):
        return DestinationCheck(pipeline, found, away=any(f.name == AWAY for f in found))
    with source_session(capture.connection) as source:
        types = TypeCatalog.read(source)
        checked = {
            table.source: list(_of_table(source, types, capture, place, pipeline, table))
            for table in tables
        }
    return DestinationCheck(pipeline, found, tables=checked)


def _of_table(
    source: psycopg.Connection[Any],
    types: TypeCatalog,
    capture: Capture,
    place: PostgresDestination,
    pipeline: str,
    table: SelectedTable,
) -> Iterator[Finding]:
    try:
        schema = wanted_schema(source, types, capture, table)
    except UnusableKeyError as error:
        names = (str(table.target),)
        yield Finding(Severity.BLOCKER, _UNUSABLE_KEY, error.message, names, fix=error.hint)
        return
    yield from place.check_types(table.target, needed_types(source, table.source, schema.names))
    there = place.table(table.target, pipeline, table.delivery)
    with closing(there):
        yield from there.check(schema)


def wanted_schema(
    source: psycopg.Connection[Any], types: TypeCatalog, capture: Capture, table: SelectedTable
) -> TableSchema:
    """What the destination is to hold of a table, as the source is now.

    Raises:
        TableNotFoundError: the source has no such table.
        UnusableKeyError: the key that the file names identifies no row.
    """
    found = read_table_schema(
        source, types, table.source, publication=capture.publication, read_as=table.read_as
    )
    return keyed(found.schema, table.key)


def undo(settings: Settings, name: TableId) -> str | None:
    """Bring back the former generation of a table that a capture's pipeline carries to Postgres,
    named as at either end; None if none does.

    Raises:
        NoGenerationError: there is none.
        DestinationLockedError: a run is going on.
    """
    for pipeline in (name for capture in settings.captures() for name in capture.pipelines):
        place = assembly.destination(settings, pipeline)
        if not isinstance(place, PostgresDestination):
            continue
        for table in assembly.selected(settings, pipeline):
            if name in (table.source, table.target):
                with closing(place), place.claim(pipeline):
                    lost = place.table(table.target, pipeline, table.delivery).undo()
                again = f"headrace resync {table.source}"
                told = f"{table.target} is as before its last load, and held until {again}"
                return "\n".join([told, *(f"not carried over: {each}" for each in lost)])
    return None


def _writable(pipeline: str, place: DeltaDestination) -> DestinationCheck:
    where = (place.location,)
    found: list[Finding] = []
    for name, fine, look in (
        ("destination-writable", "destination writable", place.check_writable),
        ("destination-commits", "only one writer can make a commit", place.check_commits),
    ):
        try:
            look()
        except HeadraceError as error:
            found.append(Finding(Severity.BLOCKER, name, error.message, where, fix=error.hint))
            return DestinationCheck(pipeline, found, away=error.transient)
        found.append(Finding(Severity.OK, name, fine, where))
    return DestinationCheck(pipeline, found)


def _in_lake(
    pipeline: str, place: DeltaDestination, tables: Sequence[SelectedTable]
) -> DestinationCheck:
    if place.catalog is None:
        return _writable(pipeline, place)
    try:
        with closing(place):
            found = check_catalog(place.catalog, [table.target for table in tables])
    except DestinationUnavailableError as error:
        return DestinationCheck(pipeline, [unreached(error)], away=True)
    checked = {table.source: found.tables[table.target] for table in tables}
    return DestinationCheck(pipeline, found.place, tables=checked)


def check_state(settings: Settings) -> Iterator[Finding]:
    """Whether an object store that holds the change logs lets only one writer make a commit."""
    if is_local(settings.state):
        return
    where = (settings.state,)
    try:
        check_put_if_absent(assembly.log_storage(settings))
    except LogError as error:
        yield Finding(Severity.BLOCKER, "state-commits", error.message, where, fix=error.hint)
    else:
        yield Finding(Severity.OK, "state-commits", "only one run can write the change log", where)


def _unsuitable(table: TableId, blockers: Sequence[Finding]) -> HeadraceError:
    foreign = any(finding.name == _OTHERS for finding in blockers)
    kind = ForeignTableError if foreign else UnsuitableTableError
    return kind(
        "; ".join(finding.message for finding in blockers),
        hint=cures(blockers),
        table=str(table),
        findings=[finding.to_json() for finding in blockers],
    )
