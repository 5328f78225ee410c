"""`headrace plan`: what a run would create or change, before it happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from headrace import assembly, syncing
from headrace.config import Capture, SelectedTable, Settings, Sync
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.connectors.postgres.catalog import TypeCatalog
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.published import without_waiting
from headrace.connectors.postgres.slot_state import slot_state
from headrace.engine.shaping import shaped
from headrace.errors import DestinationError, UnsuitableShapeError, UnsupportedSchemaChangeError
from headrace.log import LogReader
from headrace.model import SchemaPolicy, TableId, TableSchema
from headrace.transferring import wanted_schema

PUBLICATION = "SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = %s"
PUBLISHED = """
SELECT 1 FROM pg_catalog.pg_publication_tables
 WHERE pubname = %s AND schemaname = %s AND tablename = %s
"""


@dataclass(frozen=True)
class Step:
    """One thing: what would be done (`create`, `add`, `alter`, `copy`, `apply`, `compare`, `keep`;
    `stop` where the table cannot follow its source), to what, and where."""

    pipeline: str
    action: str
    kind: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class Plan:
    """All steps, in the order of a run."""

    steps: tuple[Step, ...]

    @property
    def changes(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.action != "keep")


def make_plan(settings: Settings, capture: Capture) -> Plan:
    """What running this capture's pipelines would do now.

    Raises:
        ConfigError: an entry matches no table.
        SourceUnavailableError: the source cannot be asked.
    """
    selection = assembly.select(settings, capture)
    steps = _source_steps(capture, assembly.selected_tables(selection))
    reader = assembly.open_reader(settings, capture)
    for pipeline, tables in selection.items():
        with closing(assembly.destination(settings, pipeline)) as place:
            if isinstance(place, PostgresDestination):
                steps += _transferred_steps(capture, pipeline, place, tables, reader)
            else:
                steps += _lake_steps(capture, pipeline, place, tables, reader)
    return Plan(tuple(steps))


def _source_steps(capture: Capture, tables: list[TableId]) -> list[Step]:
    name = ", ".join(capture.pipelines)
    with source_session(capture.connection) as session:
        slot = slot_state(session, capture.slot)
        published = session.execute(PUBLICATION, (capture.publication,)).fetchone()
        steps = [
            Step(name, "keep" if slot else "create", "slot", capture.slot),
            Step(name, "keep" if published else "create", "publication", capture.publication),
        ]
        for table in tables:
            parameters = (capture.publication, table.schema, table.name)
            query = without_waiting(PUBLISHED, session.info.server_version)
            if session.execute(query.encode(), parameters).fetchone() is None:
                steps.append(Step(name, "add", "published table", str(table), capture.publication))
    return steps


def _table_step(
    pipeline: str, place: assembly.Destination, table: SelectedTable, reader: LogReader | None
) -> Step:
    there = assembly.target_table(place, table, pipeline)
    standing = there.checkpoint(reader.log_id) if reader else None
    if standing is not None:
        return Step(pipeline, "keep", "table", str(table.target), f"at {standing.lsn}")
    return Step(pipeline, "copy", "table", str(table.target), f"from {table.source}")


def _lake_steps(
    capture: Capture,
    pipeline: str,
    place: DeltaDestination,
    tables: Sequence[SelectedTable],
    reader: LogReader | None,
) -> Iterator[Step]:
    """Whether rows are copied to Delta tables; else what becomes of their columns when the next
    changes come."""
    with source_session(capture.connection) as session:
        types = TypeCatalog.read(session)
        for table in tables:
            yield from _registrations(pipeline, place, table.target)
            rows = _table_step(pipeline, place, table, reader)
            if rows.action != "keep":
                yield rows
                continue
            schema = wanted_schema(session, types, capture, table)
            there = place.table(table.target, pipeline, table.shape, table.delivery, table.format)
            yield from _column_steps(pipeline, table, there, shaped(schema, table.shape)) or [rows]


def _registrations(pipeline: str, place: DeltaDestination, name: TableId) -> Iterator[Step]:
    """What becomes of a table that its catalog does not have yet."""
    if place.catalog is None or place.catalog.registration(name) is not None:
        return
    try:
        where = place.catalog.url_of_new(name)
    except DestinationError as error:
        yield Step(pipeline, "stop", "table", str(name), error.message)
    else:
        yield Step(pipeline, "create", "external table", str(name), f"at {where}")


def _column_steps(
    pipeline: str, table: SelectedTable, there: MergeOnReadTable, schema: TableSchema
) -> list[Step]:
    name = str(table.target)
    try:
        sentences = there.planned(schema)
    except UnsupportedSchemaChangeError as error:
        action = "copy" if table.delivery.schema_policy is SchemaPolicy.RESYNC else "stop"
        return [Step(pipeline, action, "table", name, error.message)]
    except (DestinationError, UnsuitableShapeError) as error:
        return [Step(pipeline, "stop", "table", name, error.message)]
    return [Step(pipeline, "alter", "table", name, sentence) for sentence in sentences]


def _transferred_steps(
    capture: Capture,
    pipeline: str,
    place: PostgresDestination,
    tables: Sequence[SelectedTable],
    reader: LogReader | None,
) -> Iterator[Step]:
    """What is done to tables of Postgres, and whether their rows are copied."""
    with source_session(capture.connection) as session:
        types = TypeCatalog.read(session)
        wanted = [wanted_schema(session, types, capture, table) for table in tables]
    for table, schema in zip(tables, wanted, strict=True):
        changes = _schema_changes(pipeline, table, place, schema)
        rows = _table_step(pipeline, place, table, reader)
        yield from changes
        if rows.action != "keep" or not changes:
            yield rows


# -- from Delta to Postgres ------------------------------------------------------------------------


def plan_sync(settings: Settings, sync: Sync) -> Plan:
    """What running this pipeline would do now.

    Raises:
        ConfigError: an entry matches no table.
        SourceUnavailableError: the source cannot be asked.
        DestinationUnavailableError: the destination cannot be asked.
    """
    tables = assembly.selected(settings, sync.name)
    with closing(syncing.destination(sync)) as place:
        return Plan(tuple(step for table in tables for step in _synced_steps(sync, place, table)))


def _synced_steps(sync: Sync, place: PostgresDestination, table: SelectedTable) -> Iterator[Step]:
    target = syncing.target(place, sync, table)
    name, standing = str(table.target), target.standing()
    held = target.held()
    if held is not None:
        yield Step(sync.name, "keep", "table", name, held)
        return
    schema = syncing.wanted_schema(sync, table)
    if schema is not None:
        yield from _schema_changes(sync.name, table, place, schema)
    if standing is None:
        yield Step(sync.name, "copy", "rows", name, f"from {table.source}")
        return
    versions = syncing.source(sync).table(table.source, table.key or ())
    head = versions.head()
    plan = versions.plan(standing, head.number)
    if plan.loss is not None:
        yield Step(sync.name, "compare", "rows", name, plan.loss.reason)
    elif head.number > standing.commit:
        yield Step(sync.name, "apply", "changes", name, _versions(standing.commit + 1, head.number))
    else:
        yield Step(sync.name, "keep", "table", name, f"at version {standing.commit}")


def _schema_changes(
    pipeline: str, table: SelectedTable, place: PostgresDestination, schema: TableSchema
) -> list[Step]:
    """What is done to the table itself; what cannot be followed is told, not raised."""
    try:
        steps = place.table(table.target, pipeline, table.delivery).planned(schema)
    except DestinationError as error:
        return [Step(pipeline, "stop", "table", str(table.target), error.message)]
    except UnsupportedSchemaChangeError as error:
        action = "copy" if table.delivery.schema_policy is SchemaPolicy.RESYNC else "stop"
        return [Step(pipeline, action, "table", str(table.target), error.message)]
    return [
        Step(
            pipeline,
            "create" if step.sql[0].startswith("CREATE TABLE") else "alter",
            "table",
            str(table.target),
            step.sentence.removeprefix(f"{table.target}: "),
        )
        for step in steps
    ]


def _versions(first: int, last: int) -> str:
    return f"version {first}" if first == last else f"versions {first} to {last}"
