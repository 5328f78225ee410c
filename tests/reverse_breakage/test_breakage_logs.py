"""Delta logs as backups, foreign writers and storage without atomic puts leave them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from headrace.errors import SourceError
from lakeside import Lakeside, Source, by_deltalake, people

Change = Callable[[], object]


def rewritten(source: Source, *changes: Change) -> None:
    """Take the table back to its files of before the newest version, and on from there."""
    newest = source.log(source.version)
    newest.unlink()
    for change in changes:
        change()


@pytest.mark.parametrize("more", [0, 1, 3])
def test_a_table_put_back_from_a_backup_and_written_on_is_not_taken_for_what_it_was(
    lakeside: Lakeside, crm: Source, more: int
) -> None:
    """It has the same id, and as many versions as were applied, or more."""
    crm.write(people(4))
    lakeside.catch_up()
    rewritten(crm, *[lambda n=n: crm.write(people(50 + n)) for n in range(more + 1)])
    lakeside.catch_up()
    lakeside.assert_equal("crm.people", readers=(by_deltalake,))
    assert "not the one that was applied" in lakeside.notice("crm.people")
    crm.delete("id = 50")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people", readers=(by_deltalake,))


def test_a_commit_that_is_empty_as_yet_is_not_taken_for_one_without_changes(
    lakeside: Lakeside, crm: Source
) -> None:
    crm.write(people(4))
    whole = crm.log(1).read_bytes()
    crm.log(1).write_bytes(b"")
    (failure,) = lakeside.run()
    assert isinstance(failure.error, SourceError)
    assert "is damaged: it is empty" in failure.error.message
    crm.log(1).write_bytes(whole)
    lakeside.catch_up()
    lakeside.assert_equal("crm.people", readers=(by_deltalake,))


@pytest.mark.parametrize("stamp", [None, 0, -5, 10**16, 1_700_000_000_000.5])
def test_times_that_no_calendar_has_keep_no_version_away(
    lakeside: Lakeside, crm: Source, stamp: float | None
) -> None:
    """Some writers count in microseconds, others write no time at all."""
    for key in (4, 5):
        crm.write(people(key))
        actions = [json.loads(line) for line in crm.log(crm.version).read_text().splitlines()]
        for action in actions:
            action.get("commitInfo", {})["timestamp"] = stamp
            if "add" in action:
                action["add"]["modificationTime"] = 0
        lines = [json.dumps(action) for action in actions]
        crm.log(crm.version).write_text("\n".join(lines) + "\n")
        lakeside.catch_up()
        lakeside.assert_equal("crm.people", readers=(by_deltalake,))
    assert lakeside.notice("crm.people") == ""
