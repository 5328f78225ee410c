"""Ctrl-C, SIGTERM, a closed terminal: the first asks for a clean stop, the second ends at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from headrace.cli.output import INTERRUPTED

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SHOW_CURSOR: Final = "\x1b[?25h"  # DECTCEM; the live view had hidden it


class Interruption:
    """`stop` is for whoever runs; `signalled` tells a signal from other reasons to stop."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._signal = threading.Event()

    @property
    def signalled(self) -> bool:
        return self._signal.is_set()

    def wait(self) -> None:
        """Wait for a signal."""
        self._signal.wait()

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.signalled:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), SHOW_CURSOR.encode())
            os._exit(INTERRUPTED)
        self._signal.set()
        self.stop.set()


@contextmanager
def stopping_on_signals() -> Iterator[Interruption]:
    """Take SIGNALS for the length of the block; from the main thread, all imports done.

    polars, which libraries import where it is installed, takes SIGINT with SA_RESTART
    (pola-rs/polars#21739): set before, our handler would not run while the main thread waits.
    """
    interruption = Interruption()
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    taken = [number for number in SIGNALS if number is not signal.SIGHUP or not nohup]
    before = {number: signal.signal(number, interruption._handle) for number in taken}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
