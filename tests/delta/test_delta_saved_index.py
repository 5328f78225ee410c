"""The saved key index: a restart begins with it, and believes nothing that is damaged or stale."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import index_crash_child
import numpy as np
import pytest
from delta_samples import (
    LOG_ID,
    NAME,
    PIPELINE,
    Lake,
    Model,
    Row,
    assert_holds,
    at,
    changes,
    row_of,
    schema_of,
)
from deltalake import DeltaTable

from headrace import assembly
from headrace.config import load
from headrace.connectors.delta import preserving, rows, slots
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.leaves import LEAF_BYTES
from headrace.connectors.delta.table import MergeOnReadTable
from headrace.failpoints import FAILPOINTS

CHILD = Path(index_crash_child.__file__)
KIND = "composite"
SCHEMA = schema_of(KIND)
NUMBERS = 200  # keys that there can be


class Home:
    """A table whose index is saved whenever a process ends, and what the table must hold."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.model = Model(SCHEMA)
        self.random = np.random.default_rng(3)
        self.commit = 1

    def process(self, indexes: str = "index") -> Iterator[MergeOnReadTable]:
        place = DeltaDestination(str(self.lake.root / "lake"), indexes=self.lake.root / indexes)
        yield place.table(NAME, PIPELINE)
        place.close()

    def load(self, numbers: range) -> None:
        content = [row_of(KIND, key, 1) for key in numbers]
        for table in self.process():
            table.load(SCHEMA, self.lake.snapshot(SCHEMA, content[::2], content[1::2]), at(1))
        self.model, self.commit = Model(SCHEMA), 1
        self.model.apply(content, [])

    def change(self, table: MergeOnReadTable) -> None:
        self.commit += 1
        keys = self.random.choice(NUMBERS, 30, replace=False).tolist()
        upserts = [row_of(KIND, key, self.commit) for key in keys[:20]]
        deletes: list[Row] = [row_of(KIND, key, 0) for key in keys[20:]]
        table.apply(changes(SCHEMA, upserts, deletes), at(self.commit))
        self.model.apply(upserts, deletes)

    def live(self, batches: int, indexes: str = "index") -> None:
        """A process that ends well."""
        for table in self.process(indexes):
            table.checkpoint(LOG_ID)
            for _ in range(batches):
                self.change(table)
            table.settle()

    def assert_holds(self) -> None:
        assert_holds(self.lake.path, self.model, ["duckdb"])


