"""What covers a table in a publication: by itself, with its schema, with what it is a part of."""

from __future__ import annotations

import pytest

from headrace.connectors.postgres.coverage import (
    Coverage,
    departures,
    from_record,
    read_coverage,
    to_record,
)
from headrace.model import TableId

SEED = """
create table plain (id int primary key);
create table root (id int primary key) partition by range (id);
create table leaf partition of root for values from (0) to (10);
create table alone (id int primary key);
"""


def covered(database, *names: str) -> dict[TableId, Coverage]:
    with database.connect() as session:
        found = read_coverage(session, "p", [TableId("public", name) for name in names])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("publication", "change", "told"),
    [
        ("for table root", "alter table root detach partition leaf", True),
        ("for table root, leaf", "alter table root detach partition leaf", True),
        ("for table root", "alter publication p set (publish_via_partition_root = true)", True),
        ("for table root", "alter publication p add table plain", False),
        ("for all tables", "create table b partition of root for values from (10) to (20)", False),
    ],
)
def test_12_a_partition_carried_by_itself_departs_with_what_publishes_it(
    database, publication, change, told
):
    """Invariant 12: a publication without publish_via_partition_root."""
    database.execute(f"{SEED}; create publication p {publication}")
    before = covered(database, "leaf", "plain")
    database.execute(change)
    departed = departures(before, covered(database, "leaf", "plain"), "p")
    assert list(departed) == ([TableId("public", "leaf")] if told else [])


def test_12_a_table_that_becomes_a_part_of_another_one_departs(database):
    """Invariant 12: its changes come under the other's name from then on."""
    via_root = "with (publish_via_partition_root = true)"
    database.execute(f"{SEED}; create publication p for all tables {via_root}")
    before = covered(database, "alone", "plain", "root")
    database.execute("alter table root attach partition alone for values from (10) to (20)")
    departed = departures(before, covered(database, "alone", "plain", "root"), "p")
    assert {table.name: why for table, why in departed.items()} == {
        "alone": "public.alone: it is in publication 'p' no more; its changes are not sent",
        "root": "public.root: partition public.alone was attached, with rows that were not sent",
    }


@pytest.mark.since(15)
def test_12_a_table_of_a_published_schema_departs_with_it(database):
    """Invariant 12."""
    database.execute(f"{SEED}; create publication p for tables in schema public")
    before = covered(database, "plain", "root")
    database.execute("create schema other; alter publication p set tables in schema other")
    assert [*departures(before, covered(database, "plain", "root"), "p")] == [*before]


def test_a_record_gives_back_what_it_was_made_of_and_one_of_0_1_tells_no_departure(database):
    database.execute(f"{SEED}; create publication p for all tables")
    now = covered(database, "plain", "root")
    assert from_record(to_record(now)) == now
    former = from_record([record[:4] for record in to_record(now)])
    assert departures(former, now, "p") == {}


def test_13_who_watches_waits_for_nobody_that_alters_a_table(database):
    """Invariant 13: a run could not be stopped until they had committed."""
    database.execute(f"{SEED}; create publication p for all tables")
    with database.connect(autocommit=False) as session, database.connect() as watching:
        session.execute("alter table root add n int; truncate plain")
        watching.execute("set lock_timeout = '1ms'")
        found = read_coverage(watching, "p", [TableId("public", n) for n in ("root", "plain")])
    assert found is not None
    assert len(found) == 2
