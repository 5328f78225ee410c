"""Tables that commit at paces of their own meet: each cuts its changes at the same commits."""

from __future__ import annotations

import random
import time
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.materialize import Materialization
from headrace.engine.meeting import REST
from headrace.engine.protocols import DestinationTable
from headrace.engine.table_state import Phase, Stretch, TableState, TableTarget, next_stretch
from headrace.log import LogReader
from headrace.model import Checkpoint, Lsn, TableId

TABLES = 3


class QuietLog:
    """A log whose commits are queued by the test."""

    log_id, floor = "log", 0

    def position(self, name: str) -> None:
        return None


class Unasked(Materialization):
    """Tables that all stand at the log's beginning, and as many commits as the test says."""

    def __init__(self) -> None:
        super().__init__("lake", cast(LogReader, QuietLog()), [])
        for number in range(TABLES):
            table = TableId("s", f"t{number}")
            target = TableTarget(table, cast(DestinationTable, None))
            at = Checkpoint("log", 0, Lsn(0))
            self.tables[table] = TableState(target, at, 0, Phase.STREAMING)

    def choose(self, seen: int, now: float) -> int:
        self._meeting.look(self.tables.values(), now)
        self._meeting.call(seen, now)
        return self._meeting.commit


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 32), slowest=st.integers(2, 9))
def test_every_table_stands_at_every_commit_at_which_they_were_to_meet(
    seed: int, slowest: int
) -> None:
    chance, pipeline, seen = random.Random(seed), Unasked(), 0
    met: set[int] = set()
    stretches: list[list[tuple[int, int]]] = [[] for _ in range(TABLES)]
    for turn in range(200):
        for _ in range(chance.randint(0, 3)):
            seen += 1
            for state in pipeline.tables.values():
                if chance.random() < 0.8:
                    part = Stretch(seen, Lsn(seen - 1), Lsn(seen), None, ())
                    state.queue.append(part)
        met.add(pipeline.choose(seen, turn))
        for number, state in enumerate(pipeline.tables.values()):
            if state.queue and (number or turn % slowest == 0):
                taken = next_stretch(state.queue, max(met))
                stretches[number].append((taken[0].commit, taken[-1].commit))
                for _ in taken:
                    state.queue.popleft()
    for cuts in stretches:
        assert not [(c, m) for c in cuts for m in met if c[0] <= m < c[1]]
    turns_of_the_slowest = 200 // slowest
    assert len(met) > turns_of_the_slowest // (2 * (1 + REST))  # again and again, not just once


def test_the_loop_wakes_for_a_table_that_rests_though_nothing_is_queued_for_it() -> None:
    """It may hold rows that others just made possible: until it has looked, nothing is settled."""
    pipeline, rest = Unasked(), 0.040
    for state in pipeline.tables.values():
        state.looked = 0
    resting = next(iter(pipeline.tables.values()))
    resting.looked, resting.due = -1, time.monotonic() + rest
    assert not pipeline.reached(Lsn(0))
    assert pipeline._patience() <= rest
