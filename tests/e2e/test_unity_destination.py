"""A pipeline into tables of a Unity Catalog, on local disk and on a real S3 server.

The catalog is tests/unity_server.py, made after the documented REST API.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from harness import Shop

from headrace.connectors.delta import unity
from headrace.engine.table_state import Phase
from headrace.errors import CheckFailedError
from headrace.model.finding import Finding, Severity
from headrace.testing.database import Database
from unity_server import TOKEN, UnityServer, unity_server

FULL = "main.crm.orders"


@pytest.fixture
def catalog() -> Iterator[UnityServer]:
    with unity_server() as server:
        server.schemas.add("main.crm")
        yield server


@pytest.fixture
def shop(database: Database, tmp_path: Path, catalog: UnityServer) -> Shop:
    """Orders, carried to main.crm.orders, whose files are to lie in a folder."""
    root = str(tmp_path / "tables")
    shop = Shop(database, tmp_path, "uc://main.crm", catalog.options(), root)
    shop.sql("CREATE TABLE orders (id int PRIMARY KEY, total numeric(10,2), note text NOT NULL)")
    shop.sql("INSERT INTO orders SELECT i, i * 1.5, 'note ' || i FROM generate_series(1, 50) i")
    shop.carry("public.orders")
    return shop


def findings(shop: Shop, severity: Severity) -> dict[str, Finding]:
    return {f.name: f for f in shop.project.check() if f.severity is severity}


def refused(shop: Shop) -> str:
    """Why the one table that is carried has stopped."""
    (failure,) = shop.run()
    return str(failure.error)


# -- new tables ------------------------------------------------------------------------------------


def test_a_new_table_is_registered_with_its_columns_and_followed(
    shop: Shop, catalog: UnityServer
) -> None:
    (step,) = [s for s in shop.project.plan().steps if s.kind == "external table"]
    assert (step.action, step.name) == ("create", "crm.orders")
    assert "will be registered" in findings(shop, Severity.OK)["catalog-table"].message
    assert catalog.tables == {}  # looking makes nothing
    shop.catch_up()
    shop.assert_equal("public.orders", "crm.orders")
    shop.sql("UPDATE orders SET total = 0 WHERE id < 10; DELETE FROM orders WHERE id > 40")
    shop.catch_up()
    shop.assert_equal("public.orders", "crm.orders")
    made = catalog.tables[FULL]
    assert made["table_type"] == "EXTERNAL"
    assert made["storage_location"] == (Path(shop.storage_root) / "crm" / "orders").as_uri()
    assert [(c["name"], c["type_text"], c["type_name"]) for c in made["columns"]] == [
        ("id", "int", "INT"),
        ("total", "decimal(10,2)", "DECIMAL"),
        ("note", "string", "STRING"),
    ]
    logged = json.loads(DeltaTable(shop.location("crm.orders")).schema().to_json())["fields"]
    assert [json.loads(c["type_json"]) for c in made["columns"]] == logged
    assert catalog.asked.count("POST /api/2.1/unity-catalog/tables") == 1


def test_columns_that_come_later_are_in_the_table_and_not_in_its_registration(
    shop: Shop, catalog: UnityServer
) -> None:
    shop.catch_up()
    registered = [c["name"] for c in catalog.tables[FULL]["columns"]]
    shop.sql("ALTER TABLE orders ADD COLUMN paid bool; UPDATE orders SET paid = true")
    shop.catch_up()
    shop.assert_equal("public.orders", "crm.orders")
    assert [c["name"] for c in catalog.tables[FULL]["columns"]] == registered  # no API for it


def test_a_table_that_was_registered_before_its_first_commit_is_loaded_where_it_lies(
    shop: Shop, catalog: UnityServer, tmp_path: Path
) -> None:
    """By its user, or by a run that died in between."""
    catalog.add(FULL, (tmp_path / "elsewhere").as_uri())
    shop.storage_root = ""
    shop.carry("public.orders")
    shop.catch_up()
    assert DeltaTable(tmp_path / "elsewhere").version() == 0
    assert "POST /api/2.1/unity-catalog/tables" not in catalog.asked


def test_on_an_object_store_the_credentials_that_are_lent_are_renewed_and_used(
    database: Database,
    tmp_path: Path,
    catalog: UnityServer,
    s3_endpoint: str,
    s3_options: dict[str, str],
) -> None:
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    names = ("access_key_id", "secret_access_key")
    lent = {name: s3_options[key] for name, key in zip(names, keys, strict=True)}
    catalog.credentials = {"aws_temp_credentials": {**lent, "session_token": ""}}
    catalog.lifetime = unity.EARLY - 1  # too short to be kept
    place = {key: value for key, value in s3_options.items() if key not in keys}
    root = f"s3://bucket/{database.name}"
    shop = Shop(database, tmp_path, "uc://main.crm", catalog.options(**place), root)
    shop.sql("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1), (2)")
    shop.carry("public.orders")
    assert "first copy tries it" in findings(shop, Severity.WARNING)["destination-commits"].message
    shop.catch_up()
    assert "destination-commits" in findings(shop, Severity.OK)
    shop.sql("INSERT INTO orders VALUES (3); DELETE FROM orders WHERE id = 1")
    shop.catch_up()
    shop.options = s3_options
    shop.assert_equal("public.orders", "crm.orders", readers=("deltalake", "polars"))
    assert catalog.lent.count(f"READ_WRITE {FULL}") > 2


# -- what goes wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"table_type": "MANAGED"}, "is a MANAGED table, whose commits the catalog's own engines"),
        ({"data_source_format": "PARQUET"}, "is registered as PARQUET, not as Delta"),
        ({"table_type": "VIEW", "data_source_format": ""}, "is registered as VIEW"),
    ],
)
def test_a_table_that_is_not_external_delta_stops_and_the_others_go_on(
    shop: Shop, catalog: UnityServer, tmp_path: Path, more: dict[str, str], why: str
) -> None:
    shop.sql("CREATE TABLE people (id int PRIMARY KEY); INSERT INTO people VALUES (1)")
    shop.carry("public.*")
    catalog.add(FULL, (tmp_path / "theirs").as_uri(), **more)
    assert why in findings(shop, Severity.BLOCKER)["catalog-table"].message
    assert why in refused(shop)
    shop.assert_equal("public.people", "crm.people")
    assert not (tmp_path / "theirs").exists()


def test_where_nobody_says_where_a_new_table_is_to_lie_check_says_so(shop: Shop) -> None:
    shop.storage_root = ""
    shop.carry("public.orders")
    (step,) = [s for s in shop.project.plan().steps if s.action == "stop"]
    assert "no storage_root" in step.detail
    blocker = findings(shop, Severity.BLOCKER)["catalog-table"]
    assert "storage_root: s3://" in blocker.fix
    assert "no storage_root" in refused(shop)


def test_a_name_that_a_catalog_cannot_have_is_refused_before_the_copy(shop: Shop) -> None:
    shop.carry({"source": "public.orders", "name": "crm.Orders"})
    assert "lower case" in findings(shop, Severity.BLOCKER)["catalog-table"].message
    assert "lower case" in refused(shop)


def test_a_schema_that_is_not_there_is_a_blocker(shop: Shop, catalog: UnityServer) -> None:
    catalog.schemas.clear()
    with pytest.raises(CheckFailedError, match=r"has no schema main\.crm"):
        shop.run()
    assert findings(shop, Severity.BLOCKER)["catalog-schema"].fix == "CREATE SCHEMA main.crm"


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "put a new one where storage_options name it"), (403, "MODIFY")]
)
def test_14_a_token_that_is_refused_is_told_and_not_shown(
    shop: Shop, catalog: UnityServer, status: int, hint: str
) -> None:
    """Invariant 14: not even where the server repeats it."""
    catalog.failure, catalog.message = status, f"bad token {TOKEN}"
    with pytest.raises(CheckFailedError, match=str(status)) as caught:
        shop.run()
    blocker = findings(shop, Severity.BLOCKER)["catalog-schema"]
    assert hint in blocker.fix
    assert "bad token …" in blocker.message
    assert TOKEN not in f"{caught.value}{caught.value.context}{blocker}"


def test_9_while_the_catalog_is_away_the_source_is_captured_and_the_table_waits(
    shop: Shop, catalog: UnityServer
) -> None:
    """Invariant 9: before the run begins, and while it goes on."""
    catalog.failure = 503
    with shop.running() as run:
        run.wait(lambda views: bool(views) and retrying(views))
        catalog.failure = 0
        run.catch_up()
    shop.assert_equal("public.orders", "crm.orders")


def retrying(views: Any) -> bool:
    states = [s for view in views for m in view.materializations for s in m.tables.values()]
    return any("503" in str(state.error) for state in states)


# -- the other commands ----------------------------------------------------------------------------


def test_every_command_serves_tables_of_a_catalog(shop: Shop, catalog: UnityServer) -> None:
    catalog.add("main.crm.events", "s3://bucket/theirs")  # for which no credentials are lent
    shop.catch_up()
    project = shop.project
    assert shop.status("public.orders").phase is Phase.STREAMING
    (moment,) = project.lsn()
    assert [(t.table.name, t.version) for t in moment.tables] == [("orders", 0)]
    shop.sql("DELETE FROM orders WHERE id > 40")
    shop.catch_up()
    count = "SELECT count(*) n FROM crm.orders"
    assert project.query(count).to_pylist() == [{"n": 40}]
    assert project.query(count, moment.lsn).to_pylist() == [{"n": 50}]
    forged = DeltaTable(shop.location("crm.orders"))
    forged.delete("id = 7")
    (found,) = project.verify(repair=True)
    assert (found.missing, found.repaired) == (1, True)
    shop.assert_equal("public.orders", "crm.orders")
    assert not project.resync(["public.orders"])
    shop.assert_equal("public.orders", "crm.orders")
    project.destroy()
    assert FULL in catalog.tables  # as the rows of a table stay, so does its entry


def test_a_table_that_somebody_dropped_from_the_catalog_is_made_again(
    shop: Shop, catalog: UnityServer
) -> None:
    shop.catch_up()
    del catalog.tables[FULL]
    shop.sql("INSERT INTO orders VALUES (51, 1, 'x')")
    shop.catch_up()
    shop.assert_equal("public.orders", "crm.orders")
    assert FULL in catalog.tables
