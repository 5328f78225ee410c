"""A state folder that lost a part is told; numbers given twice are never taken for the old ones."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

import headrace
from headrace.engine.materialize import Materialization
from headrace.engine.protocols import DestinationTable
from headrace.engine.retry import MAX_DELAY, Backoff
from headrace.engine.table_state import TableTarget
from headrace.errors import LogCorruptError, LogGapError
from headrace.log import CommitDraft, LogReader, LogWriter, open_storage
from headrace.model import Checkpoint, Lsn, TableId
from headrace.project import Project
from headrace.testing.database import Database
from replicated import assert_equal, write_project


@pytest.fixture
def project(database: Database, tmp_path: Path) -> Project:
    database.execute("create table items (id int primary key, name text)")
    database.execute("insert into items select n, 'old' from generate_series(1, 10) n")
    project = headrace.load(write_project(tmp_path, database.dsn))
    for n in range(3):
        assert project.run(once=True) == []
        database.execute("update items set name = name || 'er' where id = %s", [n])
    assert project.run(once=True) == []
    return project


@pytest.mark.parametrize("lost", [slice(None), slice(-1, None)], ids=["all", "the newest"])
def test_a_log_that_lost_commits_does_not_give_their_numbers_again(
    database: Database, tmp_path: Path, project: Project, lost: slice
) -> None:
    commits = tmp_path / "state" / "log" / "shop" / "commits"
    for path in sorted(commits.glob("*.json"))[lost]:
        path.unlink()
    database.execute("delete from items where id < 3")
    with pytest.raises(LogCorruptError, match="has been read from it") as failure:
        project.run(once=True)
    assert "headrace destroy" in failure.value.hint
    project.destroy()
    assert project.run(once=True) == []
    assert_equal(database, tmp_path, ["items"])


class AheadOfTheLog:
    """A destination that has applied commits which the log holds no more."""

    def checkpoint(self, log_id: str) -> Checkpoint:
        return Checkpoint(log_id, 99, Lsn(99))

    def held(self) -> str | None:
        return None


def test_a_table_that_is_ahead_of_its_log_is_copied_and_skips_no_commit(tmp_path: Path) -> None:
    storage, items = open_storage(str(tmp_path)), TableId("public", "items")
    with LogWriter.open(storage, "shop") as log:
        log.commit(CommitDraft(Lsn(10)))
        reader = LogReader.open(storage, "shop", feed=log.feed)
        target = TableTarget(items, cast(DestinationTable, AheadOfTheLog()))
        materialization = Materialization("lake", reader, [target])
        materialization.catch_sight()
        assert materialization.unsnapshotted() == {items: 1}
        error = materialization.tables[items].error
        assert isinstance(error, LogGapError)
        assert "99" in error.message


def test_an_outage_of_days_never_ends_the_retries() -> None:
    backoff = Backoff()
    delays = [backoff.next() for _ in range(5000)]
    assert delays[-1] == max(delays) == MAX_DELAY
    backoff.reset()
    assert backoff.next() == delays[0] < MAX_DELAY
