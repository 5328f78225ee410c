"""What headrace.yaml can ask for of a table from Delta, each on a whole pipeline."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
from decimal import Decimal

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from headrace.engine.table_state import Phase
from headrace.errors import ConfigError, ExpectationFailedError, ForeignTableError
from headrace.model.finding import Severity
from lakeside import Lakeside, Source, people

NAME = "crm.people"
KEY = "the-key-of-the-mask-0123456789"


def table(**more: object) -> dict[str, object]:
    return {"source": NAME, "key": ["id"], **more}


@pytest.fixture
def source(lakeside: Lakeside) -> Source:
    found = lakeside.source(NAME)
    found.write(people(*range(1, 9)))
    return found


# -- modes -----------------------------------------------------------------------------------------


def test_append_keeps_every_change_and_follows_new_columns(
    lakeside: Lakeside, source: Source
) -> None:
    lakeside.carry(table(mode="append", name="crm.log"))
    lakeside.catch_up()
    source.merge(people(1, 2, 50, name="m"))
    source.delete("id = 3")
    source.update("id = 4", id="40")
    more = people(60).append_column("extra", pa.array(["e"]))
    write_deltalake(source.path, more, mode="append", schema_mode="merge")
    source.write(people(7).append_column("extra", pa.array(["f"])), mode="overwrite")
    lakeside.catch_up()
    lakeside.assert_appended(NAME, "crm.log")
    before = lakeside.sql("select count(*) from crm.log")
    lakeside.catch_up()
    assert lakeside.sql("select count(*) from crm.log") == before


def test_deleted_rows_can_be_marked(lakeside: Lakeside, source: Source) -> None:
    """With the time of the source's commit; a row that comes back is marked no longer."""
    lakeside.carry(table(on_delete="mark"))
    lakeside.catch_up()
    source.delete("id < 4")
    lakeside.catch_up()
    gone = "select id from crm.people where _deleted_at is not null order by id"
    assert lakeside.sql(gone) == [(1,), (2,), (3,)]
    ((at,),) = lakeside.sql("select distinct _deleted_at from crm.people where id < 4")
    committed = source.delta.history(1)[0]["timestamp"]
    assert at == dt.datetime.fromtimestamp(committed / 1000, dt.UTC)
    source.write(people(2, name="back"))
    lakeside.catch_up()
    assert lakeside.sql(gone) == [(1,), (3,)]
    assert lakeside.sql("select name from crm.people where id = 2") == [("back2",)]
    source.delete("id = 5")
    assert lakeside.project.resync([NAME]) == []  # marked rows stay, more are marked
    assert lakeside.sql(gone) == [(1,), (3,), (5,)]


def test_deletes_can_be_ignored(lakeside: Lakeside, source: Source) -> None:
    lakeside.carry(table(on_delete="ignore"))
    lakeside.catch_up()
    source.delete("id < 4")
    source.update("id = 4", name="'changed'")
    lakeside.catch_up()
    assert lakeside.sql("select count(*) from crm.people") == [(8,)]
    assert lakeside.sql("select name from crm.people where id = 4") == [("changed",)]
    assert lakeside.project.resync([NAME]) == []
    assert lakeside.sql("select count(*) from crm.people") == [(8,)]


# -- columns and rows ------------------------------------------------------------------------------


def wide(*ids: int) -> pa.Table:
    rows = people(*ids)
    rows = rows.append_column("email", pa.array([f"P{i}@X.org" for i in ids]))
    rows = rows.append_column("phone", pa.array([f"0{i}" for i in ids]))
    return rows.append_column("spend", pa.array([Decimal(i) for i in ids], pa.decimal128(12, 2)))


