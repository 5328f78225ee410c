"""Runs that are killed between the steps of a Delta commit, where rows are kept: no change is told
twice, no mark is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from harness import Shop

from tables import READERS


def killed(shop: Shop, failpoint: str, *command: str) -> bool:
    """Run a command that the failpoint is to kill; tells whether it did."""
    done = subprocess.run(
        [sys.executable, "-m", "headrace", *command, "-c", str(shop.file)],
        check=False,
        env={**os.environ, "HEADRACE_FAILPOINT": f"{failpoint}=kill"},
        capture_output=True,
        timeout=60,
    )
    return done.returncode == -signal.SIGKILL


def rows(shop: Shop, table: str, *columns: str) -> Counter[tuple[object, ...]]:
    return READERS["deltalake"](shop.location(f"public.{table}"), columns, {})


@pytest.mark.parametrize(
    ("failpoint", "command"),
    [
        ("delta.data_written", ("run", "--once")),
        ("delta.log_put", ("run", "--once")),
        ("delta.file_rewritten", ("run", "--once")),
        ("delta.log_put", ("resync", "public.told", "public.kept")),
    ],
    ids=lambda part: part if isinstance(part, str) else part[0],
)
def test_3_a_killed_run_tells_each_change_once_and_keeps_each_row(
    shop: Shop, failpoint: str, command: tuple[str, ...]
) -> None:
    """Invariant 3, where the table knows more than its source."""
    for table in ("told", "kept"):
        shop.sql(f"create table {table} (id int primary key, n int)")
        shop.sql(f"insert into {table} values (1, 1), (2, 2)")
    kept = {"source": "public.kept", "on_delete": "mark", "metadata": ["op"]}
    shop.carry({"source": "public.told", "mode": "append"}, kept)
    shop.catch_up()
    for table in ("told", "kept"):
        shop.sql(f"truncate {table}")
        shop.sql(f"insert into {table} values (2, 20), (3, 3)")
        shop.sql(f"delete from {table} where id = 3")
    assert killed(shop, failpoint, *command)
    shop.catch_up()

    changes = rows(shop, "told", "_op", "_lsn", "_ordinal", "id")
    assert set(changes.values()) == {1}
    told = Counter(op for op, *_ in changes)
    first = {"r": 2, "t": 1, "i": 2, "d": 1}
    again = {"r": 3, "t": 1}  # the copy that was asked for came before the changes were applied
    both = {"r": 3, "t": 2, "i": 2, "d": 1}  # or after them
    twice = {"r": 4, "t": 2}  # or it was killed before it could note that the copy was made
    assert told in ([first] if command[0] == "run" else [again, both, twice])
    live = rows(shop, "kept", "id", "n", "_deleted_at")
    assert {row[:2] for row in live if row[2] is None} == {(2, 20)}
    marked = {row[:2] for row in live if row[2] is not None}
    assert marked >= {(1, 1)}
    assert marked <= {(1, 1), (3, 3)}
    assert all(v.equal for v in shop.project.verify())
