"""Tables that a Unity Catalog registers, as their one writer meets them, on a real S3 server."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pytest
from delta_samples import LOG_ID, NAME, PIPELINE, Lake, at, changes, row_of, schema_of

from headrace.connectors.delta import unity
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.registered import columns_of
from headrace.errors import DestinationError, DestinationUnavailableError, ObjectMissingError
from headrace.model import Column, TableSchema
from unity_server import UnityServer, unity_server

SCHEMA = schema_of("int64")
ROWS = [row_of("int64", key, 1) for key in range(9)]
FULL = f"main.{NAME}"
KEYS = {"AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key"}


@pytest.fixture
def catalog(s3_options: dict[str, str]) -> Iterator[UnityServer]:
    """It lends credentials that are asked for anew each time."""
    with unity_server() as server:
        server.schemas.add(f"main.{NAME.schema}")
        lent = {theirs: s3_options[ours] for ours, theirs in KEYS.items()}
        server.credentials = {"aws_temp_credentials": lent}
        server.lifetime = unity.EARLY - 1
        yield server


@pytest.fixture
def destination(catalog: UnityServer, s3_options: dict[str, str]) -> DeltaDestination:
    place = {key: value for key, value in s3_options.items() if key not in KEYS}
    root = f"s3://bucket/registered-{uuid.uuid4()}"
    return DeltaDestination("uc://main", catalog.options(**place), storage_root=root)


def rows_of(destination: DeltaDestination) -> int:
    counted = destination.query(f"SELECT count(*) n FROM {NAME}").to_pylist()
    return int(counted[0]["n"])


def test_4_a_batch_that_the_catalog_kept_waiting_is_applied_once(
    destination: DeltaDestination, catalog: UnityServer, lake: Lake
) -> None:
    """Invariant 4: credentials cannot be renewed for a while, and then the token is refused."""
    table = destination.table(NAME, PIPELINE)
    assert table.checkpoint(LOG_ID) is None
    table.load(SCHEMA, lake.snapshot(SCHEMA, ROWS), at(1))
    batch = changes(SCHEMA, [], ROWS[:2])
    catalog.failure = 503
    with pytest.raises(DestinationUnavailableError, match="503"):
        table.apply(batch, at(2))
    catalog.failure = 401
    with pytest.raises(DestinationError, match="401") as caught:
        table.apply(batch, at(2))
    assert not caught.value.transient
    catalog.failure = 0
    table.apply(batch, at(2))
    table.apply(batch, at(2))
    assert table.checkpoint(LOG_ID) == at(2)
    assert (rows_of(destination), destination.open(NAME).version()) == (7, 1)


def test_a_table_is_read_with_credentials_for_reading(
    destination: DeltaDestination, catalog: UnityServer, lake: Lake
) -> None:
    destination.table(NAME, PIPELINE).load(SCHEMA, lake.snapshot(SCHEMA, ROWS), at(1))
    catalog.lent.clear()
    assert rows_of(destination) == 9
    assert destination.owner(NAME) == PIPELINE
    assert set(catalog.lent) == {f"READ {FULL}"}


def test_a_store_that_is_refused_leaves_an_entry_that_the_next_load_takes(
    destination: DeltaDestination, catalog: UnityServer, lake: Lake
) -> None:
    lent, catalog.credentials = catalog.credentials, {"quantum_credentials": {"qubit": "x"}}
    table = destination.table(NAME, PIPELINE)
    with pytest.raises(DestinationError, match="lends no credentials"):
        table.load(SCHEMA, lake.snapshot(SCHEMA, ROWS), at(1))
    assert FULL in catalog.tables
    catalog.credentials = lent
    table.load(SCHEMA, lake.snapshot(SCHEMA, ROWS), at(1))
    assert rows_of(destination) == 9


def test_an_entry_that_came_between_is_taken_as_it_is(
    destination: DeltaDestination, catalog: UnityServer
) -> None:
    """A lost answer to `POST /tables`, or another run that was quicker."""
    assert destination.catalog is not None
    client = destination.catalog.catalog
    client.create(NAME, "s3://bucket/first", columns_of(SCHEMA))
    client.create(NAME, "s3://bucket/second", columns_of(SCHEMA))
    assert catalog.tables[FULL]["storage_location"] == "s3://bucket/first"


def test_a_table_that_is_not_in_the_catalog_is_empty_and_takes_no_file(
    destination: DeltaDestination, catalog: UnityServer
) -> None:
    storage = destination.table(NAME, PIPELINE).storage
    assert (storage.list(""), storage.folders(""), storage.exists("x")) == ([], (), False)
    with pytest.raises(ObjectMissingError, match=f"no table {FULL}"):
        storage.put("x", b"")
    with pytest.raises(DestinationError, match=f"no table {FULL}"):
        destination.open(NAME)
    assert catalog.tables == {}


def test_columns_of_every_type_are_registered_as_delta_and_sql_name_them(
    catalog: UnityServer, destination: DeltaDestination
) -> None:
    named = {
        "BOOLEAN boolean": pa.bool_(),
        "SHORT smallint": pa.int16(),
        "INT int": pa.int32(),
        "LONG bigint": pa.int64(),
        "FLOAT float": pa.float32(),
        "DOUBLE double": pa.float64(),
        "DATE date": pa.date32(),
        "TIMESTAMP timestamp": pa.timestamp("us", "UTC"),
        "TIMESTAMP_NTZ timestamp_ntz": pa.timestamp("us"),
        "STRING string": pa.string(),
        "BINARY binary": pa.binary(),
        "DECIMAL decimal(38,4)": pa.decimal128(38, 4),
        "ARRAY array<decimal(9,2)>": pa.list_(pa.decimal128(9, 2)),
        "STRUCT struct<a:int,b:array<string>>": pa.struct(
            {"a": pa.int32(), "b": pa.list_(pa.string())}
        ),
    }
    columns = tuple(Column(f"c{n}", t, str(t), n + 1) for n, t in enumerate(named.values()))
    told = columns_of(TableSchema(NAME, 1, columns, ("c1",)), ("c2", "c1"))
    assert [f"{c['type_name']} {c['type_text']}" for c in told] == list(named)
    assert [c["position"] for c in told] == list(range(len(named)))
    assert [(c["name"], c["partition_index"]) for c in told if "partition_index" in c] == [
        ("c1", 1),
        ("c2", 0),
    ]
    assert {json.loads(c["type_json"])["name"] for c in told} == {c.name for c in columns}
    assert destination.catalog is not None
    destination.catalog.catalog.create(NAME, "s3://bucket/x", told)  # which the server checks
