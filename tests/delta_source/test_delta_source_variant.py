"""Variants are read as JSON text, with DuckDB as the one who writes them and knows better."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lakes import Lake, people, read

from headrace.connectors.delta.variant import VariantError, decode
from headrace.errors import SourceError


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        yield connection


def encoded(database: duckdb.DuckDBPyConnection, sql: str, *values: Any) -> tuple[bytes, bytes]:
    found = database.execute(f"select variant_to_parquet_variant({sql})", list(values)).fetchone()
    assert found is not None
    return found[0]["metadata"], found[0]["value"]


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=80),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text("abcdefgé", min_size=1, max_size=8), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(_json)
def test_any_json_comes_back_from_its_variant(value: Any) -> None:
    with duckdb.connect() as connection:
        found = decode(*encoded(connection, "?::json::variant", json.dumps(value)))
    assert json.loads(found) == value


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("1::tinyint", "1"),
        ("(-2)::smallint", "-2"),
        ("12.345::decimal(5,3)", "12.345"),
        ("(-0.05)::decimal(18,2)", "-0.05"),
        ("12345678901234567890.12::decimal(38,2)", "12345678901234567890.12"),
        ("99999999999999999999999999999999999.999::decimal(38,3)", "9" * 35 + ".999"),
        ("0.1::float", "0.1"),
        ("1e30::float", "1e+30"),
        ("'inf'::double", '"inf"'),
        ("date '2024-02-29'", '"2024-02-29"'),
        ("date '0001-01-01'", '"0001-01-01"'),
        ("timestamptz '2020-01-02 03:04:05.678901+00'", '"2020-01-02T03:04:05.678901Z"'),
        ("timestamp '1969-12-31 23:59:59.9'", '"1969-12-31T23:59:59.900000"'),
        ("timestamp_ns '2020-01-02 03:04:05.123456789'", '"2020-01-02T03:04:05.123456789"'),
        ("time '01:02:03.5'", '"01:02:03.500000"'),
        ("'\\x00\\xFF'::blob", '"AP8="'),
        ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
        ("repeat('é', 100)", '"' + "é" * 100 + '"'),
        ("[]", "[]"),
        ("range(300)", "[" + ", ".join(map(str, range(300))) + "]"),
    ],
)
def test_each_primitive_has_its_text(
    database: duckdb.DuckDBPyConnection, sql: str, text: str
) -> None:
    assert decode(*encoded(database, f"({sql})::variant")) == text


def test_an_object_of_many_fields_is_read(database: duckdb.DuckDBPyConnection) -> None:
    value = {f"field{i}": i for i in range(300)}
    assert json.loads(decode(*encoded(database, "?::json::variant", json.dumps(value)))) == value


def test_decimals_keep_every_digit(database: duckdb.DuckDBPyConnection) -> None:
    text = decode(*encoded(database, "(1e-10::decimal(38,10))::variant"))
    assert Decimal(text) == Decimal("1e-10")


@pytest.mark.parametrize(
    ("metadata", "value"),
    [
        (b"", b"\0"),
        (b"\x02\0\0", b"\0"),
        (b"\x01\0\0", b""),
        (b"\x01\0\0", b"\x18\x01"),
        (b"\x01\0\0", bytes([63 << 2])),
        (b"\x01\0\0", b"\x02\x01\x07\x00\x01\x00"),
        (b"\x01\0\0", b"\x05\xff"),
        (b"\x01\0\0", b"\x15abc"),
        (b"\x01\0\0", b"\x20\x02\x01"),
        (b"\x01\0\0", b"\x40\x09\0\0\0a"),
        (b"\x01\x01\0\x09a", b"\0"),
    ],
)
def test_damaged_variants_are_told(metadata: bytes, value: bytes) -> None:
    with pytest.raises(VariantError):
        decode(metadata, value)


def with_variant(lake: Lake, kind: Any, *columns: pa.Array) -> None:
    """A table as a writer of variants makes it; deltalake only reads them."""
    lake.write(people(1, 2, 3))
    lines = [json.loads(line) for line in lake.log(0).read_text().splitlines()]
    metadata = next(line["metaData"] for line in lines if "metaData" in line)
    schema = json.loads(metadata["schemaString"])
    schema["fields"].append({"name": "v", "type": kind, "nullable": True, "metadata": {}})
    metadata["schemaString"] = json.dumps(schema)
    features = {"readerFeatures": ["variantType"], "writerFeatures": ["variantType"]}
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
    actions = [{"protocol": protocol}, {"metaData": metadata}]
    lake.log(1).write_text("\n".join(map(json.dumps, actions)) + "\n")
    (file,) = lake.path.rglob("*.parquet")
    for column in columns:
        pq.write_table(pq.read_table(file).append_column("v", column), file)


def test_a_column_of_variants_is_a_column_of_json_text(
    lake: Lake, database: duckdb.DuckDBPyConnection
) -> None:
    one, two = ('{"bb":{}, "a":[1,null,"x"]}', "7")
    values = [encoded(database, "?::json::variant", text) for text in (one, two)]
    stored = [{"metadata": m, "value": v} for m, v in values]
    kind = pa.struct([("metadata", pa.binary()), ("value", pa.binary())])
    with_variant(lake, "variant", pa.array([stored[0], None, stored[1]], kind))
    source = lake.open()
    (column,) = [c for c in source.schema(1).columns if c.name == "v"]
    assert (column.type, column.source_type) == (pa.string(), "variant")
    found = read(source.rows(1)).column("v").to_pylist()
    assert found == ['{"a": [1, null, "x"], "bb": {}}', None, "7"]


def test_variants_inside_other_types_are_refused(lake: Lake) -> None:
    with_variant(lake, {"type": "array", "elementType": "variant", "containsNull": True})
    with pytest.raises(SourceError, match="column v") as caught:
        lake.open().schema(1)
    assert caught.value.hint
