"""Every type comes exactly, and the same by stream and snapshot (DESIGN §7, §12)."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from typed_columns import Reader, TypedColumn, identical

from headrace.connectors.postgres import types as pg_types
from headrace.connectors.postgres.catalog import TypeCatalog
from headrace.connectors.postgres.types import SCALARS, TEXTS, mapping
from headrace.errors import ConfigError, UnrepresentableValueError
from headrace.model.times import python_values
from headrace.pgcopy import CopiedColumn

US = pa.timestamp("us")
US_UTC = pa.timestamp("us", "UTC")
MEGABYTES = "☃🏔 \\ \" ' , {NULL}\t\n" * 250_000  # 6 MB of every awkward character
HEX = "\\x" + bytes(range(256)).hex() * 12_000  # 3 MB decoded
STRANGE = ["", " ", "NULL", "null", "\\", '"', "'", ",", "{}", "é", "☃", "🏔️", "\U0010ffff", "\\x41"]
STRANGE += ["\t\n\r\x01\x7f", "a" * 200, "t", "f", "infinity", "NaN"]

DATES = [
    "1970-01-01",
    "2024-02-29",
    "9999-12-31",
    "10000-01-01",
    "5874897-12-31",
    "0001-01-01",
    "0001-12-31 BC",
    "0005-02-29 BC",
    "0044-03-15 BC",
    "4714-11-24 BC",
]
TIMESTAMPS = [
    "1970-01-01 00:00:00",
    "2024-02-29 23:59:59.999999",
    "2000-01-01 00:00:00.1",
    "9999-12-31 23:59:59.999999",
    "10000-01-01 00:00:00",
    "0001-01-01 00:00:00",
    "0001-12-31 23:59:59.000001 BC",
    "0005-02-29 12:00:00 BC",
    "4714-11-24 00:00:00 BC",
    "294247-01-10 04:00:54.775807",
    "1969-12-31 23:59:59.999999",
]
TIMESTAMPTZ = [*TIMESTAMPS, "1970-01-01 00:00:00+02", "2024-06-01 12:00:00 Europe/Berlin"]

PAIR = pa.struct([("a", pa.int32()), ("b", pa.string())])
HSTORE = pa.map_(pa.string(), pa.string())
FLOATS = pa.list_(pa.float32())
NEST = pa.struct(
    [
        ("Int", pa.int64()),
        ("one", PAIR),
        ("many", pa.list_(PAIR)),
        ("grid", pa.string()),  # its own text
        ("labels", HSTORE),
        ("free", pa.string()),
    ]
)

EXACT: list[tuple[str, pa.DataType, list[str]]] = [
    ("bool", pa.bool_(), ["t", "f"]),
    ("int2", pa.int16(), ["-32768", "0", "32767"]),
    ("int4", pa.int32(), ["-2147483648", "0", "2147483647"]),
    ("int8", pa.int64(), ["-9223372036854775808", "0", "9223372036854775807"]),
    (
        "float4",
        pa.float32(),
        ["NaN", "Infinity", "-Infinity", "-0", "0", "1e-45", "3.4028235e+38", "0.1", "16777217"],
    ),
    (
        "float8",
        pa.float64(),
        ["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e+308", "0.1", "1e22"],
    ),
    ("numeric(12,2)", pa.decimal128(12, 2), ["0", "-0.01", "9999999999.99", "-9999999999.99"]),
    ("numeric(38,0)", pa.decimal128(38, 0), ["9" * 38, "-" + "9" * 38, "0"]),
    ("numeric(38,38)", pa.decimal128(38, 38), ["0." + "9" * 38, "-0." + "0" * 37 + "1"]),
    ("numeric(1,0)", pa.decimal128(1, 0), ["9", "-9", "0"]),
    ("numeric", pa.string(), ["NaN", "1.500", "1e400", "-Infinity", "0.0000"]),
    ("numeric(39,2)", pa.string(), ["9" * 37 + ".99", "NaN"]),
    ("numeric(3,-2)", pa.string(), ["12345", "NaN"]),
    ("numeric(2,4)", pa.string(), ["0.0012", "-0.0099"]),
    ("text", pa.string(), [*STRANGE, MEGABYTES]),
    ("varchar", pa.string(), [*STRANGE, MEGABYTES]),
    ("varchar(3)", pa.string(), ["", "abc", "🏔️", "é  "]),
    ("char(4)", pa.string(), ["", "a", "ab  ", "🏔️☃", "NULL"]),
    ("name", pa.string(), ["", "a", "é"]),
    ('"char"', pa.string(), ["", "a", "\\351", "\\"]),
    ("json", pa.string(), ['{"b" : 1,  "a":"☃","b":1.50}', "null", '"\\\\u0000"', "[]"]),
    ("jsonb", pa.string(), ['{"b" : 1,  "a":"☃","b":1.50}', "null", '"🏔️"', "[]"]),
    ("bytea", pa.binary(), ["\\x", "\\x00", "\\xff", "\\x5c78", "\\x" + "00ff" * 999, HEX]),
    ("date", pa.date32(), DATES),
    ("timestamp", US, TIMESTAMPS),
    ("timestamp(0)", US, ["2024-02-29 23:59:59.6", "0044-03-15 12:00:00.4 BC"]),
    ("timestamptz", US_UTC, TIMESTAMPTZ),
    ("time", pa.string(), ["00:00:00", "24:00:00", "12:30:00.000001"]),
    ("timetz", pa.string(), ["12:00:00+05:30", "24:00:00-12"]),
    ("interval", pa.string(), ["1 year 2 mons -3 days 04:05:06.7", "0", "-1 mon"]),
    ("uuid", pa.string(), ["00000000-0000-0000-0000-000000000000", "F" * 32]),
    ("money", pa.string(), ["1234.5", "-0.01"]),
    ("inet", pa.string(), ["1.2.3.4", "1.2.3.4/24", "::1", "::1/64"]),
    ("cidr", pa.string(), ["1.2.3.0/24", "1.2.3.4", "::/0"]),
    ("macaddr", pa.string(), ["08:00:2b:01:02:03"]),
    ("macaddr8", pa.string(), ["08:00:2b:01:02:03:04:05"]),
    ("bit(3)", pa.string(), ["101", "000"]),
    ("varbit", pa.string(), ["", "1", "1" * 99]),
    ("int4range", pa.string(), ["empty", "[1,5)", "(,)", "[3,]"]),
    ("tstzrange", pa.string(), ["[2024-01-01 00:00+00,infinity)"]),
    ("int4multirange", pa.string(), ["{}", "{[1,3),[5,9)}"]),
    ("tsvector", pa.string(), ["'a':1A 'b,c':2", ""]),
    ("tsquery", pa.string(), ["'a' & !'b'"]),
    ("oid", pa.string(), ["0", "4294967295"]),
    ("point", pa.string(), ["(1.5,-0)"]),
    ("pg_lsn", pa.string(), ["16/B374D848"]),
    ("int2vector", pa.string(), ["1 2 3"]),
    ("mood", pa.string(), ["sad", 'it\'s, "ok"', "NULL"]),
    ("pair", PAIR, ['(1,"a b")', "(,)", '(1,"")', '(-1,"\\"a, \\\\(b)""{")', "(,NULL)"]),
    ("pair[]", pa.list_(PAIR), [r'{"(1,\"a \"\"b\")",NULL,"(,)"}', "{}"]),
    ("single", pa.struct([("x", pa.string())]), ["()", '("")', "(a)", '("""")']),
    ("nothing", pa.string(), ["()"]),
    ("hstore", HSTORE, ["", "a=>1", 'a=>"1, =>2",b=>NULL,"\\"c\\\\"=>"NULL"', '""=>" "']),
    ("hstore[]", pa.list_(HSTORE), ['{"\\"a\\"=>\\"1\\"",NULL,""}']),
    ("vector", FLOATS, ["[1,-2.5,1e-45]", "[0.1]"]),
    ("vector(3)", FLOATS, ["[1,2,3]"]),
    ("halfvec", FLOATS, ["[0.1,65504]"]),
    ("sparsevec", pa.string(), ["{1:1,3:2}/5"]),
    ("citext", pa.string(), ["Aa", ""]),
    ("ltree", pa.string(), ["a.b.c", ""]),
    ("cents", pa.decimal128(5, 2), ["1.5", "-999.99"]),
    ("small_cents", pa.decimal128(5, 2), ["1.5", "-9.99"]),
    ("short", pa.string(), ["abc", ""]),
    ("mood_domain", pa.string(), ["sad"]),
    ("pair_domain", PAIR, ["(1,a)"]),
    ("labels", HSTORE, ["a=>1"]),
    ("nest", NEST, ['(1,"(2,""a, b"")","{""(1,x)"",NULL}","{{1,2},{3,4}}","""k""=>NULL",0.10)']),
    ("nest", NEST, ["(,,,,,)", '(,"(,)",{},{},,NaN)']),
    ("stamp", US_UTC, ["2024-01-01 00:00:00+00", "0044-03-15 12:00:00+00 BC"]),
]

