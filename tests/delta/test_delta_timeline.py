"""The version of a table that stands at an LSN, whatever commits lie between, and none that does
not."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pytest
from delta_samples import (
    LOG_ID,
    NAME,
    PIPELINE,
    Lake,
    Model,
    Row,
    at,
    changes,
    multiset,
    row_of,
    schema_of,
)
from deltalake import DeltaTable, QueryBuilder

from headrace.connectors.delta.timeline import Timeline
from headrace.errors import NoVersionError
from headrace.model import Lsn, Reached

SCHEMA = schema_of("int64")
BEFORE_THE_LOAD = Lsn(999)


def rows(*keys: int, value: int = 1) -> list[Row]:
    return [row_of("int64", key, value) for key in keys]


@dataclass
class Life:
    """A table's commits, and what it held from one LSN to another."""

    lake: Lake
    commit: int = 1
    held: list[tuple[Lsn, Lsn, Counter[Row]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = Model(SCHEMA)
        self.table = self.lake.open()
        self.table.load(SCHEMA, self.lake.snapshot(SCHEMA, rows(*range(10))), at(1))
        self.model.apply(rows(*range(10)), [])

    def apply(self, after: int, to: int, *keys: int, value: int) -> None:
        """Changes that all lie behind the LSN of commit `after`, up to that of `to`."""
        self._stood(at(after).lsn)
        batch = replace(changes(SCHEMA, rows(*keys, value=value)), after=at(after).lsn)
        self.table.apply(batch, at(to))
        self.model.apply(rows(*keys, value=value), [])
        self.commit = to

    def _stood(self, until: Lsn) -> None:
        held = multiset(self.model.rows.elements())
        self.held.append((at(self.commit).lsn, until, held))

    def reach(self, commit: int) -> Timeline:
        self._stood(at(commit).lsn)
        noted = Reached(LOG_ID, self.commit, at(commit).lsn)
        return self.timeline(noted)

    def timeline(self, noted: Reached | None = None) -> Timeline:
        return Timeline(NAME, self.table.storage, {}, lambda pipeline, source: noted)

    def at_version(self, version: int) -> Counter[Row]:
        table = DeltaTable(self.table.storage.url, version)
        read = pa.table(QueryBuilder().register("t", table).execute("select * from t"))
        return multiset(zip(*(read.column(n).to_pylist() for n in SCHEMA.names), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_each_lsn_has_the_version_that_held_what_the_source_did_or_none(
    lake: Lake, seed: int
) -> None:
    chance, life = random.Random(seed), Life(lake)
    for _ in range(14):
        after = life.commit + chance.choice((0, 0, 3))
        life.apply(after, after + chance.randint(1, 4), *chance.sample(range(12), 2), value=after)
        if chance.random() < 0.4:  # commits that bring no change, and tell no LSN
            DeltaTable(life.table.storage.url).optimize.compact()
            DeltaTable(life.table.storage.url).create_checkpoint()
    timeline = life.reach(life.commit + 2)
    for lsn in range(1000, life.commit * 1000 + 2500, 500):
        expected = [held for first, last, held in life.held if first <= lsn <= last]
        if expected:
            assert life.at_version(timeline.version_at(Lsn(lsn))) == expected[-1], lsn
        else:
            with pytest.raises(NoVersionError):
                timeline.version_at(Lsn(lsn))
    with pytest.raises(NoVersionError, match="was loaded as of"):
        timeline.version_at(BEFORE_THE_LOAD)
    with pytest.raises(NoVersionError, match="not yet to"):
        timeline.version_at(Lsn(life.commit * 1000 + 2500))


def test_a_cleaned_log_is_told_apart_from_a_table_that_was_loaded_later(lake: Lake) -> None:
    life = Life(lake)
    for number in range(1, 6):
        life.apply(number, number + 1, number, value=number)
    table = DeltaTable(life.table.storage.url)
    table.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 days"})
    table.create_checkpoint()
    life.table = lake.open()
    life.apply(6, 7, 8, value=9)
    table.cleanup_metadata()
    assert not lake.log(4).exists()
    timeline = life.reach(9)
    for commit in (6, 7, 9):
        version = timeline.version_at(at(commit).lsn)
        expected = [held for first, last, held in life.held if first <= at(commit).lsn <= last]
        assert life.at_version(version) == expected[-1]
    with pytest.raises(NoVersionError, match="no longer to 0/7D0") as error:
        timeline.version_at(at(2).lsn)
    assert "logRetentionDuration" in error.value.hint


def test_a_note_of_another_life_of_the_table_is_not_believed(lake: Lake) -> None:
    life = Life(lake)
    life.apply(1, 2, 3, value=3)
    later, elsewhere = Reached(LOG_ID, 3, Lsn(9000)), Reached("another log", 2, Lsn(9000))
    for noted in (later, elsewhere, None):
        assert life.timeline(noted).reached == at(2).lsn
    assert life.timeline(Reached(LOG_ID, 2, Lsn(9000))).reached == Lsn(9000)


def test_versions_of_an_earlier_change_log_have_no_lsn(lake: Lake) -> None:
    life = Life(lake)
    life.apply(1, 2, 3, value=3)
    files = lake.snapshot(SCHEMA, rows(1))
    life.table.load(SCHEMA, files, at(5, "6d0d2f0e-54a0-4f7c-8a92-1f4a1c8a0002"))
    timeline = life.timeline()
    assert timeline.pipeline == PIPELINE
    assert timeline.version_at(at(5).lsn) == 2
    with pytest.raises(NoVersionError, match="was loaded as of 0/1388, after 0/7D0"):
        timeline.version_at(at(2).lsn)
