"""Runs a project until told to stop: `python run_project.py HEADRACE.YAML [resync|undo TABLE]`.

For tests that kill it, by HEADRACE_FAILPOINT or from outside. SIGTERM ends it cleanly.
"""

from __future__ import annotations

import signal
import sys
import threading

import headrace


def main(path: str, command: str = "run", table: str = "") -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    project = headrace.load(path)
    if command == "run":
        project.run(stop=stop)
    elif command == "resync":
        project.resync([table], stop=stop)
    else:
        project.undo(table)


if __name__ == "__main__":
    main(*sys.argv[1:])
