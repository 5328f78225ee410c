"""Versions in a Delta table: what they come to, and that a kill -9 at any step changes nothing."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
from pathlib import Path

import delta_history_child as child
import pytest
from delta_samples import LOG_ID, READERS, Lake, at
from deltalake import DeltaTable

from headrace.errors import UnsuitableTableError

CHILD = Path(child.__file__)
TICK = dt.timedelta(microseconds=1)


def at_second(seconds: int, ticks: int = 0) -> dt.datetime:
    return child.moment(seconds) + ticks * TICK


def expected() -> set[tuple[object, ...]]:
    """The versions of `LIFE`, by hand: key, value, start and end."""
    began, cut, resync = at_second(0), at_second(4), at_second(50)
    told = [
        (0, 0, began, cut),
        (1, 0, began, at_second(1)),
        (1, 1, at_second(1), at_second(2)),
        (1, 2, at_second(2), cut),
        (1, 3, cut, at_second(4, 1)),  # the clock went back: the next one just after its start
        (1, 4, at_second(4, 1), None),  # the resync found it so
        (2, 0, began, at_second(1)),
        (2, 1, at_second(1), cut),
        (3, 0, began, at_second(2)),
        (4, 0, began, at_second(3)),
        (4, 1, at_second(3), cut),
        (5, 0, began, cut),
        (5, 0, at_second(5), resync),
        (5, 7, resync, at_second(60)),
        (5, 8, at_second(60), None),
        (6, 0, began, cut),
        (6, 1, at_second(6), resync),
        (7, 0, began, cut),
        (7, 7, resync, at_second(60)),
        (9, 0, at_second(2), at_second(3)),
        (9, 4, at_second(3, 1), resync),  # the clock went back: just after the last end
    ]
    return {(key, child.value(n).isoformat(), *period) for key, n, *period in told}


def _run(root: Path, layout: str, failpoint: str = "") -> int:
    environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    command = [sys.executable, str(CHILD), str(root), layout]
    return subprocess.run(command, env=environment, cwd=CHILD.parent, timeout=60).returncode


def assert_whole(root: Path) -> None:
    lake = Lake(root)
    for name, read in READERS.items():
        found = read(lake.path, ("id", "tod", "__START_AT", "__END_AT"))
        assert max(found.values()) == 1, name
        assert set(found) == expected(), name
    assert lake.open(shape=child.SHAPE).checkpoint(LOG_ID) == at(len(child.LIFE))


@pytest.mark.parametrize("layout", ["vectors", "rewrite", "eager"])
def test_5_a_life_in_several_commits_comes_to_its_versions(tmp_path: Path, layout: str) -> None:
    """Through a truncate, a resync, a clock that goes back, and compactions."""
    child.main(str(tmp_path), layout)
    assert_whole(tmp_path)
    compacted = "OPTIMIZE" in {entry["operation"] for entry in _history(tmp_path)}
    assert compacted == (layout == "eager")


def _history(root: Path) -> list[dict[str, object]]:
    return DeltaTable(Lake(root).path).history()


@pytest.mark.parametrize(("failpoint", "hits"), child.KILLS)
def test_killed_at_a_failpoint_each_version_still_stands_once(
    tmp_path: Path, failpoint: str, hits: int
) -> None:
    """Invariants 3 and 5."""
    assert _run(tmp_path, "vectors", f"{failpoint}=kill@{hits}") == -signal.SIGKILL
    assert _run(tmp_path, "vectors") == 0
    assert_whole(tmp_path)


def test_a_table_of_another_mode_is_not_taken_for_a_history(tmp_path: Path) -> None:
    child.main(str(tmp_path), "vectors")
    with pytest.raises(UnsuitableTableError, match="mode scd2") as caught:
        Lake(tmp_path).open().checkpoint(LOG_ID)
    assert "name:" in caught.value.hint
