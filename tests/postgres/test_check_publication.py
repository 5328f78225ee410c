"""The preflight of publications: each finding for a real one, and gone when its fix was applied."""

from __future__ import annotations

import psycopg
import pytest
from check_source import checked_source

from headrace.model.finding import Severity

ROW_FILTERS_SINCE = 150000


@pytest.fixture
def source(database):
    with checked_source(database) as source:
        source.execute("create table t (id int primary key, a text, b text)")
        yield source


@pytest.fixture
def since_15(source):
    ((version,),) = source.execute("select current_setting('server_version_num')::int")
    if version < ROW_FILTERS_SINCE:
        pytest.skip("row filters, column lists and schemas in publications came with 15")
    return source


PARTITIONED = """
    create table parted (id int primary key) partition by range (id);
    create table low partition of parted for values from (0) to (10);
"""


# -- missing ---------------------------------------------------------------------------------------


def test_an_owner_who_may_create_gets_it_by_fix(source):
    role = source.role()
    source.execute(f"""
        alter table t owner to "{role}";
        grant create on database {source.database.name} to "{role}";
    """)
    finding = source.check("public.t", role=role).named("publication-missing")
    assert (finding.severity, finding.safe) == (Severity.BLOCKER, True)
    source.fix([finding], role=role)
    assert "publication" in source.check("public.t", role=role).names(Severity.OK)


def test_who_may_not_create_it_gets_the_sql_for_an_administrator(source):
    role = source.role()
    source.execute(f'grant select on t to "{role}"')
    found = source.check("public.t", role=role)
    finding = found.named("publication-missing")
    assert not finding.safe
    assert f"CREATE on database {source.database.name}" in finding.evidence
    assert "ownership of public.t" in finding.evidence
    assert source.fix(found, role=role) == []
    source.run(finding.sql)
    assert "publication" in source.check("public.t", role=role).names(Severity.OK)


@pytest.mark.parametrize("right", ["create", "ownership"])
def test_half_the_rights_do_not_make_a_fix_safe(source, right):
    role = source.role()
    source.execute(
        f'grant create on database {source.database.name} to "{role}"'
        if right == "create"
        else f'alter table t owner to "{role}"'
    )
    assert not source.check("public.t", role=role).named("publication-missing").safe


# -- tables ----------------------------------------------------------------------------------------


def test_tables_left_out_are_added_by_fix(source):
    source.execute('create table "U.v" (id int primary key); create publication p for table t')
    found = source.check("public.t", "public.U.v")
    assert found.named("publication-tables").objects == ("public.U.v",)
    assert source.fix(found) == ['ALTER PUBLICATION "p" ADD TABLE "public"."U.v"']
    assert not source.check("public.t", "public.U.v").blockers


def test_only_tables_that_the_role_owns_are_added(source):
    role = source.role()
    source.execute(f"""
        create table ours (id int primary key);
        alter table ours owner to "{role}";
        create publication p;
        alter publication p owner to "{role}";
    """)
    found = source.check("public.t", "public.ours", role=role)
    split = {f.safe: f.objects for f in found if f.name == "publication-tables"}
    assert split == {True: ("public.ours",), False: ("public.t",)}
    source.fix(found, role=role)
    left = source.check("public.t", "public.ours", role=role).named("publication-tables")
    assert (left.objects, left.safe) == (("public.t",), False)
    source.run(left.sql)
    again = source.check("public.t", "public.ours", role=role)
    assert "publication" in again.names(Severity.OK)


def test_a_publication_of_others_is_not_altered(source):
    role = source.role()
    source.execute(f'alter table t owner to "{role}"; create publication p')
    assert not source.check("public.t", role=role).named("publication-tables").safe


def test_all_tables_and_tables_in_a_schema_count(since_15):
    source = since_15
    source.execute("create publication p for tables in schema public")
    assert "publication" in source.check("public.t").names(Severity.OK)
    source.execute("drop publication p; create publication p for all tables")
    assert "publication" in source.check("public.t").names(Severity.OK)


# -- operations and partitions ---------------------------------------------------------------------


def test_each_operation_must_be_sent(source):
    source.execute("create publication p for table t with (publish = 'insert, update')")
    finding = source.check("public.t").named("publication-operations")
    assert finding.severity is Severity.BLOCKER
    assert "does not send delete, truncate" in finding.message
    assert not finding.safe
    source.run(finding.sql)
    assert "publication" in source.check("public.t").names(Severity.OK)


@pytest.mark.parametrize("partitions", ["some", "none"])
def test_partitioned_tables_must_be_published_by_their_own_name(source, partitions):
    source.execute(PARTITIONED)
    if partitions == "none":
        source.execute("drop table low")
    source.execute("create publication p for table parted")
    found = source.check("public.parted")
    assert found.blockers == {"publication-root"}
    assert not found.named("publication-root").safe
    source.run(found.named("publication-root").sql)
    assert "publication" in source.check("public.parted").names(Severity.OK)


def test_without_partitioned_tables_the_root_does_not_matter(source):
    source.execute("create publication p for table t")
    assert "publication" in source.check("public.t").names(Severity.OK)


