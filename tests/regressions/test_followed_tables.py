"""A table whose changes may have been missed stops and says why; it never goes on in silence.

Each of these once went on, with a destination that differed from its source.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import yaml

import headrace
from headrace import assembly
from headrace.connectors.postgres.coverage import Coverage, departures
from headrace.continuity import opened_log
from headrace.model import Lsn, TableId
from headrace.project import Project, TableFailure
from headrace.testing.database import Database
from replicated import PUBLICATION, assert_equal, durable_lsn, write_project

SEED = """
create table items (id int primary key, name text);
insert into items select n, 'old' from generate_series(1, 10) n;
create table others (id int primary key, name text);
insert into others values (7, 'other')
"""
MISSED = "update items set name = 'new' where id = 1; delete from items where id = 2"


@pytest.fixture
def path(database: Database, tmp_path: Path) -> Path:
    database.execute(SEED)
    return write_project(tmp_path, database.dsn)


@pytest.fixture
def project(path: Path) -> Project:
    project = headrace.load(path)
    assert project.run(once=True) == []
    return project


def the_failure(failures: list[TableFailure]) -> TableFailure:
    (failure,) = failures
    assert str(failure.table) == "public.items"
    assert "headrace resync public.items" in failure.error.hint
    return failure


def assert_stopped_until_resynced(database: Database, folder: Path, project: Project) -> None:
    """It fails, and goes on failing, while the other table goes on; a resync cures it."""
    the_failure(project.run(once=True))
    database.execute("insert into items values (1000, 'later'); insert into others values (8)")
    the_failure(project.run(once=True))
    assert_equal(database, folder, ["others"])
    assert project.resync(["public.items"]) == []
    database.execute("insert into items values (1001, 'last')")
    assert project.run(once=True) == []
    assert_equal(database, folder, ["items", "others"])


@pytest.mark.parametrize(
    "change",
    [
        f"alter publication {PUBLICATION} drop table items; {MISSED};"
        f"alter publication {PUBLICATION} add table items",
        f"alter publication {PUBLICATION} drop table items; {MISSED}",
        pytest.param(
            f"alter publication {PUBLICATION} set table others, items where (id > 3); {MISSED};"
            f"alter publication {PUBLICATION} set table others, items",
            marks=pytest.mark.since(15),
        ),
        pytest.param(
            f"alter publication {PUBLICATION} set table others, items (id); {MISSED};"
            f"alter publication {PUBLICATION} set table others, items",
            marks=pytest.mark.since(15),
        ),
        f"drop table items; create table items (id int primary key, name text);"
        f"alter publication {PUBLICATION} add table items; insert into items values (500, 'x')",
        "alter table items rename to former; alter table others rename to items;"
        "alter table former rename to others; insert into items values (500, 'x')",
    ],
    ids=["came back", "left", "filtered for a while", "less columns", "recreated", "swapped"],
)
def test_invariant_12_a_table_that_was_followed_otherwise_meanwhile_is_told(
    database: Database, tmp_path: Path, project: Project, change: str
) -> None:
    database.execute(change)
    failed = {str(failure.table) for failure in project.run(once=True)}
    assert "public.items" in failed
    assert failed <= {"public.items", "public.others"}
    assert project.resync(sorted(failed)) == []
    assert project.run(once=True) == []
    assert_equal(database, tmp_path, ["items", "others"])


def test_invariant_12_a_table_that_was_excluded_for_a_while_does_not_go_on_by_itself(
    database: Database, tmp_path: Path, path: Path, project: Project
) -> None:
    everything = path.read_text()
    settings = yaml.safe_load(everything)
    tables = settings["pipelines"]["shop_to_lake"]["tables"]
    tables.append({"source": "public.items", "exclude": True})
    path.write_text(yaml.safe_dump(settings))
    database.execute(MISSED)
    assert headrace.load(path).run(once=True) == []
    path.write_text(everything)
    assert_stopped_until_resynced(database, tmp_path, headrace.load(path))


def test_invariant_12_a_stopped_table_stays_stopped_when_changes_come_after_a_restart(
    database: Database, tmp_path: Path, project: Project
) -> None:
    database.execute("alter table items add column token text default gen_random_uuid()::text")
    database.execute("update items set name = 'unseen' where id = 3")
    assert_stopped_until_resynced(database, tmp_path, project)


def test_invariant_12_rows_that_print_otherwise_though_nothing_wrote_them_are_told(
    database: Database, tmp_path: Path
) -> None:
    """By a label that was renamed, and by types inside of others; new labels harm nobody."""
    database.execute(
        "create type mood as enum ('sad', 'glad'); create type pair as (a int, m mood);"
        "create type other as enum ('x'); create domain mine as pair;"
        "create table moody (id int primary key, m mood); insert into moody values (1, 'sad');"
        "create table moods (id int primary key, m mood[]); insert into moods values (1, '{glad}');"
        "create table pairs (id int primary key, p mine); insert into pairs values (1, (1, null));"
        "create table calm (id int primary key, o other); insert into calm values (1, 'x')"
    )
    project = headrace.load(write_project(tmp_path, database.dsn))
    assert project.run(once=True) == []
    database.execute("alter type other add value 'y'")
    database.execute("alter type mood add value 'new'")
    assert project.run(once=True) == []
    database.execute("alter type mood rename value 'sad' to 'blue'")
    failures = {str(f.table): f.error for f in project.run(once=True)}
    assert set(failures) == {"public.moody", "public.moods", "public.pairs"}
    assert "enum mood was altered" in failures["public.moody"].message
    assert project.resync(sorted(failures)) == []
    assert_equal(database, tmp_path, ["moody", "calm"])
    database.execute("alter type pair drop attribute a, add attribute a int")
    (failure,) = project.run(once=True)
    assert "composite type pair was altered" in failure.error.message
    assert project.resync(["public.pairs"]) == []
    assert all(table.equal for table in project.verify())


def test_a_run_that_begins_where_the_log_ends_has_caught_up_already(
    tmp_path: Path, project: Project
) -> None:
    (capture,) = project.settings.captures()
    selection = assembly.select(project.settings, capture)
    storage = assembly.log_storage(project.settings)
    running = assembly.running(
        project.settings,
        capture,
        opened_log(project.settings, capture, storage),
        capture.pipelines,
        selection,
        threading.Event(),
    )
    with running as runner:
        (materialization,) = runner.view.materializations
        assert materialization.position == durable_lsn(tmp_path) > Lsn(0)
        assert all(state.idle for state in materialization.tables.values())


def test_departures_name_only_tables_that_are_covered_otherwise() -> None:
    items, others = TableId("public", "items"), TableId("public", "others")
    before = {items: Coverage(1, "a"), others: Coverage(2, "a")}
    now = {items: Coverage(1, "b"), others: Coverage(2, "a")}
    assert list(departures(before, now, "shop")) == [items]
    assert departures(before, before, "shop") == {}
    assert departures({}, now, "shop") == {}
