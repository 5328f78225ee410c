"""A run verifies by its schedule, within limits; what it finds is told, and mended if allowed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable

import headrace
from headrace.errors import ConfigError, VerificationImpossibleError
from headrace.project import Project
from headrace.proofs import Proof
from headrace.status import TableStatus
from headrace.testing.database import Database
from headrace.verify.pace import Pace
from replicated import assert_equal, write_project

PATIENCE = 60.0


@pytest.fixture
def file(database: Database, tmp_path: Path) -> Path:
    database.execute("create table items (id int primary key, name text)")
    database.execute("insert into items select g, 'n' from generate_series(1, 100) g")
    file = write_project(tmp_path, database.dsn)
    assert headrace.load(file).run(once=True) == []
    return file


def configured(file: Path, **keys: object) -> Project:
    document = yaml.safe_load(file.read_text())
    (pipeline,) = document["pipelines"].values()
    pipeline.update(keys)
    file.write_text(yaml.safe_dump(document))
    return headrace.load(file)


@contextmanager
def running(project: Project) -> Iterator[Callable[[Callable[[TableStatus], bool]], None]]:
    """A run in a thread; what is given waits until a look at the table's status satisfies it."""
    stop, ticked = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(project.run, stop=stop, on_tick=lambda _: ticked.set())

        def wait(holds: Callable[[TableStatus], bool]) -> None:
            deadline = datetime.now(UTC) + timedelta(seconds=PATIENCE)
            while not holds(project.status().tables[0]):
                assert not ended.done(), ended.exception()
                assert datetime.now(UTC) < deadline, "waited in vain"
                ticked.clear()
                ticked.wait(1)

        try:
            yield wait
        finally:
            stop.set()
            ended.result(PATIENCE)


def lake(file: Path) -> DeltaTable:
    return DeltaTable(str(file.parent / "lake" / "public" / "items"))


def verified(status: TableStatus) -> Proof | None:
    return status.verified


def test_a_run_verifies_by_its_schedule_and_status_tells_what_differs(file: Path) -> None:
    lake(file).delete("id < 4")
    project = configured(file, verify="2s")
    with running(project) as wait:
        wait(lambda status: status.differs)
    (status,) = project.status().tables
    assert status.verified is not None
    assert (status.verified.missing, status.verified.extra) == (3, 0)
    assert "3 rows missing" in str(status.verified)
    (found,) = project.verify(repair=True)
    assert found.repaired
    (status,) = project.status().tables
    assert not status.differs


def test_a_difference_is_mended_by_itself_where_the_user_allows_it(
    database: Database, file: Path
) -> None:
    lake(file).delete("id < 4")
    project = configured(file, verify="2s", auto_refresh={"on": ["diverged"]})
    with running(project) as wait:
        wait(lambda status: "3 were written" in (status.notice or ""))
        database.execute("update items set name = 'later' where id = 2")
        wait(lambda status: status.verified is not None and not status.differs)
    assert project.run(once=True) == []
    assert_equal(database, file.parent, ["items"])


def test_what_the_last_run_found_is_mended_by_the_next_one(database: Database, file: Path) -> None:
    lake(file).delete("id < 4")
    (found,) = configured(file, verify="1d").verify()
    assert found.differs
    project = configured(file, auto_refresh={})
    with running(project) as wait:
        wait(lambda status: "3 were written" in (status.notice or ""))
    assert_equal(database, file.parent, ["items"])


@pytest.mark.parametrize("value", ["continuous", "soon", {"every": "1h", "max_share": 0}])
def test_a_schedule_that_cannot_be_is_refused(file: Path, value: object) -> None:
    with pytest.raises(ConfigError, match="verify"):
        configured(file, verify=value)


# -- going easy on both sides ----------------------------------------------------------------------


class Clock:
    """Time that passes only by waiting and by `work`; an event that is never set."""

    def __init__(self) -> None:
        self.now = self.waited = 0.0
        self.stopped = False

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.waited += seconds
        return self.stopped

    def __call__(self) -> float:
        return self.now


def pieces(clock: Clock, count: int, seconds: float) -> Iterator[pa.Table]:
    for _ in range(count):
        clock.now += seconds
        yield pa.table({"a": range(1000)})


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_no_more_than_its_share_of_the_time_is_spent_on_reading(share: float) -> None:
    clock = Clock()
    pace = Pace(None, share, clock, clock)  # type: ignore[arg-type]  # an event in all that is used
    list(pace.paced(lambda: pieces(clock, 10, 2.0))())
    assert 20 / clock.now == pytest.approx(share)


def test_a_reading_ends_with_the_run() -> None:
    clock = Clock()
    clock.stopped = True
    reading = Pace(None, 0.5, clock, clock).paced(lambda: pieces(clock, 10, 2.0))  # type: ignore[arg-type]  # as above
    with pytest.raises(VerificationImpossibleError):
        list(reading())