USER_TYPES = """
create type mood as enum ('sad', 'it''s, "ok"', 'NULL');
create type pair as (a int, b text);
create type single as (x text);
create type nothing as ();
create extension if not exists hstore;
create extension if not exists citext; create extension if not exists ltree;
create domain labels as hstore;
create type nest as
    ("Int" int8, one pair, many pair[], grid int[][], labels labels, free numeric);
create domain cents as numeric(5,2);
create domain small_cents as cents check (value < 10);
create domain short as varchar(3);
create domain mood_domain as mood;
create domain pair_domain as pair;
create type stamped as (d date);
create domain stamp as timestamptz;
create domain numbers as int[];
create domain matrix as int[][];
"""


@pytest.fixture(scope="session")
def typed(columns: Reader) -> Reader:
    columns.session.execute(USER_TYPES.encode())
    if has_vector(columns):
        columns.session.execute("create extension if not exists vector")
    return columns


def has_vector(columns: Reader) -> bool:
    """Which not every build has."""
    offered = "select true from pg_available_extensions where name = 'vector'"
    return columns.session.execute(offered).fetchone() is not None


OF_PGVECTOR = ("vector", "vector(3)", "halfvec", "sparsevec")
# Infinity, multiranges; scales that are negative or beyond the precision.
SINCE = {"numeric": 14, "int4multirange": 14, "numeric(3,-2)": 15, "numeric(2,4)": 15}


