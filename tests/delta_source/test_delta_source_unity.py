"""Tables of a Unity Catalog, against a stub made after the documented REST API.

The stub answers as https://docs.unitycatalog.io/swagger-docs (2.1) describes `GET /schemas`,
`GET /tables`, `GET /tables/{full_name}` and `POST /temporary-table-credentials`; no real server was
asked. Its tables lie on a real S3 server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

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

TOKEN = "dapi-s3cr3t-value"


@dataclass
class Catalog:
    """What the stub tells, and what it was asked."""

    tables: dict[str, str] = field(default_factory=dict)  # storage locations by full name
    formats: dict[str, str] = field(default_factory=dict)
    credentials: dict[str, Any] = field(default_factory=dict)
    lifetime: float = 3600
    failure: int = 0
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, target: str, body: dict[str, str]) -> tuple[int, Any]:
        self.asked.append(f"{method} {target}")
        parts, query = urlsplit(target), parse_qs(urlsplit(target).query)
        path = parts.path.removeprefix("/api/2.1/unity-catalog")
        if self.failure:
            return self.failure, {"error_code": "X"}
        if path == "/schemas":
            return 200, _page("schemas", sorted({n.split(".")[1] for n in self.tables}), query)
        if path == "/tables":
            prefix = f"main.{query['schema_name'][0]}."
            names = [n.removeprefix(prefix) for n in self.tables if n.startswith(prefix)]
            page = _page("tables", names, query)
            for entry in page["tables"]:
                entry["data_source_format"] = self.formats.get(entry["name"], "DELTA")
            return 200, page
        if path.startswith("/tables/") and (name := path[8:]) in self.tables:
            return 200, {"table_id": f"id-{name}", "storage_location": self.tables[name]}
        if (method, path) == ("POST", "/temporary-table-credentials"):
            assert body["operation"] == "READ"
            expires = int((time.time() + self.lifetime) * 1000)
            return 200, {"expiration_time": expires, **self.credentials}
        return 404, {"error_code": "NOT_FOUND"}


def _page(kind: str, names: list[str], query: dict[str, list[str]]) -> dict[str, Any]:
    """One name a page, so that the pages must be followed."""
    at = int(query.get("page_token", ["0"])[0])
    more = {"next_page_token": str(at + 1)} if at + 1 < len(names) else {}
    return {kind: [{"name": name} for name in names[at : at + 1]], **more}


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    told = Catalog()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            status, answer = told.answer(self.command, self.path, body)
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                status, answer = 401, {}
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        told.url = f"http://127.0.0.1:{server.server_port}"
        yield told
        server.shutdown()
        thread.join()


def options(catalog: Catalog, **more: str) -> dict[str, str]:
    return {
        "databricks_host": catalog.url,
        "databricks_token": TOKEN,
        "unity_allow_http_url": "true",
        **more,
    }


def test_the_tables_of_a_catalog_are_found(catalog: Catalog) -> None:
    names = ("main.crm.customers", "main.crm.orders", "main.crm.view", "main.ops.events")
    catalog.tables = dict.fromkeys(names, "")
    catalog.formats = {"view": "PARQUET"}
    assert DeltaSource("uc://main", options(catalog)).tables() == [
        TableId("crm", "customers"),
        TableId("crm", "orders"),
        TableId("ops", "events"),
    ]


def test_a_table_is_read_with_the_credentials_that_are_lent(
    catalog: Catalog, s3_endpoint: str, s3_options: dict[str, str]
) -> None:
    url = "s3://bucket/unity/customers"
    write_deltalake(url, people(1, 2), storage_options=s3_options, configuration=FEED_ON)
    catalog.tables = {"main.crm.customers": url}
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    catalog.credentials = {
        "aws_temp_credentials": {
            "access_key_id": s3_options[keys[0]],
            "secret_access_key": s3_options[keys[1]],
            "session_token": "",
        }
    }
    place = {key: value for key, value in s3_options.items() if key not in keys}
    table = DeltaSource("uc://main", options(catalog, **place)).table(NAME, ("id",))
    assert table.head().number == 0
    assert ours(table, 0).total() == 2
    assert len([asked for asked in catalog.asked if asked.startswith("POST")]) == 1


def test_credentials_are_renewed_before_they_expire(catalog: Catalog) -> None:
    catalog.tables = {"main.crm.customers": "s3://bucket/x"}
    lent = {"access_key_id": "k", "secret_access_key": "s", "session_token": "t"}
    catalog.credentials = {"aws_temp_credentials": lent}
    catalog.lifetime = unity.EARLY - 1
    source = unity.UnityCatalog.of("uc://main", options(catalog, aws_region="x"))
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
    catalog: Catalog, lent: dict[str, Any], option: str
) -> None:
    catalog.tables = {"main.crm.customers": "gs://bucket/x"}
    catalog.credentials = lent
    place = unity.UnityCatalog.of("uc://main", options(catalog)).locator(NAME)()
    assert place.options[option] == "v"
    assert "'v'" not in repr(place)


def test_credentials_of_an_unknown_kind_are_refused_by_name(catalog: Catalog) -> None:
    catalog.tables = {"main.crm.customers": "s3://bucket/x"}
    catalog.credentials = {"quantum_credentials": {"qubit": "s3cr3t-value"}}
    with pytest.raises(SourceError, match="quantum_credentials") as caught:
        DeltaSource("uc://main", options(catalog)).table(NAME).head()
    assert "s3cr3t-value" not in str(caught.value)


def test_a_local_table_of_a_catalog_needs_no_credentials(catalog: Catalog, lake: Lake) -> None:
    lake.write(people(1))
    catalog.tables = {"main.crm.customers": lake.path.as_uri()}
    assert ours(DeltaSource("uc://main", options(catalog)).table(NAME, ("id",)), 0).total() == 1


def test_a_table_without_a_location_is_refused(catalog: Catalog) -> None:
    catalog.tables = {"main.crm.customers": ""}
    with pytest.raises(SourceError, match="no storage location"):
        DeltaSource("uc://main", options(catalog)).table(NAME).head()


def test_a_table_that_is_not_there_is_told_with_near_names(catalog: Catalog) -> None:
    catalog.tables = {"main.crm.customers": ""}
    with pytest.raises(TableNotFoundError) as caught:
        DeltaSource("uc://main", options(catalog)).table(TableId("crm", "custmers")).head()
    assert "crm.customers" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "kind"),
    [(429, SourceUnavailableError), (503, SourceUnavailableError), (403, SourceError)],
)
def test_refusals_are_told_and_whether_it_helps_to_wait(
    catalog: Catalog, status: int, kind: type[HeadraceError]
) -> None:
    """Invariant 14: without the token."""
    catalog.failure = status
    with pytest.raises(HeadraceError, match=str(status)) as caught:
        DeltaSource("uc://main", options(catalog)).tables()
    assert type(caught.value) is kind
    assert caught.value.hint
    assert TOKEN not in str(caught.value)


def test_a_server_that_is_away_is_told(catalog: Catalog) -> None:
    away = options(catalog, databricks_host="http://127.0.0.1:9")
    with pytest.raises(SourceUnavailableError, match="does not answer"):
        DeltaSource("uc://main", away).tables()


@pytest.mark.parametrize(
    ("location", "more", "text"),
    [
        ("uc://main", {"databricks_host": ""}, "no databricks_host"),
        ("uc://main", {"unity_allow_http_url": "false"}, "not an https"),
        ("uc://main", {"databricks_host": "ftp://x"}, "not an https"),
        ("uc://", {}, "no catalog"),
        ("uc://main.crm", {}, "no catalog"),
    ],
)
def test_wrong_options_are_refused(
    catalog: Catalog, location: str, more: dict[str, str], text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        DeltaSource(location, options(catalog, **more))
    assert caught.value.hint
