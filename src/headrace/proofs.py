"""What verifications found, kept beside the change log; and those that a run makes by schedule."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from headrace import assembly
from headrace.config import Capture, Settings
from headrace.config.settings import VerifySchedule
from headrace.errors import HeadraceError, ObjectMissingError, UnexpectedError
from headrace.log.layout import Layout
from headrace.model import TableId
from headrace.model.schedule import Schedule
from headrace.verification import verify_capture
from headrace.verify import TableVerification
from headrace.verify.pace import Pace

LOOK_INTERVAL: Final = 1.0  # seconds between two looks at the clock, which may be set

Suspect = Callable[[str, TableId, str], None]


@dataclass(frozen=True)
class Proof:
    """What the last verification of a table found; `problem` says why it was not compared."""

    at: datetime
    rows: int
    missing: int
    extra: int
    lsn: str | None = None
    problem: str | None = None

    @property
    def differs(self) -> bool:
        return bool(self.missing or self.extra)

    @property
    def is_equal(self) -> bool:
        return not self.differs and self.problem is None

    def __str__(self) -> str:
        when = f"{self.at:%Y-%m-%d %H:%M} UTC"
        if self.problem:
            return f"verified {when}: {self.problem}"
        if not self.differs:
            return f"verified {when}: equal"
        return (
            f"verified {when}: {self.missing} rows missing, {self.extra} too much; "
            "headrace verify --repair"
        )


# -- what was found --------------------------------------------------------------------------------


def record_proofs(
    settings: Settings, capture: Capture, verified: Sequence[TableVerification], at: datetime
) -> None:
    """Keep what a verification of whole pipelines found; what was repaired counts as equal."""
    for pipeline in dict.fromkeys(found.pipeline for found in verified):
        tables = {
            str(found.table): {
                "rows": found.rows,
                "missing": 0 if found.repaired else found.missing,
                "extra": 0 if found.repaired else found.extra,
                "lsn": None if found.lsn is None else str(found.lsn),
                "problem": None if found.problem is None else found.problem.message,
            }
            for found in verified
            if found.pipeline == pipeline
        }
        _put(settings, capture, pipeline, {"at": at.isoformat(), "tables": tables})


def _record_failure(
    settings: Settings, capture: Capture, pipeline: str, error: HeadraceError, at: datetime
) -> None:
    known = {"rows": 0, "missing": 0, "extra": 0, "lsn": None, "problem": error.message}
    tables = dict.fromkeys(_read(settings, capture, pipeline).get("tables", {}), known)
    _put(settings, capture, pipeline, {"at": at.isoformat(), "tables": tables})


def proofs(settings: Settings, capture: Capture, pipeline: str) -> Mapping[str, Proof]:
    """What was found last, by the source's tables."""
    data = _read(settings, capture, pipeline)
    if not data:
        return {}
    at = datetime.fromisoformat(data["at"])
    return {table: Proof(at, **known) for table, known in data["tables"].items()}


def _read(settings: Settings, capture: Capture, pipeline: str) -> dict[str, Any]:
    try:
        path = Layout(capture.name).proofs(pipeline)
        return dict(json.loads(assembly.log_storage(settings).get(path)))
    except ObjectMissingError:
        return {}


def _put(settings: Settings, capture: Capture, pipeline: str, data: Mapping[str, Any]) -> None:
    path = Layout(capture.name).proofs(pipeline)
    assembly.log_storage(settings).put(path, json.dumps(data, ensure_ascii=False).encode())


# -- by schedule -----------------------------------------------------------------------------------


@contextmanager
def verifying(
    settings: Settings, capture: Capture, pipelines: Sequence[str], suspect: Suspect
) -> Iterator[None]:
    """Verify the pipelines by their schedules for the length of the block, in one thread.

    `suspect` is told of each table that differs from its source.
    """
    scheduled = {n: settings.pipelines[n].verify for n in pipelines}
    jobs = {n: _Scheduled(settings, capture, n, s, suspect) for n, s in scheduled.items() if s}
    quitting = threading.Event()
    thread = threading.Thread(target=_watch, args=(jobs, quitting), name="headrace-verify")
    thread.start()
    try:
        yield
    finally:
        quitting.set()
        thread.join()


def _watch(jobs: Mapping[str, _Scheduled], quitting: threading.Event) -> None:
    for job in jobs.values():
        job.recall()
    while jobs and not quitting.wait(LOOK_INTERVAL):
        for job in jobs.values():
            if job.due <= datetime.now(UTC):
                job.verify(quitting)


class _Scheduled:
    """One pipeline's verifications."""

    def __init__(
        self,
        settings: Settings,
        capture: Capture,
        pipeline: str,
        schedule: VerifySchedule,
        suspect: Suspect,
    ) -> None:
        self._settings = settings
        self._capture = capture
        self._pipeline = pipeline
        self._limits = schedule
        self._schedule = Schedule.parse(schedule.cron_or_interval)
        self._suspect = suspect
        self.due = datetime.max.replace(tzinfo=UTC)

    def recall(self) -> None:
        """Go on from what the last run found: when it was, and which tables differ."""
        known = proofs(self._settings, self._capture, self._pipeline)
        last = max((proof.at for proof in known.values()), default=datetime.now(UTC))
        self._next(last)
        for table, proof in known.items():
            self._tell(TableId.parse(table), proof)

    def _next(self, after: datetime) -> None:
        due = self._schedule.next(after)
        assert due is not None  # never continuous
        self.due = due

    def verify(self, quitting: threading.Event) -> None:
        """Compare every table once; what comes of it is recorded, whatever it is."""
        began = datetime.now(UTC)
        self._next(began)
        pace = Pace(self._limits.max_rows_per_second, self._limits.max_share, quitting)
        settings, capture = self._settings, self._capture
        try:
            found = verify_capture(settings, capture, [self._pipeline], lambda: None, pace=pace)
            if not quitting.is_set():
                record_proofs(settings, capture, found, began)
        except HeadraceError as error:
            self._failed(error, began, quitting)
        except Exception as error:  # the task's edge: what is applied must go on
            self._failed(UnexpectedError.wrap(self._pipeline, error), began, quitting)
        else:
            for table, proof in proofs(settings, capture, self._pipeline).items():
                self._tell(TableId.parse(table), proof)

    def _failed(self, error: HeadraceError, at: datetime, quitting: threading.Event) -> None:
        if not quitting.is_set():
            _record_failure(self._settings, self._capture, self._pipeline, error, at)

    def _tell(self, table: TableId, proof: Proof) -> None:
        if proof.differs:
            why = f"{proof.missing} rows are missing and {proof.extra} too much"
            self._suspect(self._pipeline, table, why)
