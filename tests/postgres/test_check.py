"""The preflight as a whole: what it lists, what it fixes, and what it never says."""

from __future__ import annotations

import json
import pickle
import socket

import pytest
from check_source import PUBLICATION, CheckedSource, checked_source

from headrace.config import PostgresConnection
from headrace.connectors.postgres import check as check_module
from headrace.connectors.postgres.check import check, fix
from headrace.connectors.postgres.config import connect
from headrace.errors import SourceError, SourceUnavailableError
from headrace.model import TableId
from headrace.model.finding import Finding, Severity

PASSWORD = "tr0ub4dor & 3 %"

# Names are stable: scripts and dashboards refer to them.
LOOKED_AT = [
    "reachable",
    "encryption",
    "server-version",
    "primary",
    "wal-level",
    "slot-wal-keep-size",
    "idle-slot-timeout",
    "wal-sender-timeout",
    "replication-right",
    "replication-connection",
    "replication-slots",
    "wal-senders",
    "slot",
    "publication-order",
    "publication",
    "tables",
    "schema-rights",
    "select-rights",
    "row-security",
    "column-names",
    "replica-identity",
]


@pytest.fixture
def source(database):
    with checked_source(database) as source:
        yield source


@pytest.mark.versions
def test_a_source_in_order_shows_everything_that_was_looked_at(source):
    source.execute("create table t (id int primary key); create publication p for table t")
    source.create_slot()
    found = source.check("public.t")
    assert [finding.name for finding in found] == LOOKED_AT
    assert found.names(Severity.OK) == set(LOOKED_AT)
    assert not any(finding.sql or finding.fix for finding in found)


@pytest.mark.versions
def test_safe_fixes_cure_a_database_that_nobody_prepared(source):
    """Whatever the names; and what the fixes made carries updates and deletes."""
    source.execute("""
        create schema "S.x";
        create table "S.x"."T""q %s" (id int);
        create table keyed (id int primary key);
        create table parted (id int) partition by list (id);
        create table part partition of parted for values in (1);
    """)
    tables = ['S.x.T"q %s', "public.keyed", "public.parted"]
    ids = [TableId("S.x", 'T"q %s'), TableId("public", "keyed"), TableId("public", "parted")]
    settings = source.settings()
    before = check(settings, source.slot, PUBLICATION, ids)
    assert {f.name for f in before if f.safe} == {"publication-missing", "replica-identity"}
    assert tables[1:] == [str(table) for table in ids[1:]]

    applied = source.fix(before)

    assert applied == [s for f in reversed(before) if f.safe for s in f.sql]
    after = check(settings, source.slot, PUBLICATION, ids)
    assert {finding.severity for finding in after} == {Severity.OK}
    assert source.fix(after) == []
    for name in ('"S.x"."T""q %s"', "keyed", "parted"):
        source.execute(f"insert into {name} values (1)")
        source.execute(f"update {name} set id = 1")
        source.execute(f"delete from {name}")
    assert source.execute(
        "select obj_description(oid, 'pg_publication') from pg_publication where pubname = 'p'"
    ) == [("created by headrace",)]


def test_a_table_is_given_its_identity_before_it_is_published(source):
    """The other way round, the application's updates would fail in between."""
    source.execute("create table t (id int)")
    assert [s.split()[0] for s in source.fix(source.check("public.t"))] == [
        "ALTER",
        "CREATE",
        "COMMENT",
    ]


def test_only_safe_fixes_are_applied(source):
    wanted = "create table wanted ()"
    unsafe = Finding(Severity.BLOCKER, "x", "x", sql=("create table unwanted ()",))
    safe = Finding(Severity.BLOCKER, "y", "y", sql=(wanted,), safe=True)
    assert source.fix([unsafe, safe]) == [wanted]
    assert source.execute("select to_regclass('wanted')::text, to_regclass('unwanted')") == [
        ("wanted", None)
    ]


def test_a_fix_does_not_queue_up_before_others_for_a_lock(source, monkeypatch):
    monkeypatch.setattr(check_module, "LOCK_TIMEOUT", "10ms")
    source.execute("create table t (id int)")
    found = source.check("public.t")
    with source.database.connect() as other, other.transaction():
        other.execute("lock table t")
        with pytest.raises(SourceError, match="ALTER TABLE") as caught:
            source.fix(found)
    assert "lock" in caught.value.hint
    assert source.execute("select count(*) from pg_publication") == [(0,)]
    assert source.fix(found)