@pytest.fixture(params=EXACT, ids=[declared for declared, _, _ in EXACT])
def exact(request: pytest.FixtureRequest, typed: Reader) -> TypedColumn:
    declared, arrow, values = request.param
    too_old = typed.session.info.server_version // 10000 < SINCE.get(declared, 13)
    if too_old or (declared in OF_PGVECTOR and not has_vector(typed)):
        pytest.skip("this server has no such type, or no such value of it")
    column = typed.column(declared, [None, *values, None, *values, None])
    assert column.mapping.arrow == arrow
    return column


def test_stream_and_snapshot_give_one_and_the_same_array(exact: TypedColumn) -> None:
    streamed, copied = exact.streamed(), exact.copied()
    assert streamed.type == exact.mapping.arrow
    assert identical(streamed, copied)
    assert [v is None for v in exact.texts().to_pylist()] == streamed.is_null().to_pylist()


def test_text_columns_hold_what_the_server_prints(exact: TypedColumn) -> None:
    if exact.mapping.arrow == pa.string():
        assert exact.streamed().cast(pa.binary()).equals(exact.texts())


@pytest.mark.parametrize(
    ("declared", "values"),
    [(d, v) for d, a, v in EXACT if d[0] in "bifn" and a not in (pa.string(), NEST)],
)
def test_numbers_booleans_and_bytes_are_what_psycopg_reads(
    typed: Reader, declared: str, values: list[str]
) -> None:
    column = typed.column(declared, [*values, None])
    streamed = column.streamed().to_pylist()
    for value, expected in zip(streamed, column.query("x"), strict=True):
        exact = expected
        if column.mapping.arrow == pa.float32() and expected is not None:
            exact = np.float32(expected).item()  # psycopg reads the shortest digits as a double
        assert repr(value) == repr(exact)


def test_dates_of_all_ages_are_the_days_that_the_server_counts(typed: Reader) -> None:
    column = typed.column("date", _values("date"))
    assert column.streamed().view(pa.int32()).to_pylist() == column.query("x - date '1970-01-01'")


