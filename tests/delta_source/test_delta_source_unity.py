"""Tables of a Unity Catalog, against a server made after the documented REST API.

The tables lie on a real S3 server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from deltalake import write_deltalake
from lakes import FEED_ON, NAME, Lake, ours, people

from headrace.connectors.delta import unity
from headrace.connectors.delta.source import DeltaSource
from headrace.errors import (
    ConfigError,
    HeadraceError,
    SourceError,
    SourceUnavailableError,
    TableNotFoundError,
)
from headrace.model import TableId
from unity_server import TOKEN, UnityServer, unity_server


@pytest.fixture
def catalog() -> Iterator[UnityServer]:
    with unity_server() as server:
        yield server


def test_the_tables_of_a_catalog_are_found(catalog: UnityServer) -> None:
    for name in ("main.crm.customers", "main.crm.orders", "main.ops.events"):
        catalog.add(name, "")
    catalog.add("main.crm.view", "", data_source_format="PARQUET")
    of_crm = [TableId("crm", "customers"), TableId("crm", "orders")]
    found = DeltaSource("uc://main", catalog.options()).tables()
    assert found == [*of_crm, TableId("ops", "events")]
    assert DeltaSource("uc://main.crm", catalog.options()).tables() == of_crm


def test_a_table_is_read_with_the_credentials_that_are_lent(
    catalog: UnityServer, s3_endpoint: str, s3_options: dict[str, str]
) -> None:
    url = "s3://bucket/unity/customers"
    write_deltalake(url, people(1, 2), storage_options=s3_options, configuration=FEED_ON)
    catalog.add("main.crm.customers", url)
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    catalog.credentials = {
        "aws_temp_credentials": {
            "access_key_id": s3_options[keys[0]],
            "secret_access_key": s3_options[keys[1]],
            "session_token": "",
        }
    }
    place = {key: value for key, value in s3_options.items() if key not in keys}
    table = DeltaSource("uc://main", catalog.options(**place)).table(NAME, ("id",))
    assert table.head().number == 0
    assert ours(table, 0).total() == 2
    assert len([asked for asked in catalog.asked if asked.startswith("POST")]) == 1


def test_credentials_are_renewed_before_they_expire(catalog: UnityServer) -> None:
    catalog.add("main.crm.customers", "s3://bucket/x")
    lent = {"access_key_id": "k", "secret_access_key": "s", "session_token": "t"}
    catalog.credentials = {"aws_temp_credentials": lent}
    catalog.lifetime = unity.EARLY - 1
    source = unity.UnityCatalog.of("uc://main", catalog.options(aws_region="x"))
    locate = source.locator(NAME)
    first = locate()
    lent["session_token"] = "u"
    second = locate()
    assert [p.options["aws_session_token"] for p in (first, second)] == ["t", "u"]
    assert second.options["aws_region"] == "x"
    assert "databricks_token" not in second.options
    catalog.lifetime = 3600
    assert locate() is locate()


@pytest.mark.parametrize(
    ("lent", "option"),
    [
        ({"azure_user_delegation_sas": {"sas_token": "v"}}, "azure_storage_sas_token"),
        ({"gcp_oauth_token": {"oauth_token": "v"}}, "google_bearer_token"),
    ],
)
def test_credentials_of_each_cloud_are_passed_on(
    catalog: UnityServer, lent: dict[str, Any], option: str
) -> None:
    catalog.add("main.crm.customers", "gs://bucket/x")
    catalog.credentials = lent
    place = unity.UnityCatalog.of("uc://main", catalog.options()).locator(NAME)()
    assert place.options[option] == "v"
    assert "'v'" not in repr(place)


def test_credentials_of_an_unknown_kind_are_refused_by_name(catalog: UnityServer) -> None:
    catalog.add("main.crm.customers", "s3://bucket/x")
    catalog.credentials = {"quantum_credentials": {"qubit": "s3cr3t-value"}}
    with pytest.raises(SourceError, match="quantum_credentials") as caught:
        DeltaSource("uc://main", catalog.options()).table(NAME).head()
    assert "s3cr3t-value" not in str(caught.value)


def test_a_local_table_of_a_catalog_needs_no_credentials(catalog: UnityServer, lake: Lake) -> None:
    lake.write(people(1))
    catalog.add("main.crm.customers", lake.path.as_uri())
    assert ours(DeltaSource("uc://main", catalog.options()).table(NAME, ("id",)), 0).total() == 1


def test_a_table_without_a_location_is_refused(catalog: UnityServer) -> None:
    catalog.add("main.crm.customers", "")
    with pytest.raises(SourceError, match="no storage location"):
        DeltaSource("uc://main", catalog.options()).table(NAME).head()


def test_a_table_that_is_not_there_is_told_with_near_names(catalog: UnityServer) -> None:
    catalog.add("main.crm.customers", "")
    with pytest.raises(TableNotFoundError) as caught:
        DeltaSource("uc://main", catalog.options()).table(TableId("crm", "custmers")).head()
    assert "crm.customers" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, SourceUnavailableError), (503, SourceUnavailableError), (403, SourceError)],
)
def test_refusals_are_told_and_whether_it_helps_to_wait(
    catalog: UnityServer, status: int, kind: type[HeadraceError]
) -> None:
    """Invariant 14: without the token."""
    catalog.failure = status
    with pytest.raises(HeadraceError, match=str(status)) as caught:
        DeltaSource("uc://main", catalog.options()).tables()
    assert type(caught.value) is kind
    assert caught.value.hint
    assert TOKEN not in str(caught.value)


def test_a_server_that_is_away_is_told(catalog: UnityServer) -> None:
    away = catalog.options(databricks_host="http://127.0.0.1:9")
    with pytest.raises(SourceUnavailableError, match="does not answer"):
        DeltaSource("uc://main", away).tables()


@pytest.mark.parametrize(
    ("location", "more", "text"),
    [
        ("uc://main", {"databricks_host": ""}, "no databricks_host"),
        ("uc://main", {"unity_allow_http_url": "false"}, "not an https"),
        ("uc://main", {"databricks_host": "ftp://x"}, "not an https"),
        ("uc://", {}, "no catalog"),
        ("uc://main.crm.customers", {}, "no catalog"),
    ],
)
def test_wrong_options_are_refused(
    catalog: UnityServer, location: str, more: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        DeltaSource(location, catalog.options(**more))
    assert caught.value.hint
