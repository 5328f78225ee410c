"""The composition root and the Python API: joins configuration, connectors, log and engine.

    project = headrace.load("headrace.yaml")
    project.run(once=True)

Everything the command line does is one call here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import pyarrow as pa

from headrace import assembly, config, consistency, quarantines, syncing
from headrace.config import Capture, Settings
from headrace.config import Sync as SyncSettings
from headrace.connectors.postgres.check import check as check_source
from headrace.connectors.postgres.check import fix as fix_source
from headrace.connectors.postgres.config import session as source_session
from headrace.connectors.postgres.parked import ParkedRow
from headrace.connectors.postgres.replay import Replayed
from headrace.consistency import Moment
from headrace.continuity import answers_lost_logs, opened_log, tolerated
from headrace.engine.retry import Backoff
from headrace.engine.runner import Runner, RunView
from headrace.engine.sync import Sync
from headrace.engine.sync_state import SyncView
from headrace.errors import CheckFailedError, ConfigError, HeadraceError, SlotLostError
from headrace.model import Lsn, TableId
from headrace.model.finding import Finding, Severity
from headrace.plan import Plan, make_plan, plan_sync
from headrace.preview import newest_changes
from headrace.proofs import record_proofs, verifying
from headrace.refreshes import TableFailure, refreshed
from headrace.removal import remove_capture, remove_sync
from headrace.status import Status, project_status
from headrace.transferring import DestinationCheck, check_destination, check_state
from headrace.transferring import undo as undo_transfer
from headrace.verification import Repairs, verify_capture, verify_sync
from headrace.verify import TableVerification

# Until a signal is noticed, at most, and between two frames of a display: a person sees ten in a
# second as live.
TICK: Final = 0.1

ASKED: Final = "somebody asked for it"  # why a table is copied anew

_log = logging.getLogger("headrace.run")

View = RunView | SyncView
Tick = Callable[[Sequence[View]], None]

# What a run may mend by itself: the publication is created or extended where we are allowed to.
RUN_FIXES: Final = frozenset({"publication-missing", "publication-tables"})


def load(path: str | Path = "headrace.yaml") -> Project:
    """Read a project's file. Raises ConfigError, naming file, line and the nearest valid value."""
    return Project(config.load(Path(path)))