def test_a_partition_whose_changes_come_under_its_root_is_named(source):
    """Added to the publication or not, nothing would ever come under its own name."""
    source.execute(PARTITIONED)
    source.execute(
        "create publication p for table parted, low with (publish_via_partition_root = true)"
    )
    found = source.check("public.low")
    assert found.blockers == {"publication-partition"}
    assert found.named("publication-partition").evidence == "public.low: part of public.parted"
    assert not source.check("public.parted").blockers


def test_a_partition_published_by_itself_is_fine(source):
    source.execute(PARTITIONED)
    source.execute("create publication p for table low with (publish_via_partition_root = true)")
    assert not source.check("public.low").blockers


# -- row filters and column lists ------------------------------------------------------------------


def test_rows_and_columns_kept_back_are_warned_of(since_15):
    source = since_15
    source.execute("create publication p for table t (id, b) where (id > 5)")
    found = source.check("public.t")
    assert found.warnings == {"publication-row-filter", "publication-column-list"}
    assert found.named("publication-row-filter").evidence == "public.t: WHERE (id > 5)"
    assert found.named("publication-column-list").evidence == "public.t: not a"
    source.run(found.named("publication-column-list").sql)
    assert "publication" in source.check("public.t").names(Severity.OK)


@pytest.mark.parametrize(
    ("identity", "columns"), [("default", "(a, b)"), ("full", "(id, a)"), ("index", "(id, a)")]
)
def test_a_column_list_must_hold_the_replica_identity(since_15, identity, columns):
    """Else the server refuses the application's own updates."""
    source = since_15
    source.execute(f"""
        alter table t alter b set not null;
        create unique index by_b on t (b);
        alter table t replica identity {identity.replace("index", "using index by_b")};
        insert into t values (1, 'a', 'b');
        create publication p for table t {columns};
    """)
    finding = source.check("public.t").named("publication-identity")
    assert finding.severity is Severity.BLOCKER
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        source.execute("update t set a = 'c'")
    source.run(finding.sql)
    source.execute("update t set a = 'c'")
    assert "publication" in source.check("public.t").names(Severity.OK)


def test_a_list_of_all_columns_keeps_nothing_back(since_15):
    since_15.execute("create publication p for table t (id, a, b)")
    assert "publication" in since_15.check("public.t").names(Severity.OK)


# -- generated columns -----------------------------------------------------------------------------


@pytest.mark.since(18)
def test_generated_columns_that_are_not_sent_are_told_with_what_has_them_sent(source):
    source.execute("""
        alter table t add g int generated always as (id * 2) stored,
            add h int generated always as (id * 3) virtual;
        create publication p for table t;
    """)
    finding = source.check("public.t").named("publication-generated")
    assert (finding.severity, finding.evidence) == (Severity.WARNING, "public.t: g, h")
    source.run(finding.sql)
    finding = source.check("public.t").named("publication-generated")
    assert (finding.evidence, finding.sql) == ("public.t: h", ())


@pytest.mark.since(18)
def test_a_publication_of_ours_sends_stored_generated_columns(source):
    source.execute("alter table t add g int generated always as (id * 2) stored")
    source.run(source.check("public.t").named("publication-missing").sql)
    assert "publication" in source.check("public.t").names(Severity.OK)


@pytest.mark.since(18)
@pytest.mark.parametrize(
    "identity",
    ["drop constraint t_pkey, add primary key (g)", "replica identity full"],
    ids=["key", "full"],
)
def test_a_replica_identity_with_generated_columns_must_be_sent(source, identity):
    """Else the server refuses the application's own updates."""
    source.execute(f"""
        alter table t add g int generated always as (id * 2) stored;
        alter table t {identity};
        insert into t values (1, 'a', 'b');
        create publication p for table t;
    """)
    finding = source.check("public.t").named("publication-identity")
    assert finding.severity is Severity.BLOCKER
    with pytest.raises(psycopg.errors.InvalidColumnReference):
        source.execute("update t set a = 'c'")
    source.run(finding.sql)
    source.execute("update t set a = 'c'")
    assert "publication" in source.check("public.t").names(Severity.OK)


@pytest.mark.parametrize("postgres_version", [17])
def test_before_18_generated_columns_are_not_carried_and_identify_nothing(source):
    source.execute("""
        alter table t add g int generated always as (id * 2) stored;
        create table u (id int, g int generated always as (id * 2) stored primary key);
        create publication p for table t, u;
    """)
    found = source.check("public.t", "public.u")
    assert found.named("publication-generated").evidence == "public.t: g; public.u: g"
    assert found.named("publication-generated").sql == ()
    finding = found.named("replica-identity")
    assert (finding.severity, finding.objects) == (Severity.BLOCKER, ("public.u",))
    source.fix([finding])
    assert not source.check("public.t", "public.u").blockers


def test_filters_on_other_tables_are_not_our_business(since_15):
    since_15.execute("create table u (id int primary key)")
    since_15.execute("create publication p for table t, u where (id > 5)")
    assert not since_15.check("public.t").warnings
