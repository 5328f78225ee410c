"""Runs a project until told to stop: `python run_project.py HEADRACE.YAML [resync|undo TABLE]`.

For tests that kill it, by HEADRACE_FAILPOINT or from outside. SIGTERM ends it cleanly. What may
succeed later ends it with AWAY, what may not with a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial

import headrace
from headrace.engine import capture, parting, table_state
from headrace.errors import CheckFailedError, HeadraceError

COMMIT_BYTES = "HEADRACE_TEST_COMMIT_BYTES"  # few make small transactions large
PART_ROWS = "HEADRACE_TEST_PART_ROWS"  # few have them applied in parts
AWAY = os.EX_TEMPFAIL
UNREACHED = "cannot connect"  # as the preflight says it


def main(path: str, command: str = "run", table: str = "") -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if COMMIT_BYTES in os.environ:
        size = int(os.environ[COMMIT_BYTES])
        capture.CommitPolicy = partial(capture.CommitPolicy, max_bytes=size)  # type: ignore[assignment, misc]  # a setting of tests only
    if PART_ROWS in os.environ:
        rows = int(os.environ[PART_ROWS])
        table_state.STRETCH_ROWS = parting.PART_ROWS = rows  # type: ignore[misc]  # likewise
    try:
        work(path, command, table, stop)
    except HeadraceError as error:
        unreached = isinstance(error, CheckFailedError) and UNREACHED in error.message
        if not (error.transient or unreached):
            raise
        print(f"{type(error).__name__}: {error.message}", file=sys.stderr)
        sys.exit(AWAY)


def work(path: str, command: str, table: str, stop: threading.Event) -> None:
    project = headrace.load(path)
    if command == "run":
        project.run(stop=stop)
    elif command == "resync":
        project.resync([table], stop=stop)
    else:
        project.undo(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
