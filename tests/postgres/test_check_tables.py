"""The preflight of tables: each finding for a real table, and gone when its fix was applied."""

from __future__ import annotations

import psycopg
import pytest
from check_source import checked_source

from headrace.model import META_COLUMNS
from headrace.model.finding import Severity


@pytest.fixture
def source(database):
    with checked_source(database) as source:
        yield source


def test_an_absent_table_is_named(source):
    source.execute("create table t (id int primary key)")
    finding = source.check("public.t", "public.u", "none.t").named("table-missing")
    assert finding.severity is Severity.BLOCKER
    assert finding.objects == ("public.u", "none.t")


def test_of_many_tables_a_message_names_a_few_and_objects_all(source):
    wanted = [f"public.t{number}" for number in range(40)]
    finding = source.check(*wanted, *wanted).named("table-missing")
    assert finding.objects == tuple(wanted)
    assert finding.message.endswith("public.t4 and 35 more")


def test_what_logical_replication_cannot_carry_is_named_with_its_kind(source):
    source.execute("""
        create view a_view as select 1 as id;
        create materialized view kept as select 1 as id;
        create unlogged table unlogged (id int primary key);
        create foreign data wrapper w;
        create server s foreign data wrapper w;
        create foreign table far (id int) server s;
    """)
    wanted = ["public.a_view", "public.kept", "public.unlogged", "public.far"]
    found = source.check(*wanted, "pg_catalog.pg_class")
    finding = found.named("table-kind")
    assert finding.severity is Severity.BLOCKER
    assert finding.objects == (*wanted, "pg_catalog.pg_class")
    assert finding.evidence == (
        "public.a_view: view; public.kept: materialized view; public.unlogged: unlogged table; "
        "public.far: foreign table; pg_catalog.pg_class: system table"
    )
    assert "FOR TABLE" not in found.named("publication-missing").sql[0]


def test_a_temporary_table_is_none(source):
    """Another session's, seen under the name of its own schema."""
    with source.database.connect() as other:
        other.execute("create temporary table t (id int primary key)")
        ((schema,),) = other.execute(
            "select relnamespace::regnamespace::text from pg_class where oid = 't'::regclass"
        )
        finding = source.check(f"{schema}.t").named("table-kind")
        assert finding.evidence == f"{schema}.t: temporary table"


def test_columns_with_names_of_ours_are_named(source):
    source.execute('create table t (id int primary key, _op text, "_OP" text, _before int)')
    assert {"_op", "_before"} <= set(META_COLUMNS)
    finding = source.check("public.t").named("column-names")
    assert finding.severity is Severity.BLOCKER
    assert finding.evidence == "public.t: _op, _before"
    source.execute("alter table t rename _op to op; alter table t drop _before")
    assert "column-names" not in source.check("public.t").blockers


def test_missing_rights_come_with_the_grants_that_give_them(source):
    source.execute("""
        create schema "Off";
        create table "Off"."T" (id int primary key);
        create table public.t (id int primary key);
    """)
    role = source.role()
    tables = ["Off.T", "public.t"]
    found = source.check(*tables, role=role)
    assert found.named("schema-rights").objects == ("Off.T",)
    assert found.named("select-rights").objects == ("Off.T", "public.t")
    for name in ("schema-rights", "select-rights"):
        assert found.named(name).severity is Severity.BLOCKER
        assert not found.named(name).safe
        source.run(found.named(name).sql)
    again = source.check(*tables, role=role)
    assert again.names(Severity.OK) >= {"schema-rights", "select-rights"}
    with source.database.connect(user=role, password=role) as session:
        for table in ('"Off"."T"', "public.t"):
            session.execute(f"select * from {table}")


# -- row-level security ----------------------------------------------------------------------------


def test_policies_that_hide_rows_are_found(source):
    """A snapshot would lack the rows that the stream carries."""
    source.execute("""
        create table t (id int primary key);
        insert into t values (1), (2);
        alter table t enable row level security;
        create policy first_only on t using (id = 1);
    """)
    role = source.role()
    source.execute(f'grant select on t to "{role}"')
    finding = source.check("public.t", role=role).named("row-security")
    assert finding.severity is Severity.BLOCKER
    assert finding.objects == ("public.t",)
    assert "row-security" in source.check("public.t").names(Severity.OK)
    source.run(finding.sql)
    assert "row-security" in source.check("public.t", role=role).names(Severity.OK)
    with source.database.connect(user=role, password=role) as session:
        assert session.execute("select id from t").fetchall() == [(1,), (2,)]


def test_an_owner_sees_all_rows_unless_policies_are_forced_on_him(source):
    role = source.role()
    source.execute(f"""
        create table t (id int primary key);
        alter table t owner to "{role}";
        alter table t enable row level security;
    """)
    assert "row-security" in source.check("public.t", role=role).names(Severity.OK)
    source.execute("alter table t force row level security")
    assert "row-security" in source.check("public.t", role=role).blockers


# -- replica identity ------------------------------------------------------------------------------

