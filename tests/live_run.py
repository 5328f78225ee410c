"""A run that goes on in a thread, and waits for what it comes to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import headrace
from headrace.engine.runner import RunView
from headrace.errors import HeadraceError
from headrace.model import Lsn
from headrace.testing.database import Database

PATIENCE = 60.0  # seconds; only a test that fails waits as long


class LiveRun:
    """`headrace run` of a project, from entering the block to leaving it.

    Leaving it stops the run, which must not have failed; one that is expected to fail is awaited
    by `failure`. Views come from the run's own tick, ten times a second.
    """

    def __init__(self, project: Path) -> None:
        self._project = headrace.load(project)
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._views: Sequence[RunView] = ()
        self._error: BaseException | None = None
        self._ended = False
        self.errors: list[HeadraceError] = []  # each that made the capture reconnect, once
        self._thread = threading.Thread(target=self._run, name="live run")

    def _run(self) -> None:
        try:
            self._project.run(stop=self._stop, on_tick=self._tick)
        except BaseException as error:  # told by `failure`, or by leaving the block
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _tick(self, views: Sequence[RunView]) -> None:
        with self._changed:
            self._views = views
            error = views[0].capture.progress.error
            if error is not None and error not in self.errors:
                self.errors.append(error)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[RunView], bool]) -> None:
        """Wait until the run's view fulfils `condition`; the run must go on."""

        def fulfilled() -> bool:
            return self._ended or (bool(self._views) and condition(self._views[0]))

        with self._changed:
            assert self._changed.wait_for(fulfilled, PATIENCE), f"not in time; met {self.errors}"
        if self._ended:
            raise AssertionError("the run ended by itself") from self._error

    def wait_for_copies(self) -> None:
        """Wait until the tables that are to be copied first are."""
        self.wait_for(lambda view: bool(view.copier.progress))
        self.wait_for(lambda view: all(p.done for p in view.copier.progress.values()))

    def wait_for_error(self, kind: type[HeadraceError]) -> HeadraceError:
        """Wait until the capture has met an error of this kind, and goes on trying."""
        self.wait_for(lambda _: any(isinstance(error, kind) for error in self.errors))
        return next(error for error in self.errors if isinstance(error, kind))

    def catch_up(self, database: Database) -> None:
        """Wait until every table that goes on holds what the source has now.

        By a message of our own, whose commit is flushed; the end of the WAL may not be.
        """
        ((now,),) = database.execute("select pg_logical_emit_message(true, '', '')::text")
        target = Lsn.parse(now)
        self.wait_for(lambda view: view.capture.progress.connected)
        self._views[0].capture.reach(target)
        self.wait_for(lambda view: all(m.reached(target) for m in view.materializations))

    def failure(self) -> HeadraceError:
        """Wait for the run to end by itself; the error that it ended with."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._ended, PATIENCE), "the run goes on"
        error, self._error = self._error, None
        assert isinstance(error, HeadraceError), error
        return error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error
