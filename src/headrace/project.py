"""The composition root and the Python API: joins configuration, connectors, log and engine.

    project = headrace.load("headrace.yaml")
    project.run(once=True)

Everything the command line does is one call here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from headrace import assembly, config
from headrace.config import Capture, Settings
from headrace.connectors.postgres import check as source_check
from headrace.connectors.postgres.config import connect
from headrace.engine.runner import Runner, RunView
from headrace.errors import CheckFailedError, ConfigError, HeadraceError
from headrace.model import TableId
from headrace.model.finding import Finding, Severity
from headrace.plan import Plan, make_plan
from headrace.preview import newest_changes
from headrace.removal import remove_capture
from headrace.status import Status, project_status
from headrace.verify import TableVerification, verify_pipeline


def load(path: str | Path = "headrace.yaml") -> Project:
    """Read a project's file. Raises ConfigError, naming file, line and the nearest valid value."""
    return Project(config.load(Path(path)))


@dataclass(frozen=True)
class TableFailure:
    """A table that waits for a person, while the others went on."""

    pipeline: str
    table: TableId
    error: HeadraceError


class Project:
    """What one headrace.yaml declares."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # -- before a run ------------------------------------------------------------------------------

    def check(self, pipeline: str | None = None) -> list[Finding]:
        """Every preflight of the named pipeline, or of all; blockers first."""

    def fix(self, findings: Sequence[Finding]) -> list[str]:
        """Apply the safe fixes that `check` proposed; gives the SQL that was run."""

    def plan(self, pipeline: str | None = None) -> Plan:
        """What a run would create, change or drop at the source and at the destinations."""

    # -- running -----------------------------------------------------------------------------------

    def run(
        self,
        pipelines: Sequence[str] = (),
        *,
        once: bool = False,
        stop: threading.Event | None = None,
        on_tick: Callable[[Sequence[RunView]], None] | None = None,
    ) -> list[TableFailure]:
        """Run the named pipelines, or all, until `stop` is set or, with `once`, caught up.

        `on_tick` is called about ten times a second, for a display. Gives the tables that failed.

        Raises:
            CheckFailedError: a preflight found a blocker (exit code 3).
            HeadraceError: whatever no retry can cure.
        """

    # -- looking -----------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where every capture and table stands."""

    def preview(self, table: str, limit: int = 20) -> pa.Table:
        """The newest changes of a source table in the change log, newest last."""

    def query(self, sql: str) -> pa.Table:
        """SQL over the destinations' tables by their names (`schema.table`)."""

    def verify(self, pipeline: str | None = None) -> list[TableVerification]:
        """Prove that each table equals its source at one LSN."""

    # -- the end -----------------------------------------------------------------------------------

    def destroy(self, pipeline: str | None = None) -> list[str]:
        """Drop what Headrace created at the source, and its change logs; destination tables stay."""