IDENTITIES = {
    "primary key": ("id int primary key", "", None),
    "full": ("id int", "alter table t replica identity full", None),
    "index": (
        "id int not null unique",
        "alter table t replica identity using index t_id_key",
        None,
    ),
    "no key": ("id int", "", "no primary key"),
    "unique is not primary": ("id int not null unique", "", "no primary key"),
    "nothing": (
        "id int primary key",
        "alter table t replica identity nothing",
        "REPLICA IDENTITY NOTHING",
    ),
    "deferrable": (
        "id int primary key deferrable",
        "",
        "deferrable primary key",
    ),
    "dropped index": (
        "id int not null unique",
        "alter table t replica identity using index t_id_key; alter table t drop constraint "
        "t_id_key",
        "its replica identity index was dropped",
    ),
}


@pytest.mark.parametrize(("columns", "then", "why"), IDENTITIES.values(), ids=IDENTITIES)
def test_the_verdict_on_replica_identity_is_the_servers_own(source, columns, then, why):
    """The server refuses UPDATE and DELETE of exactly those tables that are called blockers."""
    source.execute(f"create table t ({columns}); insert into t values (1); {then}")
    finding = source.check("public.t").named("replica-identity")
    assert finding.evidence == (f"public.t: {why}" if why else "")
    assert finding.severity is (Severity.BLOCKER if why else Severity.OK)
    source.execute("create publication p for all tables")
    assert refused(source, "update t set id = 2") is refused(source, "delete from t") is bool(why)
    assert finding.safe is bool(why)
    assert source.fix([finding]) == list(finding.sql)
    assert "replica-identity" in source.check("public.t").names(Severity.OK)
    source.execute("update t set id = 3; delete from t")


@pytest.mark.since(18)
def test_full_identity_is_no_way_out_for_a_table_with_virtual_columns(source):
    """The server refuses its updates under FULL, so nothing of the kind is proposed."""
    virtual = "g int generated always as (id + 1) virtual"
    source.execute(f"""
        create table none (id int, {virtual}); create table whole (id int, {virtual});
        alter table whole replica identity full;
        create table keyed (id int primary key, {virtual});
        insert into none values (1); insert into whole values (1); insert into keyed values (1);
    """)
    finding = source.check("public.none", "public.whole", "public.keyed").named("replica-identity")
    assert (finding.severity, finding.safe, finding.sql) == (Severity.BLOCKER, False, ())
    assert finding.evidence == (
        "public.none: no primary key; public.whole: FULL, with virtual generated columns"
    )
    source.execute("create publication p for all tables")
    assert refused(source, "update none set id = 2")
    source.execute("update keyed set id = 2")
    with pytest.raises(psycopg.Error, match="unpublished generated columns"):
        source.execute("update whole set id = 2")


def refused(source, statement: str) -> bool:
    with source.database.connect() as session:
        try:
            session.execute(statement.encode())
        except psycopg.errors.ObjectNotInPrerequisiteState:
            return True
    return False


def test_partitions_are_looked_at_one_by_one(source):
    """REPLICA IDENTITY does not pass on to partitions, and theirs is what the server asks for."""
    source.execute("""
        create table parted (id int, primary key (id)) partition by range (id);
        create table low partition of parted for values from (0) to (10);
        create table high partition of parted for values from (10) to (20) partition by list (id);
        create table ten partition of high for values in (10);
        alter table low replica identity nothing;
        alter table ten replica identity nothing;
        create publication p for table parted with (publish_via_partition_root = true);
        insert into parted values (1), (10);
    """)
    found = source.check("public.parted")
    assert found.blockers == {"replica-identity"}
    assert found.named("replica-identity").objects == ("public.low", "public.ten")
    assert refused(source, "update parted set id = id")
    source.fix(found)
    assert not source.check("public.parted").blockers
    source.execute("update parted set id = id")


def test_partitions_of_a_root_without_a_key_follow_it(source):
    """What is published as the key is the root's, what is logged of an old row the partition's."""
    source.execute("""
        create table parted (id int) partition by range (id);
        create table low (id int primary key);
        alter table parted attach partition low for values from (0) to (10);
    """)
    finding = source.check("public.parted").named("replica-identity")
    assert finding.objects == ("public.parted", "public.low")
    source.execute("alter table parted replica identity full")
    finding = source.check("public.parted").named("replica-identity")
    assert finding.evidence == (
        "public.low: the table it is a partition of is REPLICA IDENTITY FULL"
    )
    source.fix([finding])
    assert "replica-identity" in source.check("public.parted").names(Severity.OK)


def test_only_identities_of_tables_that_the_role_owns_are_fixed(source):
    source.execute("create table theirs (id int); create table ours (id int)")
    role = source.role()
    source.execute(f'alter table ours owner to "{role}"')
    found = source.check("public.theirs", "public.ours", role=role)
    split = {f.safe: f.objects for f in found if f.name == "replica-identity"}
    assert split == {True: ("public.ours",), False: ("public.theirs",)}
    source.fix(found, role=role)
    (left,) = [
        f
        for f in source.check("public.theirs", "public.ours", role=role)
        if f.name == "replica-identity"
    ]
    assert left.objects == ("public.theirs",)
    source.run(left.sql)
    again = source.check("public.theirs", "public.ours", role=role)
    assert "replica-identity" in again.names(Severity.OK)
