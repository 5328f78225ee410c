"""A run killed in the middle of a big table's ranges: finished ones are kept, and all is exact."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from test_crash_points import run_until_killed

import headrace
from headrace.testing.database import Database
from replicated import assert_acknowledged_is_durable, assert_equal, unnamed_in_log, write_project
from toast_orders import big

TABLES = """
create table orders (id bigint primary key, n int, body text) with (fillfactor = 50);
alter table orders alter body set storage external;
insert into orders select g, 0, repeat('x', 200) from generate_series(1, 3000) g;
"""
SMALL = "1MB"  # the table is larger: some 25 ranges
CHANGES = (
    "insert into orders values ({free}, 0, '{text}')",
    "update orders set n = n + 1 where id = {id}",  # its body is not sent
    "update orders set body = '{text}' where id = {id}",
    "delete from orders where id = {id}",
    "delete from orders where id = {id}; insert into orders values ({id}, -1, 'again')",
    "update orders set id = {free}, body = 'moved' where id = {id}",
)


class Load:
    """Transactions of all kinds of changes, in no order; keys move from range to range."""

    def __init__(self, connection: psycopg.Connection[Any], seed: int) -> None:
        self._connection = connection
        self._chance = random.Random(seed)
        self._free = 100_000

    def transaction(self) -> Self:
        for _ in range(self._chance.randint(1, 4)):
            self._free += 1
            free = self._chance.choice([self._free, -self._free])
            id_ = self._chance.randint(1, 3000)
            change = self._chance.choice(CHANGES)
            self._connection.execute(change.format(id=id_, free=free, text=big(free)))
        self._connection.commit()
        return self


class Rest(Load):
    """Nothing happens: how many ranges a table is cut into depends on where its rows lie."""

    def transaction(self) -> Self:
        self._connection.execute("select pg_sleep(0.05)")
        self._connection.commit()
        return self


def kept_files(folder: Path) -> set[Path]:
    """Of finished ranges, as the log's document tells."""
    state = folder / "state"
    documents = [json.loads(p.read_text()) for p in state.glob("log/shop/unfinished/*.json")]
    ranges = [part for document in documents for part in document["ranges"]]
    return {state / file["path"] for part in ranges for file in part.get("files", ())}


@pytest.mark.parametrize(
    ("name", "hit"),
    [("snapshot.range_kept", 2), ("snapshot.range_advanced", 1), ("snapshot.range_advanced", 2)],
)
def test_invariants_3_4_6_7_killed_between_ranges_it_goes_on_with_those_it_has(
    database: Database, tmp_path: Path, name: str, hit: int
) -> None:
    """An earlier run left ranges behind; the one that is to complete them is killed as well."""
    database.execute(TABLES)
    project = write_project(tmp_path, database.dsn, snapshots={"ranges_above": SMALL})
    with database.connect(autocommit=False) as connection:
        load = Load(connection, hit)
        run_until_killed(database, project, "snapshot.range_kept=kill@3", Rest(connection, hit))
        kept = kept_files(tmp_path)
        assert len(kept) == 3
        for _ in range(150):  # so that each of them is behind by some
            load.transaction()
        run_until_killed(database, project, f"{name}=kill@{hit}", load)
        assert all(path.exists() for path in kept_files(tmp_path))
        if name == "snapshot.range_kept":
            assert kept < kept_files(tmp_path)  # they were not read again
        for _ in range(20):
            load.transaction()
    assert headrace.load(project).run(once=True) == []
    assert_acknowledged_is_durable(database, tmp_path)
    assert_equal(database, tmp_path, ["orders"])
    assert unnamed_in_log(tmp_path) == set()
    assert not kept_files(tmp_path)
