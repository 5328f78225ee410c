"""What commands tell of tables from Delta is so, and names what the next command takes."""

from __future__ import annotations

import logging

import pyarrow as pa
import pytest

from headrace.engine.table_state import Phase
from headrace.errors import ConfigError, NoGenerationError, UnsupportedSchemaChangeError
from lakeside import Lakeside, Source, people

RENAMED = {"source": "crm.people", "name": "app.persons", "key": ["id"]}


@pytest.fixture
def renamed(lakeside: Lakeside) -> Source:
    """crm.people, at the destination under another name, carried by a run."""
    source = lakeside.source("crm.people")
    source.write(people(1, 2, 3))
    lakeside.carry(RENAMED)
    lakeside.catch_up()
    return source


def steps(lakeside: Lakeside) -> list[tuple[str, str, str, str]]:
    return [(s.action, s.kind, s.name, s.detail) for s in lakeside.project.plan().steps]


def test_a_plan_tells_what_is_made_copied_applied_and_kept(lakeside: Lakeside) -> None:
    source = lakeside.source("crm.people")
    source.write(people(1, 2, 3))
    lakeside.carry(RENAMED)
    assert steps(lakeside) == [
        ("create", "table", "app.persons", "creates the table"),
        ("copy", "rows", "app.persons", "from crm.people"),
    ]
    lakeside.catch_up()
    assert steps(lakeside) == [("keep", "table", "app.persons", "at version 0")]
    source.delete("id = 1")
    assert steps(lakeside) == [("apply", "changes", "app.persons", "version 1")]
    source.delete("id = 2")
    assert steps(lakeside) == [("apply", "changes", "app.persons", "versions 1 to 2")]


def test_a_table_is_resynced_and_undone_by_its_name_at_either_end(
    lakeside: Lakeside, renamed: Source
) -> None:
    for name in ("crm.people", "app.persons"):
        assert lakeside.project.resync([name]) == []
        assert "held until headrace resync app.persons" in lakeside.project.undo(name)
    with pytest.raises(ConfigError, match=r"no pipeline carries crm\.persons"):
        lakeside.project.resync(["crm.persons"])


def test_what_a_stopped_table_hints_at_cures_it(lakeside: Lakeside, renamed: Source) -> None:
    renamed.write(
        people(1, 2).rename_columns({"name": "called"}), mode="overwrite", schema_mode="overwrite"
    )
    lakeside.carry(RENAMED, schema="freeze", drop_columns=True)
    (failure,) = lakeside.run()
    assert isinstance(failure.error, UnsupportedSchemaChangeError)
    command = failure.error.hint.split()
    assert command[:2] == ["headrace", "resync"]
    assert lakeside.project.resync([command[2]]) == []
    lakeside.assert_equal("crm.people", "app.persons")


def test_status_tells_of_an_undone_rebuild_at_once(lakeside: Lakeside, renamed: Source) -> None:
    renamed.delete("id = 1")
    lakeside.project.resync(["crm.people"])
    lakeside.project.undo("app.persons")
    told = "its last rebuild was undone; headrace resync app.persons builds it anew"
    for _ in ("at once", "after a run"):
        (table,) = lakeside.project.status().tables
        assert (table.phase, table.notice, table.error) == (Phase.HELD, told, None)
        assert (table.version, table.source_version, table.lag_versions) == (0, 1, 1)
        assert table.lag_seconds
        lakeside.catch_up()


def test_a_notice_is_logged_by_nobody_but_the_display(
    lakeside: Lakeside, renamed: Source, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "headrace"):
        lakeside.project.resync(["crm.people"])
    (table,) = lakeside.project.status().tables
    assert table.notice == "built anew as of version 0: a resync was asked for"
    assert table.notice not in caplog.text


def test_a_table_that_cannot_be_swapped_is_told_to_be_changed_in_place(
    lakeside: Lakeside, renamed: Source
) -> None:
    lakeside.sql("alter table app.persons add own text")
    renamed.delete("id = 1")
    assert lakeside.project.resync(["app.persons"]) == []
    (table,) = lakeside.project.status().tables
    assert table.notice == (
        "changed in place, not built anew (column own is none of the source's), "
        "as of version 1: a resync was asked for"
    )
    assert table.rows_applied == 3 + 2  # each row counts once, though it was read twice
    with pytest.raises(NoGenerationError):
        lakeside.project.undo("app.persons")


def test_a_row_refused_by_a_load_is_told_of_the_table_not_of_where_it_is_built(
    lakeside: Lakeside,
) -> None:
    lakeside.sql("create schema app")
    lakeside.sql(
        "create table app.persons (id bigint primary key check (id <> 2), name text not null)"
    )
    lakeside.source("crm.people").write(
        pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["Ada", "Grace", None]})
    )
    lakeside.carry(RENAMED)
    lakeside.catch_up()
    assert {
        (row.reason, row.refusal.schema, row.refusal.table) for row in lakeside.project.quarantine()
    } == {
        (
            'new row for relation "persons" violates check constraint "persons_id_check"',
            "app",
            "persons",
        ),
        (
            'null value in column "name" of relation "persons" violates not-null constraint',
            "app",
            "persons",
        ),
    }
