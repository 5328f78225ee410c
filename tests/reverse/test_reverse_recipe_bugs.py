"""The nine bugs of the recipe that everybody copies, each on a whole pipeline.

The recipe: reverse ETL with Spark's JDBC writer and a loop over the Change Data Feed, as guides on
the web give it. The numbers are those of the list that this project was begun with.
"""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from headrace import failpoints
from headrace.errors import QuarantineFullError
from lakeside import Lakeside, Source, people


def test_bug_1_a_table_with_dots_and_quotes_in_its_names_is_swapped(lakeside: Lakeside) -> None:
    """The recipe's RENAME TO takes a qualified name, which is a syntax error."""
    source = lakeside.source("crm.people")
    source.write(people(1, 2, 3))
    name = 'Sales Data.Q1.2026 "big"'
    lakeside.carry({"source": "crm.people", "key": ["id"], "name": name})
    lakeside.catch_up()
    lakeside.assert_equal("crm.people", name)
    source.write(people(4, 5), mode="overwrite")
    assert lakeside.project.resync(["crm.people"]) == []
    lakeside.assert_equal("crm.people", name)


def test_bug_2_a_swapped_table_keeps_key_defaults_indexes_grants_and_views(
    lakeside: Lakeside, crm: Source
) -> None:
    """The recipe's new table has none of them; views still show the old rows."""
    lakeside.sql(
        """
        create role auditor_of_bug_2;
        grant select on crm.people to auditor_of_bug_2;
        alter table crm.people alter name set default 'nobody', alter name set not null;
        create index by_name on crm.people (lower(name));
        create view crm.names as select name from crm.people;
        """
    )
    try:
        ((before,),) = lakeside.sql("select 'crm.people'::regclass::oid")
        crm.write(people(10, 11, 12, name="over"), mode="overwrite")
        assert lakeside.project.resync(["crm.people"]) == []
        ((after,),) = lakeside.sql("select 'crm.people'::regclass::oid")
        assert after != before, "it was not swapped"
        assert lakeside.sql("select name from crm.names order by 1") == [
            ("over10",),
            ("over11",),
            ("over12",),
        ]
        assert lakeside.sql(
            "insert into crm.people (id) values (99) on conflict (id) do nothing returning name"
        ) == [("nobody",)]
        ((indexed, granted),) = lakeside.sql(
            "select to_regclass('crm.by_name') is not null,"
            " has_table_privilege('auditor_of_bug_2', 'crm.people', 'select')"
        )
        assert (indexed, granted) == (True, True)
        lakeside.sql("delete from crm.people where id = 99")
        crm.merge(people(10, name="later"))
        lakeside.catch_up()
        lakeside.assert_equal("crm.people")
    finally:
        lakeside.sql("drop owned by auditor_of_bug_2; drop role auditor_of_bug_2")


def test_bug_3_commits_that_land_during_the_load_are_neither_lost_nor_doubled(
    lakeside: Lakeside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe reads the newest rows and asks for the version afterwards."""
    source = lakeside.source("crm.people")
    source.write(people(*range(1, 9)))
    lakeside.carry({"source": "crm.people", "mode": "append"}, "crm.people2")
    lakeside.source("crm.people2").write(people(1, 2))
    landed = threading.Event()
    hit = failpoints.hit

    def change_it_during_the_load(name: str) -> None:
        if name == "postgres.load" and not landed.is_set():
            landed.set()
            source.write(people(100))
            source.delete("id = 1")
        hit(name)

    monkeypatch.setattr("headrace.connectors.postgres.load.hit", change_it_during_the_load)
    lakeside.catch_up()
    assert landed.is_set()
    lakeside.catch_up()
    found = lakeside.sql("select id, _change_type from crm.people order by id, _commit_version")
    loaded = [(n, "insert") for n in range(1, 9)]
    assert found == [loaded[0], (1, "delete"), *loaded[1:], (100, "insert")]


def test_bug_4_deleted_and_inserted_again_within_a_range_ends_inserted(
    lakeside: Lakeside, crm: Source
) -> None:
    """The recipe applies all upserts of a batch, then all deletes."""
    crm.delete("id = 1")
    crm.write(people(1, name="again"))
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")


def test_bug_5_a_changed_key_leaves_no_row_under_the_old_one(
    lakeside: Lakeside, crm: Source
) -> None:
    """The recipe throws preimages away, which alone tell of the old key."""
    crm.update("id = 2", id="200")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")


def test_bug_6_order_is_by_version_though_timestamps_are_equal_or_go_backwards(
    lakeside: Lakeside, crm: Source
) -> None:
    """The recipe guards by a column that is not there, and by timestamps."""
    for name in ("first", "second", "third"):
        crm.update("id = 3", name=f"'{name}'")
    newest = crm.log(crm.version)
    older = newest.read_text().replace('"timestamp":1', '"timestamp":')  # decades earlier
    newest.write_text(older)
    lakeside.catch_up()
    assert lakeside.sql("select name from crm.people where id = 3") == [("third",)]
    lakeside.assert_equal("crm.people")


def test_bug_7_statements_do_not_grow_with_the_rows(
    lakeside: Lakeside, crm: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe collects rows to one process, and sends a statement for each."""
    sent: list[int] = []
    execute = psycopg.Cursor.execute

    def counted(cursor: Any, *arguments: Any, **more: Any) -> Any:
        sent[-1] += 1
        return execute(cursor, *arguments, **more)

    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    for keys in (range(100, 103), range(1000, 5000)):
        crm.write(people(*keys))
        crm.update("id = 100 or id >= 1000", name="'other'")
        sent.append(0)
        lakeside.catch_up()
    lakeside.assert_equal("crm.people")
    few, many = sent
    assert 0 < many <= few


def test_bug_8_a_batch_that_cannot_be_applied_stops_its_table_and_moves_no_checkpoint(
    lakeside: Lakeside, crm: Source
) -> None:
    """The recipe prints the error and returns: the batch is lost. DESIGN §13, invariant 12."""
    lakeside.carry("crm.people", quarantine={"max_rows": 0})
    lakeside.sql("alter table crm.people add check (name <> 'bad9')")
    crm.write(people(9, name="bad"))
    crm.write(people(10))
    (failure,) = lakeside.run()
    assert isinstance(failure.error, QuarantineFullError)
    lakeside.assert_equal("crm.people", behind=2)
    lakeside.sql("alter table crm.people drop constraint people_name_check")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")


def test_bug_9_rows_that_did_not_change_are_not_written_again(
    lakeside: Lakeside, crm: Source
) -> None:
    """The recipe sets updated_at = now() on every row."""
    before = lakeside.sql("select id, ctid::text, xmin::text from crm.people order by 1")
    crm.merge(people(*range(1, 9)))
    crm.update("id = 5", name="'other'")
    lakeside.catch_up()
    after = lakeside.sql("select id, ctid::text, xmin::text from crm.people order by 1")
    assert [row[0] for row in after if row not in before] == [5]
    lakeside.assert_equal("crm.people")
