"""From Postgres to Postgres: memory does not grow with a table, nor with a backlog."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headrace.connectors.postgres.replaceable_table import ReplaceableTable
from headrace.engine import table_state

RUN = """
import pathlib, sys, headrace
assert not headrace.load(sys.argv[1]).run(once=True)
# Not ru_maxrss, which a child inherits from the process that made it.
status = pathlib.Path("/proc/self/status").read_text()
print(status.partition("VmHWM:")[2].split()[0])
"""
TABLE_MEGABYTES = 700
PEAK_MEGABYTES = 600  # of the whole process, of which 200 are its libraries


@pytest.mark.slow
def test_10_a_table_larger_than_the_memory_in_use_is_loaded(mirror):
    """Invariant 10."""
    mirror.sql("create table big (id int primary key, v text)")
    rows = (TABLE_MEGABYTES << 20) // 2048
    mirror.sql(
        f"insert into big select g, repeat(md5(g::text), 64) from generate_series(1, {rows}) g"
    )
    mirror.carry("public.big")
    done = subprocess.run(
        [sys.executable, "-c", RUN, mirror.file], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) >> 10 < PEAK_MEGABYTES
    digest = "select count(*), sum(hashtext(v)), sum(id) from big"
    assert mirror.at_target(digest) == mirror.sql(digest)


def test_10_a_backlog_of_wide_rows_is_applied_a_bounded_part_at_a_time(mirror, monkeypatch):
    """Invariant 10: whole commits, as many as fit."""
    mirror.sql("create table wide (id int primary key, v bytea)")
    late = {"source": "public.wide", "name": "late.wide"}
    mirror.declare({"first": ["public.wide"], "second": [late]})
    mirror.catch_up()
    commit = "insert into wide select {0} * 100 + g, {1} from generate_series(1, 100) g"
    random = "decode(string_agg(md5((g * h)::text), ''), 'hex')"
    value = f"(select {random} from generate_series(1, 400) h)"
    for number in range(6):  # each run makes a commit of the log
        mirror.sql(commit.format(number, value))
        mirror.catch_up("first")
    applied = []
    apply = ReplaceableTable.apply

    def seen(parts):
        for part in parts:
            applied.append(part.upserts.nbytes)
            yield part

    def noted(self, changes, to, before=()):
        applied.append(changes.upserts.nbytes)
        apply(self, changes, to, seen(before))

    monkeypatch.setattr(ReplaceableTable, "apply", noted)
    monkeypatch.setattr(table_state, "STRETCH_BYTES", 1 << 20)
    mirror.catch_up("second")
    mirror.assert_equal("wide", target="late.wide")
    assert sum(applied) > 3 << 20
    assert max(applied) < 2 << 20
