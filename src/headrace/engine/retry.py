"""When to try again: a pure function of how often it failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# The first retry is quick, for a server that just restarts; a minute is what a person on call
# would wait between looks at one that does not come back.
FIRST_DELAY: Final = 0.1
MAX_DELAY: Final = 30.0
DOUBLINGS: Final = 9  # after which MAX_DELAY is passed; an outage may go on for days


@dataclass
class Backoff:
    """Seconds to wait before the next attempt: doubling from 0.1 to 30, anew after a success."""

    failures: int = 0

    def next(self) -> float:
        delay = min(FIRST_DELAY * (1 << min(self.failures, DOUBLINGS)), MAX_DELAY)
        self.failures += 1
        return delay

    def reset(self) -> None:
        self.failures = 0