class Project:
    """What one headrace.yaml declares."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    # -- before a run ------------------------------------------------------------------------------

    def check(self, pipeline: str | None = None) -> list[Finding]:
        """Every preflight of the named pipeline, or of all; blockers first."""
        findings = [
            f for capture in self._captures(pipeline) for f in self._check(capture, pipeline)
        ]
        findings += [f for sync in self._syncs(pipeline) for f in self._check_sync(sync)]
        return sorted(findings, key=lambda finding: finding.severity.rank)

    def fix(self, pipeline: str | None = None) -> list[str]:
        """Apply the safe fixes that `check` proposes; gives the SQL that was run."""
        applied: list[str] = []
        for capture in self._captures(pipeline):
            findings = self._check_source(capture, assembly.select(self.settings, capture))
            with source_session(capture.connection) as session:
                applied += fix_source(session, findings)
        for sync in self._syncs(pipeline):
            applied += syncing.fix(sync, self._check_sync(sync))
        return applied

    def plan(self, pipeline: str | None = None) -> Plan:
        """What a run would create, change or drop at the source and at the destinations."""
        plans = [make_plan(self.settings, capture) for capture in self._captures(pipeline)]
        plans += [plan_sync(self.settings, sync) for sync in self._syncs(pipeline)]
        return Plan(tuple(step for plan in plans for step in plan.steps))

    def _captures(self, pipeline: str | None = None) -> list[Capture]:
        self._require(*([pipeline] if pipeline else []))
        return [c for c in self.settings.captures() if pipeline is None or pipeline in c.pipelines]

    def _syncs(self, pipeline: str | None = None) -> list[SyncSettings]:
        return [sync for sync in self.settings.syncs() if pipeline in (None, sync.name)]

    def _require(self, *pipelines: str) -> None:
        for name in pipelines:
            if name not in self.settings.pipelines:
                known = ", ".join(self.settings.pipelines)
                raise ConfigError(f"there is no pipeline {name!r}", hint=f"choose one of {known}")

    def _check(self, capture: Capture, pipeline: str | None) -> list[Finding]:
        selection = assembly.select(self.settings, capture)
        found = self._check_source(capture, selection)
        names = [pipeline] if pipeline else capture.pipelines
        checks = self._check_destinations(capture, selection, names)
        return found + [finding for check in checks for finding in check.findings]

    def _check_source(self, capture: Capture, selection: assembly.Selection) -> list[Finding]:
        tables = assembly.selected_tables(selection)
        found = check_source(capture.connection, capture.slot, capture.publication, tables)
        return [*found, *check_state(self.settings)]

    def _check_destinations(
        self, capture: Capture, selection: assembly.Selection, pipelines: Sequence[str]
    ) -> list[DestinationCheck]:
        return [
            check_destination(self.settings, capture, name, selection[name]) for name in pipelines
        ]

    def _check_sync(self, sync: SyncSettings) -> list[Finding]:
        return syncing.check(self.settings, sync)

    # -- running -----------------------------------------------------------------------------------

    def run(
        self,
        pipelines: Sequence[str] = (),
        *,
        once: bool = False,
        stop: threading.Event | None = None,
        on_tick: Tick | None = None,
    ) -> list[TableFailure]:
        """Run the named pipelines, or all, until `stop` is set or, with `once`, caught up.

        `on_tick` is called about ten times a second, for a display. Gives the tables that failed.

        Raises:
            CheckFailedError: a preflight found a blocker (exit code 3).
            HeadraceError: whatever no retry can cure.
        """
        self._require(*pipelines)
        names = list(pipelines or self.settings.pipelines)
        stop = stop or threading.Event()
        if once:
            return self._run(names, (), True, stop, on_tick)
        try:
            return self._keep_running(names, stop, on_tick)
        finally:
            stop.set()

    def _keep_running(
        self, names: Sequence[str], stop: threading.Event, on_tick: Tick | None
    ) -> list[TableFailure]:
        """Run until `stop`; begin again where a slot is lost meanwhile, if the user lets that be
        answered by a refresh: the start finds out, and has the tables compared."""
        backoff = Backoff()
        while True:
            ended = threading.Event()  # of this attempt, as a run sets it at its end
            try:
                return self._run(names, (), False, ended, _passing_on(stop, ended, on_tick))
            except SlotLostError as error:
                captures = [c for c in self.settings.captures() if set(names) & set(c.pipelines)]
                if not all(answers_lost_logs(self.settings, c) for c in captures):
                    raise
                _log.warning('slot_lost reason="%s"', error.message)
            if stop.wait(backoff.next()):
                return []

    def resync(
        self,
        tables: Sequence[str],
        *,
        stop: threading.Event | None = None,
        on_tick: Tick | None = None,
    ) -> list[TableFailure]:
        """Copy tables (`schema.table` at either end) again, and catch up; old rows stay until then.

        Each changes in one commit, and has the columns that the source has now. A run of a capture
        that goes on is asked to do it, and waited for. Gives the tables that failed.

        Raises:
            ConfigError: no pipeline carries such a table.
            DestinationLockedError: a run of a pipeline from Delta tables is going on.
        """
        asked = [_table(name) for name in tables]
        carrying = {name: self._carried(name) for name in self.settings.pipelines}
        for table in asked:
            if not any(table in carried for carried in carrying.values()):
                raise ConfigError(f"no pipeline carries {table}", hint="headrace plan lists them")
        names = {name for name, carried in carrying.items() if not carried.keys().isdisjoint(asked)}
        wanted = [carrying[n][table] for n in names for table in asked if table in carrying[n]]
        stop = stop or threading.Event()
        failures: list[TableFailure] = []
        for capture in self.settings.captures():
            mine = {t for n in names & set(capture.pipelines) for t in carrying[n].values()}
            copied = [table for table in dict.fromkeys(wanted) if table in mine]
            if copied:
                failures += self._refresh(capture, copied, ASKED, stop, on_tick)
        syncs = [sync.name for sync in self._syncs() if sync.name in names]
        if syncs:
            failures += self._run(syncs, wanted, True, stop, on_tick)
        return failures

    def _carried(self, pipeline: str) -> dict[TableId, TableId]:
        """The source's tables that a pipeline carries, by their names at either end."""
        tables = assembly.selected(self.settings, pipeline)
        return {t.target: t.source for t in tables} | {t.source: t.source for t in tables}

    def _run(
        self,
        names: Sequence[str],
        resync: Sequence[TableId],
        once: bool,
        stop: threading.Event,
        on_tick: Tick | None,
    ) -> list[TableFailure]:
        captures = [c for c in self.settings.captures() if set(names) & set(c.pipelines)]
        syncs = [sync for sync in self.settings.syncs() if sync.name in names]
        with ExitStack() as stack:
            jobs: list[_Job] = []
            for capture in captures:
                selection = assembly.select(self.settings, capture)
                mine = [name for name in capture.pipelines if name in names]
                unfit = self._prepare(capture, selection, mine, once=once)
                log = opened_log(self.settings, capture, assembly.log_storage(self.settings))
                running = assembly.running(
                    self.settings, capture, log, mine, selection, stop, unfit
                )
                runner = stack.enter_context(running)
                if not once:
                    watch = verifying(self.settings, capture, mine, runner.suspect)
                    stack.enter_context(watch)
                jobs.append(_Job(runner, runner.run))
            for sync in syncs:
                syncer = stack.enter_context(syncing.running(self.settings, sync, resync))
                jobs.append(_Job(syncer, partial(syncer.run, stop)))
            _run_all(jobs, stop, once, on_tick)
            return [TableFailure(*failed) for job in jobs for failed in job.work.failed_tables]

    def _prepare(
        self,
        capture: Capture,
        selection: assembly.Selection,
        pipelines: Sequence[str],
        *,
        once: bool,
    ) -> assembly.Unfit:
        """Create or extend the publication if we may; refuse to run past any other blocker.

        What keeps single tables from being written stops them alone; they are given back. A run
        that goes on waits for a destination that is away.
        """
        findings = self._check_source(capture, selection)
        ours = [f for f in findings if f.safe and f.name in RUN_FIXES]
        checks = self._check_destinations(capture, selection, pipelines)
        places = [f for check in checks if once or not check.away for f in check.place]
        mended = tolerated(self.settings, capture)
        theirs = [f for f in findings if f not in ours and f.name not in mended]
        _refuse_blockers([*theirs, *places])
        if ours:  # last: publishing a table without an identity makes its updates fail
            with source_session(capture.connection) as session:
                fix_source(session, ours)
        return {table: error for check in checks for table, error in check.unfit.items()}

    # -- looking -----------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where every capture and table stands."""
        return project_status(self.settings)

    def preview(self, table: str, limit: int = 20) -> pa.Table:
        """The newest changes of a source table in the change log, newest last."""
        wanted = _table(table)
        for capture in self.settings.captures():
            reader = assembly.open_reader(self.settings, capture)
            found = reader and newest_changes(reader, wanted, limit)
            if found is not None:
                return found
        raise HeadraceError(
            f"the change log holds no change of {wanted}",
            hint="check the name (headrace plan), start headrace run, or change a row",
        )

    def query(self, sql: str, as_of: Lsn | None = None) -> pa.Table:
        """SQL over the destinations' tables by their names (`schema.table`).

        With `as_of`, over Delta tables as they stood together at that LSN of their source.

        Raises:
            NoVersionError: a table has no version that stands there.
        """
        places = {
            self.settings.pipelines[name].destination: name for name in self.settings.pipelines
        }
        if len(places) > 1:
            raise ConfigError(
                f"there are several destinations: {', '.join(places)}",
                hint="query one of them with a tool of its own, such as DuckDB",
            )
        pipeline = next(iter(places.values()))
        if as_of is not None:
            return consistency.query(self.settings, pipeline, sql, as_of)
        return assembly.destination(self.settings, pipeline).query(sql)

    def lsn(self, pipeline: str | None = None, at: Lsn | None = None) -> list[Moment]:
        """By pipeline from Postgres to Delta, the newest LSN that all of its tables have reached,
        and the version of each that stands there; with `at`, the newest up to that one.

        Raises:
            NoVersionError: the tables have no version in common.
        """
        self._require(*([pipeline] if pipeline else []))
        every = (name for capture in self.settings.captures() for name in capture.pipelines)
        followed = [name for name in every if consistency.has_versions(self.settings, name)]
        names = [pipeline] if pipeline else followed
        found = (consistency.moment(self.settings, name, at) for name in names)
        return [moment for moment in found if moment is not None]

    def verify(
        self, pipeline: str | None = None, *, repair: bool = False
    ) -> list[TableVerification]:
        """Prove that each table equals its source at one LSN, catching up first if nobody runs.

        With `repair`, the differences of Delta tables fed by Postgres are written to them, in one
        commit each; a run that goes on does it, and is waited for.
        """
        verified: list[TableVerification] = []
        for capture in self._captures(pipeline):
            names = [pipeline] if pipeline else list(capture.pipelines)
            catch_up = partial(self.run, names, once=True)
            repairs = Repairs(partial(self._refresh, capture)) if repair else None
            began = datetime.now(UTC)
            found = verify_capture(self.settings, capture, names, catch_up, repairs)
            record_proofs(self.settings, capture, found, began)
            verified += found
        for sync in self._syncs(pipeline):
            catch_up = partial(self.run, [sync.name], once=True)
            verified += verify_sync(self.settings, sync, catch_up)
        return verified

    def _refresh(
        self,
        capture: Capture,
        tables: Sequence[TableId],
        why: str,
        stop: threading.Event | None = None,
        on_tick: Tick | None = None,
    ) -> list[TableFailure]:
        """Have tables of the source copied anew, by us or by the run that goes on."""
        stop = stop or threading.Event()
        run = partial(self._run, capture.pipelines, (), True, stop, on_tick)
        return refreshed(self.settings, capture, tables, why, run, stop)

    # -- rows that a destination refused -----------------------------------------------------------

    def quarantine(self, table: str | None = None, pipeline: str | None = None) -> list[ParkedRow]:
        """The rows in quarantine, of one table (named as at the destination) or all."""
        self._require(*([pipeline] if pipeline else []))
        name = _table(table) if table else None
        return quarantines.parked(self.settings, table=name, pipeline=pipeline)

    def quarantined(self, number: int, pipeline: str | None = None) -> ParkedRow:
        """One row in quarantine, by its number."""
        return quarantines.row(self.settings, number, pipeline)

    def retry(
        self, ids: Sequence[int] = (), table: str | None = None, pipeline: str | None = None
    ) -> Replayed:
        """Apply rows in quarantine again, those of `ids`, of a table or all."""
        name = _table(table) if table else None
        return quarantines.retry(self.settings, ids, name, pipeline)

    def drop_quarantined(
        self, ids: Sequence[int] = (), table: str | None = None, pipeline: str | None = None
    ) -> int:
        """Forget rows in quarantine for good; gives how many."""
        name = _table(table) if table else None
        return quarantines.drop(self.settings, ids, name, pipeline)

    def undo(self, table: str) -> str:
        """Bring back what a table held before it was last built anew; gives what was done.

        Raises:
            NoGenerationError: there is no former generation.
            ConfigError: no pipeline carries such a table to Postgres.
        """
        name = _table(table)
        for sync in self._syncs():
            done = syncing.undo(self.settings, sync, name)
            if done is not None:
                return done
        done = undo_transfer(self.settings, name)
        if done is not None:
            return done
        raise ConfigError(f"no pipeline carries {name} to Postgres", hint="headrace plan tells")

    # -- the end -----------------------------------------------------------------------------------

    def destroy(self, pipeline: str | None = None) -> list[str]:
        """Drop what Headrace created at the source, and its change logs; its tables stay."""
        return [
            line
            for capture in self._captures(pipeline)
            for line in remove_capture(self.settings, capture)
        ] + [line for sync in self._syncs(pipeline) for line in remove_sync(self.settings, sync)]


