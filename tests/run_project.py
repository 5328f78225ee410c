"""Runs a project until told to stop: `python run_project.py HEADRACE.YAML`.

For tests that kill it, by HEADRACE_FAILPOINT or from outside. SIGTERM ends it cleanly.
"""

from __future__ import annotations

import signal
import sys
import threading

import headrace


def main(path: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    headrace.load(path).run(stop=stop)


if __name__ == "__main__":
    main(sys.argv[1])
