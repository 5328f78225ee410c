"""Random lives under random faults; `make torture SEED=… MINUTES=…` lives others, and longer ones.

A life is what its seed decides (see `life`); a run begins one after the other until its time is
over. In CI it is always the same seeds: a test that fails by luck, without a change, teaches people
to run it once more. Who looks for what nobody has met takes a seed of the day.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from life import Life

from headrace.connectors.postgres.source import STREAMING_SINCE
from headrace.testing.postgres import major_version, server_bin_dir

SEED = int(os.environ.get("HEADRACE_TORTURE_SEED", "1"))
MINUTES = float(os.environ.get("HEADRACE_TORTURE_MINUTES", "2"))
PATIENCE = 300  # seconds for the last life, begun when time was nearly over

# A run in which none of one of these happened has shown nothing.
REQUIRED = (
    *("killed at a failpoint", "killed", "server killed", "server restarted", "cut", "silence"),
    *("resync", "definitions"),
    *(("streamed",) if major_version(server_bin_dir()) >= STREAMING_SINCE else ()),
)


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + PATIENCE)
def test_invariants_1_to_8_whatever_dies_the_copies_are_what_the_source_is(tmp_path: Path) -> None:
    """Acknowledged is durable (1); transactions are whole, and come once (2, 3); tables equal
    their source (4), with each version (5), values that were not sent (6), whatever ran beside the
    copy (7), and columns where they belong (8)."""
    counts: Counter[str] = Counter()
    end = time.monotonic() + MINUTES * 60
    seed = SEED
    while seed == SEED or time.monotonic() < end:
        counts += live(seed, tmp_path / str(seed))
        seed += 1
    print(f"{seed - SEED} lives: {dict(counts)}")
    assert all(counts[name] for name in REQUIRED), counts


def live(seed: int, folder: Path) -> Counter[str]:
    """One life; its folder stays where it failed."""
    print(f"seed {seed}: make torture SEED={seed} MINUTES=0", flush=True)
    folder.mkdir()
    began = time.monotonic()
    life = Life(seed, folder)
    life.live()
    print(f"  {time.monotonic() - began:.0f} s, {dict(life.counts)}", flush=True)
    shutil.rmtree(folder)
    return life.counts
