"""The preflight of Delta tables: each finding is seen, and the feed can be switched on."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pytest
from lakes import FEED, NAME, Lake, people

from headrace.connectors.delta.check_source import CheckedTable, check, fix
from headrace.connectors.delta.source import DeltaSource
from headrace.model import TableId
from headrace.model.finding import Finding, Severity

WARNING, BLOCKER, OK = Severity.WARNING, Severity.BLOCKER, Severity.OK


def source(lake: Lake) -> DeltaSource:
    return DeltaSource(str(lake.root))


def one(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def look(lake: Lake, **more: object) -> list[Finding]:
    now = more.pop("now", None)
    wanted = {"name": NAME, "key": ("id",), **more}
    return check(source(lake), [CheckedTable(**wanted)], now)  # type: ignore[arg-type]


def test_a_table_in_order_has_no_complaint(lake: Lake) -> None:
    lake.write(people(1))
    findings = look(lake, applied=lake.at(0))
    assert {finding.severity for finding in findings} == {OK}
    assert {f.name for f in findings} == {
        "reachable",
        "table-exists",
        "features",
        "change-data-feed",
        "columns",
        "key",
        "history",
    }


def test_storage_that_cannot_be_read_is_a_blocker(tmp_path: Path) -> None:
    options = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_RETRIES": "0", "timeout": "2s"}
    options |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s3cr3t-value"}
    options |= {"AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    (finding,) = check(DeltaSource("s3://bucket/x", options), [CheckedTable(NAME, ("id",))])
    assert (finding.severity, finding.name) == (BLOCKER, "reachable")
    assert finding.fix
    assert "s3cr3t-value" not in repr(finding)


def test_a_missing_table_is_a_blocker_with_near_names(lake: Lake) -> None:
    lake.write(people(1))
    found = one(look(lake, name=TableId("crm", "custmers")), "table-exists")
    assert found.severity is BLOCKER
    assert "crm.customers" in found.fix


def test_a_damaged_log_is_a_blocker_and_the_next_table_is_looked_at(lake: Lake) -> None:
    lake.write(people(1))
    lake.log(1).write_text("{")
    wanted = [CheckedTable(NAME, ()), CheckedTable(TableId("crm", "other"), ())]
    findings = check(source(lake), wanted)
    assert [(f.severity, f.name) for f in findings[1:]] == [
        (BLOCKER, "log-readable"),
        (BLOCKER, "table-exists"),
    ]


@pytest.mark.parametrize("every_change", [True, False])
def test_a_feed_that_is_off_is_offered_to_be_switched_on(lake: Lake, every_change: bool) -> None:
    lake.write(people(1), configuration={})
    findings = look(lake, every_change=every_change)
    found = one(findings, "change-data-feed")
    assert found.severity is (BLOCKER if every_change else WARNING)
    assert found.sql == (
        "ALTER TABLE crm.customers SET TBLPROPERTIES (delta.enableChangeDataFeed = true)",
    )
    assert found.safe
    assert fix(source(lake), findings) == list(found.sql)
    assert lake.delta.metadata().configuration[FEED] == "true"
    assert one(look(lake), "change-data-feed").severity is OK
    assert fix(source(lake), look(lake)) == []


def test_a_key_that_is_not_there_is_a_blocker(lake: Lake) -> None:
    lake.write(people(1))
    found = one(look(lake, key=("nmae",)), "columns")
    assert found.severity is BLOCKER
    assert "name" in found.fix


def test_nulls_in_the_key_are_told(lake: Lake) -> None:
    lake.write(people(1, 2))
    lake.write(pa.table({"id": pa.array([None, 3], pa.int64()), "name": ["a", "b"]}))
    found = one(look(lake), "key")
    assert found.severity is WARNING
    assert "1 of id" in found.evidence
    assert one(look(lake, key=("name",)), "key").severity is OK


def test_a_floating_point_key_is_told(lake: Lake) -> None:
    lake.write(pa.table({"id": [1.5]}))
    assert one(look(lake), "key").severity is WARNING


def test_a_feature_that_is_unknown_is_told(lake: Lake) -> None:
    lake.write(people(1))
    features = {"readerFeatures": ["nobodyKnowsThis"], "writerFeatures": ["nobodyKnowsThis"]}
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
    lake.log(1).write_text(json.dumps({"protocol": protocol}) + "\n")
    found = one(look(lake), "features")
    assert (found.severity, found.sql) == (
        WARNING,
        ("ALTER TABLE crm.customers DROP FEATURE nobodyKnowsThis",),
    )


@pytest.mark.parametrize(
    ("days", "severity", "text"),
    [(1, OK, "6 days"), (5, WARNING, "in 48 hours"), (8, WARNING, "any time")],
)
def test_changes_that_wait_are_told_before_they_are_lost(
    lake: Lake, days: int, severity: Severity, text: str
) -> None:
    """deletedFileRetentionDuration is a week where the table does not say otherwise."""
    lake.write(people(1))
    lake.write(people(2))
    now = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    found = one(look(lake, applied=lake.at(0), now=now), "history")
    assert (found.severity, text in found.message) == (severity, True), found
    assert one(look(lake, applied=lake.at(1), now=now), "history").severity is OK


def test_a_tables_own_retention_counts(lake: Lake) -> None:
    lake.write(people(1))
    lake.delta.alter.set_table_properties({"delta.logRetentionDuration": "interval 2 days"})
    now = dt.datetime.now(dt.UTC) + dt.timedelta(days=1, hours=6)
    found = one(look(lake, applied=lake.at(0), now=now), "history")
    assert found.severity is WARNING
    assert "delta.logRetentionDuration" in found.sql[0]


@pytest.mark.parametrize("every_change", [True, False])
def test_changes_that_are_lost_are_told(lake: Lake, every_change: bool) -> None:
    lake.write(people(1))
    lake.write(people(2))
    lake.delta.restore(0)
    found = one(look(lake, applied=lake.at(1), every_change=every_change), "history")
    assert found.severity is (BLOCKER if every_change else WARNING)
    assert "table restored" in found.message