@pytest.mark.parametrize("declared", ["timestamp", "timestamptz"])
def test_timestamps_of_all_ages_are_the_microseconds_that_the_server_counts(
    typed: Reader, declared: str
) -> None:
    column = typed.column(declared, _values(declared))
    seconds = "extract(epoch from date_trunc('second', x))::int8 * 1000000"
    counted = column.query(f"{seconds} + extract(microseconds from x)::int8 % 1000000")
    assert column.streamed().view(pa.int64()).to_pylist() == counted


@pytest.mark.parametrize("declared", ["date", "timestamp", "timestamptz"])
def test_times_beyond_pythons_years_are_spelled_as_the_server_prints_them(
    typed: Reader, declared: str
) -> None:
    column = typed.column(declared, [*_values(declared), None])
    printed = [text and text.decode() for text in column.texts().to_pylist()]
    streamed = column.streamed()
    assert python_values(streamed) == printed
    early = next(text for text in printed if text and text.endswith("BC"))
    ages = typed.column(f"{declared}[]", [f'{{"{early}",NULL}}'])
    assert python_values(pa.chunked_array([ages.streamed()])) == [[early, None]]
    ordinary = typed.column(declared, ["2024-02-29"]).streamed()
    assert python_values(ordinary) == ordinary.to_pylist()


def _values(declared: str) -> list[str]:
    return next(values for name, _, values in EXACT if name == declared)


def test_every_day_of_two_leap_cycles_is_right(typed: Reader) -> None:
    """Around year 0 and past 9999 no kernel helps: our own calendar against the server's."""
    column = typed.column("date", [])
    typed.session.execute(
        f"insert into {column.table} (x) select d + x from generate_series(0, 146100) x,"
        " (values (date '0401-01-01 BC'), (date '9990-01-01')) as start (d)"
    )
    streamed = column.streamed()
    assert identical(streamed, column.copied())
    assert streamed.view(pa.int32()).to_pylist() == column.query("x - date '1970-01-01'")


@pytest.mark.parametrize(
    ("declared", "good", "bad"),
    [
        ("date", "2024-01-01", ["infinity", "-infinity"]),
        ("timestamp", "2024-01-01", ["infinity", "-infinity", "294247-01-10 04:00:54.775808"]),
        ("timestamp", "0044-01-01 BC", ["294276-12-31 23:59:59.999999", "infinity"]),
        ("timestamptz", "2024-01-01", ["-infinity", "294250-06-01 12:00:00.5+00"]),
        ("numeric(5,2)", "1.5", ["NaN"]),
        ("date[]", "{2024-01-01}", ["{2024-01-01,infinity}"]),
        ("numeric(5,2)[]", "{1.5,NULL}", ["{1.50,NaN}"]),
        ("int[]", "{1,2}", ["{{1,2},{3,4}}", "[0:1]={1,2}", "[2:2][0:0]={{1}}"]),
        ("stamped", "(2024-01-01)", ["(infinity)"]),
        ("stamped[]", "{(2024-01-01),NULL}", ["{(2024-01-01),(-infinity)}"]),
    ],
)
def test_a_value_that_arrow_cannot_hold_is_refused_by_both_ways(
    typed: Reader, declared: str, good: str, bad: list[str]
) -> None:
    for value in bad:
        column = typed.column(declared, [good, None, good, value, good, value])
        for read in (column.streamed, column.copied):
            with pytest.raises(UnrepresentableValueError) as caught:
                read()
            told = caught.value.context
            assert (told["row"], told["count"], told["value"]) == (3, 2, value)
            assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_text_that_is_not_utf8_is_refused() -> None:
    """A SQL_ASCII database may hold any bytes, in text and in arrays of it."""
    catalog = TypesOf(
        pg_types.PgType(25, "pg_catalog", "text"),
        pg_types.PgType(1009, "pg_catalog", "_text", element=25),
    )
    for oid in (25, 1009):
        with pytest.raises(UnrepresentableValueError, match="row 1 "):
            mapping(oid, -1, catalog).from_text(pa.array([b"{a}", b"{\xff}"], pa.binary()))
    unchecked = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.string())
    with pytest.raises(UnrepresentableValueError, match="row 1 "):
        mapping(25, -1, catalog).from_copy(CopiedColumn(unchecked))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bytea", "\\x0"),
        ("bytea", "ab"),
        ("bytea", "\\xzz"),
        ("bool", "true"),
        ("int4", "1.5"),
        ("int2", "32768"),
        ("float8", "1,5"),
        ("date", "01/02/2024"),
        ("date", "01-02-2024"),
        ("timestamp", "2024-01-01 00:00:00.1234567"),
        ("timestamptz", "2024-01-01 12:00:00"),
    ],
)
def test_text_of_a_session_that_is_not_pinned_is_refused(name: str, text: str) -> None:
    catalog = TypesOf(pg_types.PgType(1, "pg_catalog", name))
    with pytest.raises(UnrepresentableValueError, match="cannot hold"):
        mapping(1, -1, catalog).from_text(pa.array([text]))


