"""Kill -9 between any two steps of a commit, then start again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import delta_crash_child
import delta_history_child
import evolving_child
import pyarrow as pa
import pytest
from delta_samples import LOG_ID, Lake, Model, assert_holds, at, schema_of
from deltalake import DeltaTable

from headrace.failpoints import FAILPOINTS

CHILD = Path(delta_crash_child.__file__)
KILLS = [
    ("delta.load_linked", 1),
    ("delta.dv_written", 1),
    ("delta.dv_written", 3),
    ("delta.data_written", 2),
    ("delta.log_put", 1),  # of the load
    ("delta.log_put", 3),
]


UPKEEP_KILLS = [("delta.compaction_written", 1), ("delta.compacted", 1)]
# Of a table without deletion vectors, whose feed has images.
REWRITE_KILLS = [("delta.file_rewritten", 2), ("delta.changes_written", 2), ("delta.log_put", 3)]
# Of batches in parts, the second of which is lost, or the last.
PART_KILLS = [("delta.part_written", 2), ("delta.part_written", 8), ("delta.log_put", 3)]


def test_every_failpoint_of_the_destination_is_killed_at() -> None:
    kills = (
        KILLS
        + UPKEEP_KILLS
        + REWRITE_KILLS
        + PART_KILLS
        + delta_history_child.KILLS
        + evolving_child.KILLS
    )
    assert {name for name, _ in kills} == {n for n in FAILPOINTS if n.startswith("delta.")}


def _run(root: Path, kind: str, failpoint: str, policy: str) -> int:
    environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    command = [sys.executable, str(CHILD), str(root), kind, policy]
    return subprocess.run(command, env=environment, cwd=CHILD.parent, timeout=60).returncode


@pytest.mark.parametrize("kind", ["int64", "none"])
@pytest.mark.parametrize(("failpoint", "hits"), KILLS)
def test_killed_at_a_failpoint_it_goes_on_exactly_once(
    tmp_path: Path, kind: str, failpoint: str, hits: int
) -> None:
    """Invariant 3: no change lost, none applied twice."""
    _killed_and_gone_on(tmp_path, kind, f"{failpoint}=kill@{hits}", "lazy")


@pytest.mark.parametrize("kind", ["int64", "none"])
@pytest.mark.parametrize(("failpoint", "hits"), PART_KILLS)
def test_11_killed_between_the_parts_of_a_batch_nothing_of_it_is_there(
    tmp_path: Path, kind: str, failpoint: str, hits: int
) -> None:
    """Invariants 3 and 11: it is applied anew, from its first part, and once."""
    _killed_and_gone_on(tmp_path, kind, f"{failpoint}=kill@{hits}", "parts")


@pytest.mark.parametrize("kind", ["int64", "none"])
@pytest.mark.parametrize(("failpoint", "hits"), UPKEEP_KILLS)
def test_killed_before_or_after_a_compaction_is_committed_no_row_changes(
    tmp_path: Path, kind: str, failpoint: str, hits: int
) -> None:
    """Invariant 3."""
    _killed_and_gone_on(tmp_path, kind, f"{failpoint}=kill@{hits}", "eager")


@pytest.mark.parametrize("kind", ["int64", "none"])
@pytest.mark.parametrize(("failpoint", "hits"), REWRITE_KILLS)
def test_killed_while_files_are_rewritten_it_goes_on_exactly_once(
    tmp_path: Path, kind: str, failpoint: str, hits: int
) -> None:
    """Invariant 3: neither the rows nor the feed tell anything twice."""
    _killed_and_gone_on(tmp_path, kind, f"{failpoint}=kill@{hits}", "rewrite")
    feed = pa.table(DeltaTable(Lake(tmp_path).path).load_cdf(starting_version=0))
    kinds = Counter(feed.column("_change_type").to_pylist())
    rows = Model(schema_of(kind))
    rows.apply(delta_crash_child.first(kind), [])
    come = kinds["insert"] - kinds["delete"]
    for number in range(1, delta_crash_child.BATCHES + 1):
        rows.apply(*delta_crash_child.batch(number, kind))
    assert come == rows.rows.total()
    assert kinds["update_preimage"] == kinds["update_postimage"]


def _killed_and_gone_on(tmp_path: Path, kind: str, failpoint: str, policy: str) -> None:
    assert _run(tmp_path, kind, failpoint, policy) == -signal.SIGKILL
    assert _run(tmp_path, kind, "", policy) == 0
    model = Model(schema_of(kind))
    model.apply(delta_crash_child.first(kind), [])
    for number in range(1, delta_crash_child.BATCHES + 1):
        model.apply(*delta_crash_child.batch(number, kind))
    lake = Lake(tmp_path)
    assert_holds(lake.path, model)
    assert lake.open().checkpoint(LOG_ID) == at(delta_crash_child.BATCHES + 1)
    assert _commits(lake) == list(range(1, delta_crash_child.BATCHES + 2))


def _commits(lake: Lake) -> list[int]:
    """The change log's commit of each Delta commit."""
    found = []
    for path in sorted((lake.path / "_delta_log").glob("*.json")):
        actions = [json.loads(line) for line in path.read_text().splitlines()]
        info = next(a["commitInfo"] for a in actions if "commitInfo" in a)
        if info["operation"] != "OPTIMIZE":
            found.append(info["headrace"]["commit"])
    return found