@dataclass(frozen=True)
class _Job:
    """One capture or one sync at work, and what runs it."""

    work: Runner | Sync
    run: Callable[..., None]


def _refuse_blockers(findings: Sequence[Finding]) -> None:
    blockers = [f for f in findings if f.severity is Severity.BLOCKER]
    if blockers:
        listed = "; ".join(f.message for f in blockers)
        raise CheckFailedError(
            f"not ready to run: {listed}",
            hint=blockers[0].fix or "headrace check names each fix",
            findings=blockers,
        )


def _run_all(jobs: Sequence[_Job], stop: threading.Event, once: bool, on_tick: Tick | None) -> None:
    """Run side by side; a failure or an interrupt stops all. Sets `stop` at the end."""
    with ThreadPoolExecutor(len(jobs), "headrace-pipelines") as pool:
        futures = [pool.submit(job.run, once=once) for job in jobs]
        views = [job.work.view for job in jobs]
        try:
            _await_all(futures, lambda: on_tick(views) if on_tick is not None else None)
        finally:
            stop.set()
    for future in futures:
        future.result()


def _passing_on(stop: threading.Event, to: threading.Event, on_tick: Tick | None) -> Tick:
    """A tick that hands a stop on, too."""

    def tick(views: Sequence[View]) -> None:
        if stop.is_set():
            to.set()
        if on_tick is not None:
            on_tick(views)

    return tick


def _await_all(futures: Sequence[Future[None]], tick: Callable[[], None]) -> None:
    """Wait for all, or for the first failure.

    Never in one long wait: a library that takes SIGINT with SA_RESTART would hide Ctrl-C from it.
    """
    pending = set(futures)
    while pending:
        done, pending = wait(pending, TICK, FIRST_EXCEPTION)
        tick()
        if any(future.exception() for future in done):
            return


def _table(name: str) -> TableId:
    try:
        return TableId.parse(name)
    except ValueError as error:
        raise ConfigError(str(error), hint="headrace preview public.orders") from error