def test_columns_are_chosen_renamed_and_typed(lakeside: Lakeside) -> None:
    source = lakeside.source(NAME)
    source.write(wide(1, 2))
    lakeside.carry(
        table(
            name="shop.Customers",
            columns={
                "exclude": ["phone"],
                "rename": {"name": "Full Name"},
                "types": {"spend": "numeric(20,4)", "Full Name": "varchar(40)"},
            },
        )
    )
    lakeside.catch_up()
    source.update("id = 1", name="'changed'", phone="'secret'")
    source.update("id = 2", id="20")
    lakeside.catch_up()
    query = 'select id, "Full Name", email, spend::text from shop."Customers" order by 1'
    assert lakeside.sql(query) == [
        (1, "changed", "P1@X.org", "1.0000"),
        (20, "n2", "P2@X.org", "2.0000"),
    ]
    assert lakeside.columns("shop.Customers") == ["id", "Full Name", "email", "spend"]


def test_rows_come_and_go_with_where(lakeside: Lakeside, source: Source) -> None:
    lakeside.carry(table(where="name <> 'internal'"))
    lakeside.catch_up()
    source.update("id < 3", name="'internal'")
    source.write(pa.table({"id": pa.array([50], pa.int64()), "name": ["internal"]}))
    lakeside.catch_up()
    assert lakeside.sql("select min(id), count(*) from crm.people") == [(3, 6)]
    source.update("id = 1", name="'public'")
    lakeside.catch_up()
    assert lakeside.sql("select name from crm.people where id = 1") == [("public",)]


def test_rules_that_change_between_runs_change_the_rows_that_stand(
    lakeside: Lakeside, source: Source
) -> None:
    lakeside.carry(table())
    lakeside.catch_up()
    lakeside.carry(table(where="id > 2", mask={"name": "redact"}))
    lakeside.catch_up()
    assert lakeside.sql("select id, name from crm.people order by 1")[0] == (3, "***")
    assert lakeside.sql("select count(*) from crm.people where name <> '***'") == [(0,)]
    assert "rules" in lakeside.notice(NAME)


