"""`headrace plan`: what a run would create or change, before it happens."""

from __future__ import annotations

from dataclasses import dataclass

from headrace import assembly
from headrace.config import Capture, SelectedTable, Settings
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.source import slot_state
from headrace.log import LogReader
from headrace.model import TableId

PUBLICATION = "SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = %s"
PUBLISHED = """
SELECT 1 FROM pg_catalog.pg_publication_tables
 WHERE pubname = %s AND schemaname = %s AND tablename = %s
"""


@dataclass(frozen=True)
class Step:
    """One thing: what would be done (`create`, `add`, `copy`, `keep`), to what, and where."""

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
        steps += [_table_step(settings, pipeline, table, reader) for table in tables]
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
            if session.execute(PUBLISHED, parameters).fetchone() is None:
                steps.append(Step(name, "add", "published table", str(table), capture.publication))
    return steps


def _table_step(
    settings: Settings, pipeline: str, table: SelectedTable, reader: LogReader | None
) -> Step:
    place = assembly.destination(settings, pipeline).table(table.target, pipeline)
    standing = place.checkpoint(reader.log_id) if reader else None
    if standing is not None:
        return Step(pipeline, "keep", "table", str(table.target), f"at {standing.lsn}")
    return Step(pipeline, "copy", "table", str(table.target), f"from {table.source}")
