"""Rules that are edited between two runs reach every row, whatever else happened between them."""

from __future__ import annotations

import shutil

import pytest

from headrace.errors import ForeignTableError
from lakeside import PIPELINE, Lakeside, Source, people

PEOPLE = {"source": "crm.people", "key": ["id"]}


def names(lakeside: Lakeside) -> list[tuple[int, str]]:
    return lakeside.sql("select id, name from crm.people order by id")


def test_a_mask_that_came_reaches_old_rows_though_the_state_folder_was_deleted(
    lakeside: Lakeside, crm: Source
) -> None:
    """What the rows were made by stands with them, not on the machine that made them."""
    shutil.rmtree(lakeside.root / "state", ignore_errors=True)
    lakeside.carry({**PEOPLE, "mask": {"name": "redact"}})
    lakeside.catch_up()
    assert names(lakeside) == [(1, "***"), (2, "***"), (3, "***")]


def test_a_filter_that_came_while_the_table_was_not_carried_reaches_old_rows(
    lakeside: Lakeside, crm: Source
) -> None:
    lakeside.source("crm.other").write(people(1))
    lakeside.carry("crm.other")
    lakeside.catch_up()
    crm.write(people(4))
    lakeside.carry({**PEOPLE, "where": "id <> 2"}, "crm.other")
    lakeside.catch_up()
    assert [row[0] for row in names(lakeside)] == [1, 3, 4]


def test_another_secret_of_a_mask_reaches_old_rows(lakeside: Lakeside) -> None:
    """Else one half of a table could not be joined with the other."""
    source = lakeside.source("crm.people")
    source.write(people(1))
    found = []
    for secret in ("one", "another"):
        lakeside.carry({**PEOPLE, "mask": {"name": {"hmac": secret}}})
        lakeside.catch_up()
        found.append(names(lakeside))
    assert found[0] != found[1]
    source.write(people(2))
    lakeside.catch_up()
    assert names(lakeside)[0] == found[1][0]


@pytest.mark.parametrize("kept", ["mark", "ignore"])
def test_rows_that_only_were_kept_go_when_deletes_delete(lakeside: Lakeside, kept: str) -> None:
    source = lakeside.source("crm.people")
    source.write(people(1, 2, 3))
    lakeside.carry({**PEOPLE, "on_delete": kept})
    lakeside.catch_up()
    source.delete("id = 1")
    lakeside.catch_up()
    lakeside.carry(PEOPLE)
    lakeside.catch_up()
    assert names(lakeside) == [(2, "n2"), (3, "n3")]
    source.write(people(1, name="back"))
    lakeside.catch_up()
    assert names(lakeside)[0] == (1, "back1")
    if kept == "mark":
        assert lakeside.sql("select from crm.people where _deleted_at is not null") == []


def test_deletes_that_are_marked_from_now_on_find_their_column(
    lakeside: Lakeside, crm: Source
) -> None:
    crm.delete("id = 1")
    lakeside.carry({**PEOPLE, "on_delete": "mark"})
    lakeside.catch_up()
    crm.delete("id = 2")
    lakeside.catch_up()
    query = "select id, _deleted_at is not null from crm.people order by id"
    assert lakeside.sql(query) == [(1, True), (2, True), (3, False)]


def test_a_pipeline_that_got_another_name_does_not_take_its_tables_for_caught_up(
    lakeside: Lakeside, crm: Source
) -> None:
    """It says at once whose they are, and what to do if it only got another name."""
    lakeside.declare({"renamed": ["crm.people"]})
    (failure,) = lakeside.run()
    assert isinstance(failure.error, ForeignTableError)
    assert f"the pipeline '{PIPELINE}' writes it" in failure.error.message
    for line in failure.error.hint.splitlines()[1:]:
        lakeside.sql(line)
    crm.write(people(4))
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")