@pytest.fixture
def home(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(preserving, "DUE", 1)
    monkeypatch.setattr(preserving, "DUE_LAST", 1)
    home = Home(lake)
    home.load(range(150))
    home.live(3)
    return home


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose keys were read."""
    paths: list[str] = []
    original = rows.read_columns

    def recorded(storage: object, path: str, *more: object) -> object:
        paths.append(path)
        return original(storage, path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(rows, "read_columns", recorded)
    return paths


def _directory(home: Home) -> Path:
    (found,) = (home.lake.root / "index").rglob("directory")
    return found


def _leaves(home: Home) -> Path:
    (found,) = (home.lake.root / "index").rglob("*.leaves")
    return found


def test_a_restart_reads_no_keys(home: Home, read: list[str]) -> None:
    home.live(3)
    assert read == []
    home.assert_holds()


def test_a_restart_reads_the_keys_of_what_came_since(home: Home, read: list[str]) -> None:
    before = set(DeltaTable(home.lake.path).file_uris())
    home.live(4, indexes="elsewhere")
    read.clear()
    home.live(2)
    assert read
    assert not {str(home.lake.path / path) for path in read} & before
    home.assert_holds()


def test_only_its_owner_may_read_the_seed(home: Home) -> None:
    assert _directory(home).stat().st_mode & 0o077 == 0
    assert _leaves(home).stat().st_mode & 0o077 == 0


def _flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)


def _flip_in_each_leaf(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for start in range(100, len(content), LEAF_BYTES):
        content[start] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES: dict[str, Callable[[Home], None]] = {
    "leaf": lambda home: _flip_in_each_leaf(_leaves(home)),
    "magic": lambda home: _flip(_directory(home), 0),
    "header": lambda home: _flip(_directory(home), 0.2),
    "end": lambda home: _flip(_directory(home), 0.9),
    "cut": lambda home: _cut(_directory(home)),
    "leaves_cut": lambda home: _leaves(home).write_bytes(b""),
    "leaves_gone": lambda home: _leaves(home).unlink(),
    "empty": lambda home: _directory(home).write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_never_believed(home: Home, read: list[str], damage: str) -> None:
    DAMAGES[damage](home)
    home.live(1)
    assert read
    home.assert_holds()


def test_an_index_of_a_later_version_is_never_believed(home: Home, read: list[str]) -> None:
    """As after the table, but not the index, was put back from a backup."""
    backup = home.lake.root / "backup"
    shutil.copytree(home.lake.path, backup)
    then, commit = Model(SCHEMA, home.model.rows.copy()), home.commit
    home.live(2)
    shutil.rmtree(home.lake.path)
    backup.rename(home.lake.path)
    home.model, home.commit = then, commit
    home.random = np.random.default_rng(4)
    read.clear()
    home.live(1)
    assert read
    home.assert_holds()


def test_an_index_of_another_table_is_never_believed(home: Home, read: list[str]) -> None:
    shutil.rmtree(home.lake.path)
    home.load(range(50, 180))
    read.clear()
    home.live(2)
    assert read
    home.assert_holds()


def test_rows_that_came_back_to_life_are_found(home: Home) -> None:
    """RESTORE takes deletion vectors away, whose rows the index has let go of."""
    with_all = DeltaTable(home.lake.path).version()
    everything = Model(SCHEMA, home.model.rows.copy())
    for table in home.process():
        table.checkpoint(LOG_ID)
        home.change(table)
        DeltaTable(home.lake.path).restore(with_all)
        assert table.checkpoint(LOG_ID) is not None
        home.model = everything
        home.change(table)
    home.assert_holds()
    home.live(2)
    home.assert_holds()


def test_an_index_that_has_few_slots_left_is_built_anew(
    home: Home, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the saved one goes on, nor the one at hand."""
    monkeypatch.setattr(slots, "SLOTS", 100)  # more rows than half of these came
    home.live(2)
    assert read.count(read[0]) == 2
    home.assert_holds()


def test_two_processes_do_not_share_an_index(home: Home) -> None:
    for first in home.process():
        first.checkpoint(LOG_ID)
        home.change(first)
        home.live(2)
        first.checkpoint(LOG_ID)
        home.change(first)
    home.assert_holds()


KILLS = [("index.leaves_written", 1), ("index.leaves_written", 3), ("index.saved", 2)]


def test_every_failpoint_of_the_index_is_killed_at() -> None:
    assert {name for name, _ in KILLS} == {n for n in FAILPOINTS if n.startswith("index.")}


def _run(root: Path, failpoint: str) -> int:
    environment = {**os.environ, "HEADRACE_FAILPOINT": failpoint}
    command = [sys.executable, str(CHILD), str(root), "6"]
    return subprocess.run(command, env=environment, cwd=CHILD.parent, timeout=60).returncode


@pytest.mark.parametrize(("failpoint", "hits"), KILLS)
def test_killed_while_it_saves_an_index_a_table_goes_on(
    tmp_path: Path, failpoint: str, hits: int
) -> None:
    """Invariant 3: no change lost, none applied twice."""
    assert _run(tmp_path, f"{failpoint}=kill@{hits}") == -signal.SIGKILL
    assert _run(tmp_path, "") == 0
    kind, schema = index_crash_child.KIND, schema_of(index_crash_child.KIND)
    model = Model(schema)
    model.apply([row_of(kind, key, 1) for key in range(index_crash_child.ROWS)], [])
    for number in range(1, 7):
        upserts = range(number, index_crash_child.ROWS + number, 3)
        gone = [row_of(kind, 2 * number, 0)]
        model.apply([row_of(kind, key, number) for key in upserts], gone)
    assert_holds(Lake(tmp_path).path, model, ["duckdb"])


PROJECT = """
version: 1
state: {state}
connections:
  shop: {{type: postgres, host: localhost, database: shop, user: me}}
  lake: {{type: delta, location: ./lake}}
pipelines:
  shop_to_lake: {{source: shop, destination: lake, tables: ["public.*"], index_memory: 1MiB}}
"""


def test_a_project_keeps_its_indexes_below_its_state(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preserving, "DUE_LAST", 1)
    file = lake.root / "headrace.yaml"
    file.write_text(PROJECT.format(state="./state"))
    place = assembly.destination(load(file), PIPELINE)
    table = place.table(NAME, PIPELINE)
    table.load(SCHEMA, lake.snapshot(SCHEMA, [row_of(KIND, 1, 1)]), at(1))
    table.apply(changes(SCHEMA, [row_of(KIND, 2, 1)]), at(2))
    table.settle()
    place.close()
    folder = lake.root / "state" / "index" / PIPELINE / NAME.schema / NAME.name
    assert (folder / "directory").exists()
