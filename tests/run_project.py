"""Runs a project until told to stop: `python run_project.py HEADRACE.YAML [resync|undo TABLE]`.

For tests that kill it, by HEADRACE_FAILPOINT or from outside. SIGTERM ends it cleanly.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial

import headrace
from headrace.engine import capture

COMMIT_BYTES = "HEADRACE_TEST_COMMIT_BYTES"  # few make small transactions large


def main(path: str, command: str = "run", table: str = "") -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    if COMMIT_BYTES in os.environ:
        size = int(os.environ[COMMIT_BYTES])
        capture.CommitPolicy = partial(capture.CommitPolicy, max_bytes=size)  # type: ignore[assignment, misc]  # a setting of tests only
    project = headrace.load(path)
    if command == "run":
        project.run(stop=stop)
    elif command == "resync":
        project.resync([table], stop=stop)
    else:
        project.undo(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