def test_14_masked_values_and_the_key_are_nowhere_else(
    lakeside: Lakeside, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 14: not in a table, the quarantine, a record, a log or an error."""
    monkeypatch.setenv("MASK_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    source = lakeside.source(NAME)
    source.write(wide(*range(1000001, 1000006)))
    lakeside.carry(
        table(
            mask={
                "email": "sha256",
                "phone": {"hmac": "${MASK_KEY}"},
                "name": {"truncate": 1},
            },
            expect={"small": {"sql": "spend < 1000005", "on_breach": "quarantine"}},
        ),
        quarantine={"max_rows": 2},
    )
    lakeside.catch_up()
    found = lakeside.sql("select email, phone, name from crm.people where id = 1000001")
    assert found == [
        (
            hashlib.sha256(b"P1000001@X.org").hexdigest(),
            hmac.new(KEY.encode(), b"01000001", "sha256").hexdigest(),
            "n",
        )
    ]
    source.update("true", spend="1000009")  # all of them break the rule: more than may be parked
    (failure,) = lakeside.run()
    told = [caplog.text, str(failure.error), repr(failure.error.context)]
    told += [str(row) for row in lakeside.project.quarantine()]
    told += [p.read_text() for p in (lakeside.root / "state").rglob("*") if p.is_file()]
    told += [
        str(lakeside.sql(f"select t::text, t from {name} t"))
        for name in ("crm.people", "headrace.checkpoints")
    ]
    ((payload,),) = lakeside.sql(
        "select string_agg(encode(payload, 'escape'), '') from headrace.quarantine"
    )
    told.append(payload)
    assert lakeside.project.quarantine()
    for secret in (KEY, "@X.org", "'01000001'"):
        assert not any(secret in text for text in told), secret


def test_14_the_password_is_nowhere(
    lakeside: Lakeside, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    lakeside.sql("create role writer_of_14 login password 'pa55-w0rd'")
    try:
        caplog.set_level(logging.DEBUG)
        lakeside.carry(table(), shop={"user": "writer_of_14", "password": "pa55-w0rd"})
        (failure,) = lakeside.run()  # it may not create the schema
        lakeside.sql(f"grant create on database {lakeside.database.name} to writer_of_14")
        lakeside.catch_up()
        told = [caplog.text, str(failure.error), repr(lakeside.project.settings)]
        told += [str(lakeside.project.check()), str(lakeside.project.status())]
        told += [p.read_text() for p in (lakeside.root / "state").rglob("*") if p.is_file()]
        told.append(str(lakeside.sql("select c::text from headrace.checkpoints c")))
        assert not any("pa55-w0rd" in text for text in told)
    finally:
        lakeside.sql("drop owned by writer_of_14 cascade; drop role writer_of_14")


# -- expectations ----------------------------------------------------------------------------------


def test_expectations_warn_park_and_count(lakeside: Lakeside, source: Source) -> None:
    lakeside.carry(
        table(
            expect={
                "long": "length(name) > 3",
                "known": {"sql": "name <> 'bad'", "on_breach": "quarantine"},
            }
        )
    )
    lakeside.catch_up()
    assert lakeside.status(NAME).breaches == {"long": 8, "known": 0}
    source.update("id = 1", name="'bad'")
    lakeside.catch_up()
    assert lakeside.status(NAME).breaches == {"long": 1, "known": 1}
    source.write(people(100))
    lakeside.catch_up()
    assert lakeside.status(NAME).breaches == {"long": 0, "known": 0}  # of the last run
    assert lakeside.status(NAME).quarantined == 1
    assert lakeside.sql("select name from crm.people where id = 1") == [("n1",)]  # as it was
    (row,) = lakeside.project.quarantine()
    assert (row.code, row.key, row.version) == ("expect:known", ("1",), 1)
    assert lakeside.project.retry([row.id]).applied == 1  # who retries decides
    lakeside.assert_equal(NAME)


def test_an_expectation_that_fails_stops_its_table_with_nothing_applied(
    lakeside: Lakeside, source: Source
) -> None:
    lakeside.carry(table(expect={"known": {"sql": "name <> 'bad'", "on_breach": "fail"}}))
    lakeside.catch_up()
    source.write(people(100))
    source.update("id = 1", name="'bad'")
    (failure,) = lakeside.run()
    assert isinstance(failure.error, ExpectationFailedError)
    lakeside.assert_equal(NAME, behind=2)
    assert lakeside.status(NAME).phase is Phase.FAILED
    source.update("id = 1", name="'good'")
    lakeside.catch_up()
    lakeside.assert_equal(NAME)


def test_the_newest_of_several_rows_of_a_key_is_taken(lakeside: Lakeside) -> None:
    def rows(*versions: tuple[int, int]) -> pa.Table:
        keys, updated = zip(*versions, strict=True)
        return people(*keys).append_column("updated", pa.array(updated, pa.int64()))

    source = lakeside.source(NAME)
    source.write(rows((1, 1), (1, 3), (1, 2), (2, 1)))
    lakeside.carry(table(newest_by="updated"))
    lakeside.catch_up()
    assert lakeside.sql("select id, updated from crm.people order by 1") == [(1, 3), (2, 1)]
    source.write(rows((3, 5), (3, 9), (2, 2)))
    lakeside.catch_up()
    found = lakeside.sql("select id, updated from crm.people order by 1")
    assert found == [(1, 3), (2, 2), (3, 9)]
    assert lakeside.project.quarantine() == []


def test_check_finds_rules_that_are_wrong_and_goes_on(lakeside: Lakeside, source: Source) -> None:
    """A blocker for each table, not an error that hides the other findings."""
    lakeside.source("crm.other").write(people(1))
    lakeside.source("crm.third").write(people(1))
    lakeside.carry(
        table(where="nane = 'x'"),
        {"source": "crm.other", "key": ["id"], "expect": {"odd": "select 1"}},
        {"source": "crm.third", "key": ["number"]},
    )
    found = lakeside.project.check()
    blockers = {f.objects[0]: f for f in found if f.severity is Severity.BLOCKER}
    assert {NAME, "crm.other"} <= blockers.keys()
    assert "nane" in blockers[NAME].message
    assert all(f.fix for f in blockers.values())
    assert any("number" in f.message for f in blockers.values())
    assert any(f.severity is Severity.OK for f in found)
    failures = lakeside.run()
    assert {str(f.table) for f in failures} == {NAME, "crm.other", "crm.third"}
    assert isinstance(failures[0].error, ConfigError)


# -- how tables are taken and kept -----------------------------------------------------------------


def test_a_table_with_somebodys_rows_is_replaced_only_where_that_is_asked(
    lakeside: Lakeside, source: Source
) -> None:
    lakeside.sql(
        "create schema crm; create table crm.people (id bigint primary key, name text);"
        "insert into crm.people values (100, 'theirs')"
    )
    lakeside.carry(table())
    (failure,) = lakeside.run()
    assert isinstance(failure.error, ForeignTableError)
    assert "take_over" in failure.error.message
    assert lakeside.sql("select * from crm.people") == [(100, "theirs")]
    lakeside.carry(table(take_over=True))
    lakeside.catch_up()
    lakeside.assert_equal(NAME)


def test_many_changes_build_the_table_anew_and_few_are_merged(lakeside: Lakeside) -> None:
    source = lakeside.source(NAME)
    source.write(people(*range(20_000)))
    lakeside.carry(table(), rebuild_above=0.6)
    lakeside.catch_up()
    oid = lakeside.sql("select 'crm.people'::regclass::oid")
    source.update("id < 11000", name="'merged'")  # of 20,000 less than the share
    lakeside.catch_up()
    assert lakeside.sql("select 'crm.people'::regclass::oid") == oid
    assert lakeside.notice(NAME) == ""
    source.update("id < 15000", name="'built anew'")
    lakeside.catch_up()
    assert lakeside.sql("select 'crm.people'::regclass::oid") != oid
    assert "15000 rows changed of 20000" in lakeside.notice(NAME)
    lakeside.assert_equal(NAME)


def test_a_rebuild_that_was_undone_holds_the_table_until_a_resync(
    lakeside: Lakeside, source: Source
) -> None:
    lakeside.carry(table())
    lakeside.catch_up()
    before = lakeside.rows(NAME, ["id", "name"])
    source.write(people(1, name="wrong"), mode="overwrite")
    assert lakeside.project.resync([NAME]) == []
    assert "version 0" in lakeside.project.undo(NAME)
    source.write(people(2, name="more"))
    lakeside.catch_up()
    assert lakeside.rows(NAME, ["id", "name"]) == before
    assert lakeside.status(NAME).phase is Phase.HELD
    assert "headrace resync" in lakeside.notice(NAME)
    assert lakeside.project.resync([NAME]) == []
    lakeside.assert_equal(NAME)
    assert lakeside.status(NAME).phase is Phase.STREAMING


# -- schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["5m", "0 3 1 1 *"])
def test_a_run_that_waits_for_its_next_start_can_be_stopped(
    lakeside: Lakeside, source: Source, schedule: str
) -> None:
    """An interval starts at once, a cron line at its time."""
    lakeside.carry(table(), schedule=schedule)
    with lakeside.running() as running:
        if schedule == "5m":
            running.reach(NAME, 0)
        else:
            running.wait(lambda states: len(states) == 1)
    if schedule == "5m":
        lakeside.assert_equal(NAME)
    else:
        assert lakeside.sql("select to_regclass('crm.people')") == [(None,)]


def test_an_interval_catches_up_again_and_again(lakeside: Lakeside, source: Source) -> None:
    lakeside.carry(table(), schedule="1s")
    with lakeside.running() as running:
        for version in range(3):
            running.reach(NAME, version)
            source.write(people(100 + version))
        running.reach(NAME, 3)
    lakeside.assert_equal(NAME)


def test_each_pipeline_has_its_own_schedule(lakeside: Lakeside, source: Source) -> None:
    """One that waits for long holds up no other."""
    lakeside.source("crm.other").write(people(1))
    lakeside.declare({"now": [table()], "then": ["crm.other"]})
    text = lakeside.file.read_text()
    head, tail = text.split("  then:")
    lakeside.file.write_text(f"{head}  then:\n    schedule: '0 3 1 1 *'{tail}")
    with lakeside.running() as running:
        running.reach(NAME, 0)
        source.write(people(50))
        running.reach(NAME, 1)
    lakeside.assert_equal(NAME)