def test_a_long_refused_value_is_shortened() -> None:
    catalog = TypesOf(pg_types.PgType(1, "pg_catalog", "int8"))
    with pytest.raises(UnrepresentableValueError) as caught:
        mapping(1, -1, catalog).from_text(pa.array(["9" * 10_000]))
    assert len(str(caught.value)) < 1000


def test_slices_of_a_column_cast_like_the_whole(exact: TypedColumn) -> None:
    whole, texts = exact.streamed(), exact.texts()
    for start in range(0, len(texts), 3):
        assert identical(exact.mapping.from_text(texts.slice(start, 3)), whole.slice(start, 3))
    assert identical(exact.mapping.from_text(texts.slice(0, 0)), whole.slice(0, 0))
    nulls = pa.nulls(3, pa.string())
    assert identical(exact.mapping.from_text(nulls), pa.nulls(3, exact.mapping.arrow))


def test_a_mapping_crosses_processes(exact: TypedColumn) -> None:
    again = pickle.loads(pickle.dumps(exact.mapping))
    assert identical(again.from_text(exact.texts()), exact.streamed())


def test_negative_nan_of_the_server_is_the_one_nan(typed: Reader) -> None:
    """The binary format keeps a NaN's bits, which differ by how it came to be."""
    for declared in ("float4", "float8"):
        column = typed.column(declared, [])
        for nan in (f"'NaN'::{declared}", f"-('NaN'::{declared})", "0", "null"):
            typed.session.execute(f"insert into {column.table} (x) values ({nan})")
        assert identical(column.streamed(), column.copied())


def test_random_values_of_the_server_come_the_same_by_both_ways(typed: Reader) -> None:
    """Values that the server makes, over the full range of each type."""
    whole = "(random() * 2 - 1)"
    made = {
        "float8": f"({whole} * pow(10, random() * 600 - 300))::float8",
        "float4": f"({whole} * pow(10, random() * 70 - 35))::float4",
        "int8": f"({whole} * 9e18)::int8",
        "numeric(30,9)": f"{whole} * 1e20",
        "date": f"date '1970-01-01' + ({whole} * 2e6)::int",
        "timestamp": f"timestamp '1970-01-01' + {whole} * interval '5000 years'",
        "timestamptz": f"timestamptz '1970-01-01' + {whole} * interval '200 years'",
        "bytea": "sha256(random()::text::bytea)",
        "uuid": "gen_random_uuid()",
    }
    for declared, expression in made.items():
        column = typed.column(declared, [None])
        typed.session.execute(
            f"insert into {column.table} (x) select {expression} from generate_series(1, 2000)"
        )
        streamed = column.streamed()
        assert len(streamed) == 2001
        assert identical(streamed, column.copied()), declared


def test_ordinary_times_are_what_psycopg_reads(typed: Reader) -> None:
    start = datetime(2024, 2, 28, 23, 0, 0, 999_990, UTC)
    moments = [start + timedelta(hours=i, microseconds=i) for i in range(100)]
    cases: list[tuple[str, list[Any]]] = [
        ("timestamptz", moments),
        ("timestamp", [moment.replace(tzinfo=None) for moment in moments]),
        ("date", [date(1999, 12, 31) + timedelta(days=i) for i in range(100)]),
    ]
    for declared, expected in cases:
        column = typed.column(declared, [str(value) for value in expected])
        assert column.streamed().to_pylist() == expected


@pytest.mark.parametrize(
    ("declared", "value", "printed"),
    [
        ("interval", "-infinity", "-infinity"),
        ("xml", '<?xml version="1.0" encoding="UTF-8"?><a b="☃">&lt;</a>', '<a b="☃">&lt;</a>'),
    ],
)
def test_types_that_not_every_server_has_come_the_same_by_both_ways(
    typed: Reader, declared: str, value: str, printed: str
) -> None:
    try:
        column = typed.column(declared, [value, None])
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidDatetimeFormat):
        pytest.skip(f"this server has no such {declared}")
    assert column.streamed().to_pylist() == [printed, None]
    assert identical(column.streamed(), column.copied())


