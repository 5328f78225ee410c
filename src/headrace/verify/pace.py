"""Reading no faster than the owner of a database allows, and no longer than the run lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pyarrow as pa

from headrace.engine.compare import ReadRows
from headrace.engine.throttle import Throttle
from headrace.errors import VerificationImpossibleError

Clock = Callable[[], float]


class Pace:
    """Slows the readings of one verification down, all of them together.

    Of the time no more than `share` is spent on reading and comparing, and no more rows than
    `max_rows_per_second` are read. None: no bound.
    """

    def __init__(
        self,
        max_rows_per_second: float | None = None,
        share: float | None = None,
        stop: threading.Event | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.stop = self._stop = stop or threading.Event()
        self._throttle = Throttle(max_rows_per_second, wait=self._stop.wait)
        self._rest = 0.0 if share is None else 1 / share - 1  # seconds for one of work
        self._clock = clock

    def paced(self, read: ReadRows) -> ReadRows:
        """The same readings, held up as they go.

        Raises (while they are read):
            VerificationImpossibleError: the run ends.
        """

        def slowly() -> Iterator[pa.Table]:
            began = self._clock()
            for rows in read():
                self._throttle(rows.num_rows, 0)
                yield rows
                if self._stop.wait(self._rest * (self._clock() - began)):
                    raise VerificationImpossibleError(
                        "the run ended before the verification did", hint="headrace verify"
                    )
                began = self._clock()

        return slowly