def test_a_refused_fix_names_statement_and_reason(source):
    refused = Finding(Severity.BLOCKER, "x", "x", sql=("create table t (id nonsense)",), safe=True)
    with pytest.raises(SourceError, match=r"create table t .*: type \"nonsense\" does not exist"):
        source.fix([refused])


def test_a_connection_lost_during_a_fix_can_be_tried_again(source):
    suicide = "select pg_terminate_backend(pg_backend_pid())"
    with connect(source.settings()) as session, pytest.raises(SourceUnavailableError):
        fix(session, [Finding(Severity.BLOCKER, "x", "x", sql=(suicide,), safe=True)])


def test_a_catalog_that_the_role_may_not_read_is_an_error_of_ours(source):
    source.execute("create publication p; revoke select on pg_publication_rel from public")
    with pytest.raises(SourceError, match="permission denied for table pg_publication_rel"):
        source.check(role=source.role())


# -- unreachable -----------------------------------------------------------------------------------


def settings(**changes: object) -> PostgresConnection:
    parts = {"host": "127.0.0.1", "database": "d", "user": "u", "password": PASSWORD}
    return PostgresConnection(type="postgres", **{**parts, **changes})


@pytest.fixture
def closed_port():
    """A port that is taken, so that nobody else gets it, and at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_an_unreachable_server_is_a_finding(closed_port):
    (finding,) = check(settings(port=closed_port), "s", "p", [TableId("public", "t")])
    assert (finding.severity, finding.name) == (Severity.BLOCKER, "reachable")
    assert f"u@127.0.0.1:{closed_port}/d" in finding.message
    assert "check host and port" in finding.fix


def test_a_refused_login_is_a_finding(source: CheckedSource):
    known = source.settings()
    (finding,) = check(settings(port=known.port, user=known.user), "s", "p", [])
    assert finding.name == "reachable"
    assert "password" in finding.message


def test_findings_hold_no_password(source, closed_port):
    """Invariant 14, in settings of every form, let in or not."""
    role = source.role("")
    source.execute(f"alter role \"{role}\" password '{PASSWORD}'; create table t (id int)")
    port = source.settings().port
    encoded = "tr0ub4dor%20%26%203%20%25"
    place = f"127.0.0.1:{port}/{source.database.name}"
    user = role.replace(" ", "%20")
    given = [
        settings(port=port, user=role, database=source.database.name),
        PostgresConnection(type="postgres", url=f"postgresql://{user}:{encoded}@{place}"),
        PostgresConnection(type="postgres", url=f"postgresql://nobody:{encoded}@{place}"),
        PostgresConnection(type="postgres", url=f"postgresql://u:{encoded}@127.0.0.1:x/d"),
        PostgresConnection(type="postgres", url=f"postgresql://u:{encoded}@[broken"),
        settings(port=closed_port),
    ]
    tables = [TableId("public", "t"), TableId("public", "absent")]
    every = [check(each, source.slot, PUBLICATION, tables) for each in given]
    assert [len(findings) > 1 for findings in every] == [True, True, *[False] * 4]
    said = repr(every) + json.dumps([f.to_json() for findings in every for f in findings])
    assert "tr0ub4dor" not in said


# -- the value type --------------------------------------------------------------------------------


def test_blockers_rank_first():
    assert sorted(Severity, key=lambda severity: severity.rank) == [
        Severity.BLOCKER,
        Severity.WARNING,
        Severity.OK,
    ]


def test_a_finding_goes_through_json_and_pickle_whole():
    finding = Finding(Severity.WARNING, "n", "m", ("a", "b"), "e", "f", ("S",), safe=True)
    assert pickle.loads(pickle.dumps(finding)) == finding
    read = json.loads(json.dumps(finding.to_json()))
    assert read == {
        "severity": "warning",
        "name": "n",
        "message": "m",
        "objects": ["a", "b"],
        "evidence": "e",
        "fix": "f",
        "sql": ["S"],
        "safe": True,
    }
