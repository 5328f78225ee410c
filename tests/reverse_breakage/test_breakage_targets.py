"""Tables at the destination as users make, change and guard them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pyarrow as pa
import pytest

from headrace.errors import HeadraceError, UnsuitableTableError, UnsupportedSchemaChangeError
from lakeside import Lakeside, Source, by_deltalake, people


def cure(lakeside: Lakeside, error: HeadraceError) -> None:
    """Do what an error tells its reader to do: SQL, then a resync."""
    *statements, last = error.hint.splitlines()
    for statement in statements:
        lakeside.sql(statement)
    assert last.startswith("headrace resync crm.people")
    assert lakeside.project.resync(["crm.people"]) == []


def test_where_a_table_can_neither_follow_nor_be_built_anew_the_hint_leads_out(
    lakeside: Lakeside, crm: Source
) -> None:
    """A column that the source dropped stays, and looks like one of the user's own."""
    more = people(4).append_column("extra", pa.array(["x"]))
    crm.write(more, schema_mode="merge")
    lakeside.catch_up()
    texts = pa.table({"id": ["a"], "name": ["b"]})
    crm.write(texts, mode="overwrite", schema_mode="overwrite")
    (failure,) = lakeside.run()
    assert isinstance(failure.error, UnsupportedSchemaChangeError)
    assert "column extra is none of the source's" in failure.error.message
    cure(lakeside, failure.error)
    lakeside.assert_equal("crm.people", readers=(by_deltalake,))


def test_where_a_table_lacks_the_columns_of_another_key_the_hint_leads_out(
    lakeside: Lakeside, crm: Source
) -> None:
    other = pa.table({"number": pa.array([1], pa.int64()), "name": ["b"]})
    crm.write(other, mode="overwrite", schema_mode="overwrite")
    lakeside.carry({"source": "crm.people", "key": ["number"]})
    (failure,) = lakeside.run()
    assert isinstance(failure.error, UnsupportedSchemaChangeError)
    cure(lakeside, failure.error)
    lakeside.assert_equal("crm.people", readers=(by_deltalake,))


def test_what_a_dropped_column_hints_at_brings_its_values_back(
    lakeside: Lakeside, crm: Source
) -> None:
    """To add the column again is half of it: old rows would be null there for ever."""
    lakeside.sql("alter table crm.people drop column name")
    crm.write(people(4))
    (failure,) = lakeside.run()
    assert isinstance(failure.error, UnsuitableTableError)
    cure(lakeside, failure.error)
    lakeside.assert_equal("crm.people", readers=(by_deltalake,))


def test_a_key_that_no_index_can_hold_is_parked_by_a_load_too(lakeside: Lakeside) -> None:
    """One row, and not its table, waits for somebody."""
    source = lakeside.source("crm.people")
    long = os.urandom(4000).hex()  # cannot be compressed
    source.write(pa.table({"id": ["a", long], "name": ["x", "y"]}))
    lakeside.carry("crm.people")
    lakeside.catch_up()
    source.write(pa.table({"id": ["b", f"{long}b"], "name": ["x", "y"]}))
    lakeside.catch_up()
    assert lakeside.sql("select id from crm.people order by id") == [("a",), ("b",)]
    parked = lakeside.project.quarantine()
    assert sorted(row.key for row in parked) == [(long,), (f"{long}b",)]
    assert {row.code for row in parked} == {"program_limit_exceeded"}


def test_rules_that_do_something_instead_of_what_is_asked_are_refused(
    lakeside: Lakeside,
) -> None:
    """DELETE would tell of no error, and delete nothing."""
    lakeside.sql(
        """
        create schema crm;
        create table crm.people (id bigint primary key, name text);
        create rule keep as on delete to crm.people do instead nothing;
        """
    )
    source = lakeside.source("crm.people")
    source.write(people(1, 2))
    lakeside.carry("crm.people")
    (failure,) = lakeside.run()
    assert isinstance(failure.error, UnsuitableTableError)
    assert "keep" in failure.error.message
    lakeside.sql(failure.error.hint)
    lakeside.catch_up()
    source.delete("id = 1")
    lakeside.catch_up()
    lakeside.assert_equal("crm.people")


@pytest.fixture
def poor(lakeside: Lakeside) -> Iterator[dict[str, str]]:
    """A role with three connections, as small plans of hosted databases have."""
    name = f"poor_{secrets.token_hex(4)}"
    database = lakeside.database.name
    lakeside.sql(f"create role {name} login password 'x' connection limit 3")
    lakeside.sql(f"grant create on database {database} to {name}")
    try:
        yield {"user": name, "password": "x"}
    finally:
        lakeside.sql(f"drop owned by {name} cascade; drop role {name}")


def test_a_table_is_loaded_and_indexed_over_one_connection_where_there_are_no_more(
    lakeside: Lakeside, poor: dict[str, str]
) -> None:
    source = lakeside.source("crm.people")
    source.write(people(*range(1000)))
    lakeside.carry("crm.people", shop=poor)
    lakeside.catch_up()
    lakeside.sql("create index on crm.people (name); create index on crm.people (lower(name))")
    assert lakeside.project.resync(["crm.people"]) == []
    lakeside.assert_equal("crm.people", readers=(by_deltalake,))
