"""Catches up with few descriptors to have: `python limited_child.py HEADRACE.YAML DESCRIPTORS`.

Prints the most threads that were there at once.
"""

from __future__ import annotations

import resource
import sys
import threading

import headrace
from headrace.log import writer

FILES_AT_ONCE = 16  # of a commit of the change log; what there is must suffice for these too


def main(path: str, descriptors: str) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(descriptors), most))
    writer.AT_ONCE = FILES_AT_ONCE  # type: ignore[misc]  # a setting of this test only
    threads = 0

    def tick(_: object) -> None:
        nonlocal threads
        threads = max(threads, threading.active_count())

    failed = headrace.load(path).run(once=True, on_tick=tick)
    if failed:
        raise failed[0].error
    print(threads)


if __name__ == "__main__":
    main(*sys.argv[1:])