def test_a_type_can_be_overridden_by_string_and_numeric_by_a_decimal(typed: Reader) -> None:
    types = TypeCatalog.read(typed.session)
    stamp = typed.column("timestamptz", ["infinity", "2024-01-01 00:00:00+00", None])
    oid = stamp.described.type_oid
    as_text = mapping(oid, -1, types, read_as="text")
    assert as_text.from_text(stamp.texts()).to_pylist() == [
        "infinity",
        "2024-01-01 00:00:00+00",
        None,
    ]
    free = typed.column("numeric", ["1.5", None])
    as_decimal = mapping(free.described.type_oid, -1, types, read_as="decimal(10, 2)")
    assert as_decimal.from_text(free.texts()).to_pylist() == [Decimal("1.50"), None]
    with pytest.raises(UnrepresentableValueError):
        as_decimal.from_text(pa.array(["1.555"]))
    with pytest.raises(ConfigError):
        mapping(oid, -1, types, read_as="decimal(5,2)")


def test_as_text_takes_arrays_of_any_dimensions_and_bounds(typed: Reader) -> None:
    literals = ["{1,2}", "{{1,2},{3,NULL}}", "[0:1]={1,2}", "[2:2][0:0]={{7}}", "{}", None]
    column = typed.column("int[]", literals)
    types = TypeCatalog.read(typed.session)
    mapped = mapping(column.described.type_oid, -1, types, read_as="text")
    assert mapped.from_text(column.texts()).to_pylist() == [
        *("[1,2]", "[[1,2],[3,null]]", '{"[0:1]":[1,2]}', '{"[2:2][0:0]":[[7]]}', "[]", None)
    ]


def test_a_composite_that_has_other_fields_now_is_refused() -> None:
    """ALTER TYPE … ADD ATTRIBUTE rewrites no rows, and tells the stream nothing."""
    pair = TypesOf(
        pg_types.PgType(1, "public", "pair", relation=9), pg_types.PgType(25, "pg_catalog", "text")
    )
    mapped = mapping(1, -1, pair)
    assert mapped.from_text(pa.array(["(a,b)"])).to_pylist() == [{"a": "a", "b": "b"}]
    for text in ("(a)", "(a,b,c)"):
        with pytest.raises(UnrepresentableValueError, match="row 1 "):
            mapped.from_text(pa.array(["(a,b)", text]))


def test_geometry_of_postgis_is_its_ewkb() -> None:
    postgis = TypesOf(pg_types.PgType(1, "gis", "geometry", extension="postgis"))
    mapped = mapping(1, -1, postgis)
    texts = pa.array(["0101000020E610000000000000000000000000000000000000", None])
    point = bytes.fromhex(texts[0].as_py())
    assert mapped.from_text(texts).to_pylist() == [point, None]
    own = TypesOf(pg_types.PgType(1, "public", "geometry"))  # somebody's own type of that name
    assert mapping(1, -1, own).arrow == pa.string()


def test_every_type_that_the_server_has_is_mapped_on_purpose(typed: Reader) -> None:
    """But pseudo-types and catalogs' row types, of which no column is made."""
    found = typed.session.execute(
        "select typname from pg_type where typnamespace = 'pg_catalog'::regnamespace"
        " and typtype not in ('p', 'c') and typcategory <> 'A'"
    )
    known = {*SCALARS, "numeric", *" ".join(TEXTS.values()).split()}
    assert {name for (name,) in found} - known == set()


class TypesOf(dict[int, pg_types.PgType]):
    """A stand-in for a database's types."""

    def __init__(self, *types: pg_types.PgType) -> None:
        super().__init__({found.oid: found for found in types})

    def get(self, oid: int) -> pg_types.PgType:  # type: ignore[override]  # the catalog's own get
        return self[oid]

    def fields(self, composite: pg_types.PgType) -> list[pg_types.PgField]:
        return [pg_types.PgField(name, number, 25, -1, 0) for number, name in enumerate("ab", 1)]
