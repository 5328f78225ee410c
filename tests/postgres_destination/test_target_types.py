"""Every type arrives as the Postgres type that says the same, and every value exactly."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from target_place import NAME, PIPELINE, Place, at, net, schema_of

from headrace.connectors.postgres.target_json import json_texts
from headrace.connectors.postgres.target_types import arrival
from headrace.errors import DestinationError
from headrace.model import Column, Delivery

NOON = datetime(2026, 2, 3, 12, 0, 0, 123456, UTC)
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, UTC).replace(tzinfo=None)

# Arrow type, Postgres type, values, and the texts that Postgres prints.
SCALARS: list[tuple[pa.DataType, str, list[Any], list[str]]] = [
    (pa.bool_(), "boolean", [True, False], ["true", "false"]),
    (pa.int8(), "smallint", [-128, 127], ["-128", "127"]),
    (pa.uint8(), "smallint", [0, 255], ["0", "255"]),
    (pa.int16(), "smallint", [-32768, 32767], ["-32768", "32767"]),
    (pa.uint16(), "integer", [65535], ["65535"]),
    (pa.int32(), "integer", [-(2**31), 2**31 - 1], ["-2147483648", "2147483647"]),
    (pa.uint32(), "bigint", [2**32 - 1], ["4294967295"]),
    (pa.int64(), "bigint", [-(2**63), 2**63 - 1], [str(-(2**63)), str(2**63 - 1)]),
    (pa.uint64(), "numeric(20,0)", [0, 2**64 - 1], ["0", str(2**64 - 1)]),
    (pa.float16(), "real", [1.5, -0.25], ["1.5", "-0.25"]),
    (pa.float32(), "real", [1.1, float("nan"), float("-inf")], ["1.1", "NaN", "-Infinity"]),
    (
        pa.float64(),
        "double precision",
        [0.1, -0.0, 1e300, 5e-324, float("nan"), float("inf")],
        ["0.1", "-0", "1e+300", "5e-324", "NaN", "Infinity"],
    ),
    (
        pa.decimal128(38, 3),
        "numeric(38,3)",
        [Decimal("-99999999999999999999999999999999999.999"), Decimal("0.1")],
        ["-99999999999999999999999999999999999.999", "0.100"],
    ),
    (pa.decimal128(5, -2), "numeric(7,0)", [Decimal("1200")], ["1200"]),
    (pa.decimal256(50, 10), "numeric(50,10)", [Decimal("1" * 40)], ["1" * 40 + "." + "0" * 10]),
    (pa.string(), "text", ["", "grüße 😀\n\t'\"\\", "NULL"], ["", "grüße 😀\n\t'\"\\", "NULL"]),
    (pa.large_string(), "text", ["a"], ["a"]),
    (
        pa.string_view(),
        "text",
        ["a view of more than twelve bytes"] * 1,
        ["a view of more than twelve bytes"],
    ),
    (pa.dictionary(pa.int32(), pa.string()), "text", ["a", "b"], ["a", "b"]),
    (pa.binary(), "bytea", [b"", b"\x00\xff"], ["\\x", "\\x00ff"]),
    (pa.large_binary(), "bytea", [b"\x00"], ["\\x00"]),
    (pa.binary_view(), "bytea", [b"\x00"], ["\\x00"]),
    (pa.binary(2), "bytea", [b"ab"], ["\\x6162"]),
    (pa.date32(), "date", [date(1, 1, 1), date(9999, 12, 31)], ["0001-01-01", "9999-12-31"]),
    (pa.date64(), "date", [date(1970, 1, 2)], ["1970-01-02"]),
    (
        pa.timestamp("us", "UTC"),
        "timestamp with time zone",
        [datetime(1, 1, 1, tzinfo=UTC), NOON],
        ["0001-01-01 00:00:00+00", "2026-02-03 12:00:00.123456+00"],
    ),
    (
        pa.timestamp("us", "Europe/Berlin"),
        "timestamp with time zone",
        [NOON],
        ["2026-02-03 12:00:00.123456+00"],
    ),
    (
        pa.timestamp("us"),
        "timestamp without time zone",
        [LAST],
        ["9999-12-31 23:59:59.999999"],
    ),
    (
        pa.timestamp("ns"),
        "timestamp without time zone",
        [NEW_YEAR],
        ["2026-01-01 00:00:00"],
    ),
    (
        pa.timestamp("s", "UTC"),
        "timestamp with time zone",
        [NEW_YEAR],
        ["2026-01-01 00:00:00+00"],
    ),
    (pa.time64("us"), "time without time zone", [time(23, 59, 59, 999999)], ["23:59:59.999999"]),
    (pa.time32("s"), "time without time zone", [time(1, 2, 3)], ["01:02:03"]),
    (pa.duration("us"), "interval", [timedelta(days=-1, microseconds=1)], ["-23:59:59.999999"]),
]

NESTED: list[tuple[pa.DataType, str, Any, str]] = [
    (pa.list_(pa.int32()), "integer[]", [1, None, -3], "{1,NULL,-3}"),
    (pa.list_(pa.int32()), "integer[]", [], "{}"),
    (pa.large_list(pa.string()), "text[]", ["a,b", "", None, 'q"'], '{"a,b","",NULL,"q\\""}'),
    (pa.list_(pa.float64()), "double precision[]", [0.1, float("nan")], "{0.1,NaN}"),
    (pa.list_(pa.bool_()), "boolean[]", [True, None], "{t,NULL}"),
    (pa.list_(pa.binary()), "bytea[]", [b"\x00"], '{"\\\\x00"}'),
    (pa.list_(pa.date32()), "date[]", [date(2026, 1, 1)], "{2026-01-01}"),
    (pa.list_(pa.decimal128(10, 2)), "numeric(10,2)[]", [Decimal("1.50"), None], "{1.50,NULL}"),
    (pa.list_(pa.uint64()), "numeric(20,0)[]", [2**64 - 1], "{18446744073709551615}"),
    (pa.list_(pa.int8(), 2), "smallint[]", [1, 2], "{1,2}"),
    (pa.list_view(pa.int64()), "bigint[]", [7], "{7}"),
    (
        pa.list_(pa.timestamp("us", "UTC")),
        "timestamp with time zone[]",
        [NOON],
        '{"2026-02-03 12:00:00.123456+00"}',
    ),
    (pa.list_(pa.list_(pa.int32())), "jsonb", [[1], [], None], "[[1], [], null]"),
    (pa.struct([("a", pa.int64()), ("b", pa.string())]), "jsonb", {"a": 2**53 + 1, "b": None},
     '{"a": 9007199254740993, "b": null}'),
    (pa.map_(pa.string(), pa.decimal128(38, 2)), "jsonb",
     [("x", Decimal("12345678901234567890123456789012345.60"))],
     '{"x": 12345678901234567890123456789012345.60}'),
    (pa.map_(pa.int32(), pa.bool_()), "jsonb", [(1, True)], '{"1": true}'),
    (pa.struct([]), "jsonb", {}, "{}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arrow", "postgres", "values", "texts"), SCALARS, ids=lambda v: str(v)[:40]
)
def test_every_scalar_arrives_exactly(
    place: Place, arrow: pa.DataType, postgres: str, values: list[Any], texts: list[str]
) -> None:
    _arrives(place, arrow, postgres, [*values, None], [*texts, None])


@pytest.mark.parametrize(("arrow", "postgres", "value", "text"), NESTED, ids=lambda v: str(v)[:40])
def test_every_nested_value_arrives_exactly(
    place: Place, arrow: pa.DataType, postgres: str, value: Any, text: str
) -> None:
    _arrives(place, arrow, postgres, [value, None], [text, None])


def _arrives(
    place: Place, arrow: pa.DataType, postgres: str, values: list[Any], texts: list[str | None]
) -> None:
    schema = schema_of({"id": pa.int64(), "v": arrow})
    table = place.prepared(schema)
    rows = pa.table({"id": pa.array(range(len(values)), pa.int64()), "v": pa.array(values, arrow)})
    changes = net(schema)
    table.apply(type(changes)(schema, rows, changes.deletes), at(1))
    kind = "select format_type(atttypid, atttypmod) from pg_attribute"
    found = place.rows(f"{kind} where attrelid = 'shop.customers'::regclass and attname = 'v'")
    assert found == [(postgres,)]
    assert [
        text for (text,) in place.rows("select v::text from shop.customers order by id")
    ] == texts


@pytest.mark.parametrize(("wanted", "kind"), [({}, "jsonb"), ({"v": "text"}, "text")])
def test_a_variant_becomes_jsonb_unless_the_user_wants_another_type(
    place: Place, wanted: dict[str, str], kind: str
) -> None:
    """Both ways: what is read back is what was written."""
    columns = [Column("id", pa.int64(), "long"), Column("v", pa.string(), "variant")]
    schema = schema_of(columns)
    texts = ['{"b": 1.50, "aa": [true, null, "é\\n"]}', "7", '"text"', "null", None, "{}", "[]"]
    table = place.prepared(schema, Delivery(types=wanted))
    table.apply(net(schema, [{"id": i, "v": text} for i, text in enumerate(texts)]), at(1))
    assert place.rows("select distinct pg_typeof(v)::text from shop.customers") == [(kind,)]
    assert place.rows("select v::text from shop.customers order by id") == [(t,) for t in texts]
    read = place.destination.table(NAME, PIPELINE, Delivery(types=wanted)).read(schema, ["id", "v"])
    found = pa.Table.from_batches(read).sort_by("id")
    assert found.column("v").to_pylist() == texts
    assert not [f for f in table.check(schema) if "column v" in f.message]


def test_a_variant_with_a_null_byte_is_quarantined_12(place: Place) -> None:
    """Invariant 12: jsonb has no such character."""
    columns = [Column("id", pa.int64(), "long"), Column("v", pa.string(), "variant")]
    schema = schema_of(columns)
    table = place.prepared(schema)
    table.apply(net(schema, [{"id": 1, "v": '"a\\u0000"'}, {"id": 2, "v": '"a"'}]), at(1))
    assert place.rows("select id from shop.customers") == [(2,)]
    (parked,) = place.destination.parked()
    assert parked.row.to_pylist() == [{"id": 1, "v": '"a\\u0000"'}]


def test_a_key_of_each_kind_finds_its_row(place: Place) -> None:
    columns = {
        "a": pa.string(), "b": pa.decimal128(10, 2), "c": pa.timestamp("us", "UTC"),
        "d": pa.date32(), "e": pa.binary(), "f": pa.uint64(), "g": pa.bool_(),
    }  # fmt: skip
    schema = schema_of({**columns, "v": pa.int32()}, list(columns))
    row = {
        "a": "ä", "b": Decimal("1.50"), "c": NOON, "d": date(2026, 1, 1), "e": b"\x00",
        "f": 2**64 - 1, "g": False,
    }  # fmt: skip
    table = place.prepared(schema)
    table.apply(net(schema, [{**row, "v": 1}, {**row, "a": "b", "v": 1}]), at(1))
    table.apply(net(schema, [{**row, "v": 2}]), at(2))
    table.apply(net(schema, deletes=[{**row, "a": "b"}]), at(3))
    assert place.rows("select a, v from shop.customers") == [("ä", 2)]


def test_json_says_every_value_exactly() -> None:
    kind = pa.struct(
        [
            ("float", pa.float64()), ("single", pa.float32()), ("when", pa.timestamp("us", "UTC")),
            ("local", pa.timestamp("us")), ("day", pa.date32()), ("bytes", pa.binary()),
            ("big", pa.uint64()), ("dec", pa.decimal128(38, 10)), ("text", pa.string()),
            ("nan", pa.float64()), ("in", pa.list_(pa.map_(pa.string(), pa.int8()))),
        ]
    )  # fmt: skip
    value = {
        "float": 0.1, "single": 1.1, "when": NOON, "local": NEW_YEAR,
        "day": date(1, 1, 1), "bytes": b"\x00\xff", "big": 2**64 - 1,
        "dec": Decimal("1234567890123456789012345678.0000000001"), "text": 'a"\\\n\u2028é',
        "nan": float("nan"), "in": [[("k", 1)], None],
    }  # fmt: skip
    (text,) = json_texts(pa.array([value], kind)).to_pylist()
    assert json.loads(text, parse_float=Decimal) == {
        "float": Decimal("0.1"), "single": Decimal("1.1"),
        "when": "2026-02-03T12:00:00.123456+00:00", "local": "2026-01-01T00:00:00",
        "day": "0001-01-01", "bytes": "AP8=", "big": 2**64 - 1,
        "dec": Decimal("1234567890123456789012345678.0000000001"), "text": 'a"\\\n\u2028é',
        "nan": "NaN", "in": [{"k": 1}, None],
    }  # fmt: skip


def test_a_type_that_postgres_has_not_is_named() -> None:
    with pytest.raises(DestinationError, match="month_day_nano"):
        arrival(pa.month_day_nano_interval())


NATIVE = {
    "uuid": ["6f9619ff-8b86-d011-b42d-00c04fc964ff"],
    "json": ['{"b": 1,  "a": [1.00]}'],
    "jsonb": ['{"a": 1.00}'],
    "interval": ["P1Y2M3DT4H5M6.000007S"],
    "inet": ["192.168.0.1/24"],
    "numeric": ["1.10", "NaN", "1" * 60],
    "character(5)": ["ab   "],
    "bit(3)": ["101"],
    "bit varying(5)": ["10"],
    "time with time zone": ["12:00:00.5+02"],
    "int4range": ["[1,5)"],
    "xid8": ["7"],
    "point": ["(1.5,2)"],
    "tsvector": ["'a':1 'b'"],
    "shop.mood": ["glad"],
    "shop.small": ["7"],
    "shop.pair": ['(1,"a b")'],
    "uuid[]": [["6f9619ff-8b86-d011-b42d-00c04fc964ff", None]],
    "shop.mood[]": [["glad"]],
}


@pytest.mark.parametrize("kind", NATIVE)
def test_a_type_of_postgres_is_stored_as_the_same_type(place: Place, kind: str) -> None:
    """Postgres to Postgres: the texts that its own output functions print are read back."""
    place.database.execute(
        "create schema shop; create type shop.mood as enum ('sad', 'glad');"
        "create domain shop.small as int check (value < 10);"
        "create type shop.pair as (a int, b text)"
    )
    arrow = pa.list_(pa.string()) if kind.endswith("[]") else pa.string()
    columns = [Column("id", pa.int64(), "bigint", 1), Column("v", arrow, kind, 2)]
    schema = schema_of(columns)
    table = place.prepared(schema, Delivery(native_types=True))
    rows = [{"id": n, "v": value} for n, value in enumerate([*NATIVE[kind], None])]
    table.apply(net(schema, rows), at(1))
    described = "select format_type(atttypid, atttypmod) from pg_attribute"
    where = "where attrelid = 'shop.customers'::regclass and attname = 'v'"
    assert place.rows(f"{described} {where}") == [(kind,)]
    with place.database.connect(options="-c intervalstyle=iso_8601") as connection:
        elements = "array(select unnest(v)::text)" if kind.endswith("[]") else "textin({}out(v))"
        output = "select typoutput::text from pg_type where oid = %s::regtype"
        (name,) = connection.execute(output, [kind]).fetchone() or ("",)
        shown = elements.format(name.removesuffix("out")) if "{}" in elements else elements
        value = f"case when v is null then null else {shown} end"
        if kind == "shop.small":
            value = "v::text"
        found = connection.execute(f"select {value} from shop.customers order by id").fetchall()
    assert [v for (v,) in found] == [*NATIVE[kind], None]


def test_an_array_of_several_dimensions_keeps_its_shape(place: Place) -> None:
    columns = [Column("id", pa.int64(), "bigint", 1), Column("v", pa.string(), "text[]", 2)]
    schema = schema_of(columns)
    table = place.prepared(schema, Delivery(native_types=True))
    table.apply(net(schema, [{"id": 1, "v": '[["a","b,\\"\\\\"],[null,"null"]]'}]), at(1))
    assert place.rows("select v from shop.customers") == [([["a", 'b,"\\'], [None, "null"]],)]


def test_a_wish_for_another_type_is_fulfilled(place: Place) -> None:
    schema = schema_of({"id": pa.int64(), "tags": pa.list_(pa.string()), "name": pa.string()})
    wished = {"tags": "jsonb", "name": "varchar(5)", "id": "integer"}
    with pytest.raises(DestinationError, match="integer cannot hold every int64"):
        place.prepared(schema, Delivery(types=wished))
    del wished["id"]
    table = place.prepared(schema, Delivery(types=wished))
    table.apply(net(schema, [{"id": 1, "tags": ["a", None], "name": "Ann"}]), at(1))
    assert place.rows() == [(1, ["a", None], "Ann")]
