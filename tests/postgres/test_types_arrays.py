"""Arrays come exactly: NULLs, quoting, escapes, nesting, by stream and snapshot alike."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from typed_columns import Reader, TypedColumn, identical

TRICKY: list[str | None] = [None, "", " ", "NULL", "null", "nULl", "\\", "\\\\", '"', '\\"', '""']
TRICKY += ["a,b", "{", "}", "{}", "{a,b}", "a;b", "'", " a ", "\t", "\n", "é", "☃", "🏔️", "NULL "]
TRICKY += ["\\n", 'a"b"c', "\\\\\\", "[0:1]={1}", "\x01\x7f\u0085\u00a0\u2028"]

# 4 MB in one value; a value that is only escapes
LARGE: list[list[str | None]] = [["☃\\🏔" * 400_000, None, "x"], ['\\"' * 200_000], ["\\" * 99_999]]


def _filled(columns: Reader, declared: str, values: list[Any]) -> TypedColumn:
    """Filled from Python values, so that the server makes the literals."""
    column = columns.column(declared, [])
    insert = sql.SQL("insert into {} (x) values (%s)").format(sql.Identifier(column.table))
    with columns.session.pipeline(), columns.session.cursor() as cursor:
        cursor.executemany(insert, [(value,) for value in values])
    return column


def test_text_arrays_are_the_lists_that_went_in(columns: Reader) -> None:
    values = [TRICKY, None, [], [None], [""], ["NULL"], *[[item] for item in TRICKY], *LARGE, []]
    values += [[left, right] for left in TRICKY for right in TRICKY]
    column = _filled(columns, "text[]", values)
    assert column.streamed().to_pylist() == values
    assert identical(column.streamed(), column.copied())


@pytest.fixture(scope="session")
def text_array(columns: Reader) -> TypedColumn:
    return columns.column("text[]", [])


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
awkward = st.text('\\"{},; NULLnull\n☃🏔', max_size=6)
text_lists = st.none() | st.lists(st.none() | texts | awkward, max_size=5)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(text_lists, min_size=1, max_size=20))
def test_any_text_array_comes_back_as_it_went_in(
    columns: Reader, text_array: TypedColumn, values: list[list[str | None] | None]
) -> None:
    """Postgres prints the literals of random lists; they are read off one statement."""
    rows = sql.SQL(", ").join(
        sql.SQL("({}, {}::text[])").format(i, v) for i, v in enumerate(values)
    )
    query = sql.SQL("select x from (values {}) as v (i, x) order by i").format(rows)
    result = columns.session.execute(query).pgresult
    assert result is not None
    printed = pa.array([result.get_value(row, 0) for row in range(len(values))], pa.binary())
    assert text_array.mapping.from_text(printed).to_pylist() == values


@pytest.mark.parametrize(
    ("declared", "element", "values"),
    [
        ("int4[]", pa.int32(), ["{1,NULL,-3}", "{}", None, "{2147483647}", "{NULL}"]),
        ("bool[]", pa.bool_(), ["{t,f,NULL}", None, "{}"]),
        ("float8[]", pa.float64(), ["{NaN,-0,Infinity,1e-300}", "{}"]),
        ("numeric(8,2)[]", pa.decimal128(8, 2), ["{1.5,NULL,-999999.99}"]),
        ("numeric[]", pa.string(), ["{NaN,1.500}"]),
        ("bytea[]", pa.binary(), ['{"\\\\x00ff","\\\\x",NULL}', None, "{}"]),
        ("date[]", pa.date32(), ['{2024-01-01,"0044-03-15 BC",NULL}']),
        ("timestamp[]", pa.timestamp("us"), ['{"2024-01-01 12:00:00.5",NULL}', "{}"]),
        ("timestamptz[]", pa.timestamp("us", "UTC"), ['{"0044-03-15 12:00:00+00 BC"}']),
        ("char(3)[]", pa.string(), ["{a,NULL,abc}"]),
        ("varchar(3)[]", pa.string(), ["{a,NULL,abc}"]),
        ("inet[]", pa.string(), ["{1.2.3.4,::1/64}"]),
        ("jsonb[]", pa.string(), ['{"{\\"a\\": \\"☃,\\\\\\\\\\"}",NULL}']),
        ("interval[]", pa.string(), ['{"1 year 2 days",NULL}']),
        ("box[]", pa.string(), ["{(1,1),(0,0);(2,2),(1,1)}", "{NULL}"]),
        ("int4range[]", pa.string(), ['{"[1,5)",empty}']),
        ("oidvector[]", pa.string(), ['{"1 2",NULL}']),
    ],
)
def test_arrays_of_every_kind_are_lists_of_what_the_element_is(
    columns: Reader, declared: str, element: pa.DataType, values: list[str | None]
) -> None:
    column = columns.column(declared, [*values, None, *values])
    assert column.mapping.arrow == pa.list_(element)
    assert identical(column.streamed(), column.copied())
    element_texts = column.query("(select array_agg(e::text) from unnest(x) e)")
    lengths = [None if t is None else len(t) for t in element_texts]
    assert [v or None for v in column.streamed().value_lengths().to_pylist()] == lengths
    if element == pa.string() and declared not in ("char(3)[]", "inet[]"):  # whose ::text differs
        assert [v or None for v in column.streamed().to_pylist()] == element_texts


@pytest.mark.parametrize("declared", ["int8[]", "float8[]", "numeric(9,3)[]", "bool[]", "date[]"])
def test_lists_are_what_psycopg_reads(columns: Reader, declared: str) -> None:
    one = {"bool[]": "i % 2 = 0", "date[]": "date '1999-12-31' + i"}.get(declared, "i * 1.125")
    column = columns.column(declared, [None, "{}"])
    columns.session.execute(
        f"insert into {column.table} (x) select (select array_agg({one})"
        f" from generate_series(-n, n) i)::{declared} from generate_series(0, 50) n"
    )
    assert column.streamed().to_pylist() == column.query("x")
    assert identical(column.streamed(), column.copied())


def test_an_array_declared_with_more_dimensions_is_json(columns: Reader) -> None:
    cases: dict[str, list[tuple[str, Any]]] = {
        "int[][]": [("{{1,2},{3,NULL}}", [[1, 2], [3, None]]), ("{}", []), ("{7}", [7])],
        "bool[][]": [("{{t},{f}}", [[True], [False]])],
        "float8[][]": [("{{1.5,NaN},{-Infinity,1e300}}", [[1.5, "NaN"], ["-Infinity", 1e300]])],
        "text[][]": [
            ('{{"a\\"b","\\\\"},{NULL,"NULL"}}', [['a"b', "\\"], [None, "NULL"]]),
            ('{{"{☃}","🏔,"},{"", t}}', [["{☃}", "🏔,"], ["", "t"]]),
        ],
        "box[][]": [("{{(1,1),(0,0);(3,3),(2,2)}}", [["(1,1),(0,0)", "(3,3),(2,2)"]])],
        "date[][]": [("{{infinity},{2024-01-01}}", [["infinity"], ["2024-01-01"]])],
    }
    for declared, pairs in cases.items():
        column = columns.column(declared, [None, *(literal for literal, _ in pairs)])
        assert column.mapping.arrow == pa.string()
        assert identical(column.streamed(), column.copied())
        read = [v and json.loads(v) for v in column.streamed().to_pylist()]
        assert read == [None, *(value for _, value in pairs)]


def test_json_of_numbers_is_exact_digits(columns: Reader) -> None:
    column = columns.column("numeric[][]", ["{{1.500,12345678901234567890.5}}"])
    assert column.streamed().to_pylist() == ["[[1.500,12345678901234567890.5]]"]


def test_domains_over_arrays_and_arrays_of_domains_are_lists(columns: Reader) -> None:
    columns.session.execute(
        "create domain list_of_int as int[]; create domain grid as int[][];"
        " create domain price as numeric(6,2); create domain hue_domain as text;"
    )
    cases: list[tuple[str, pa.DataType, str]] = [
        ("list_of_int", pa.list_(pa.int32()), "{1,NULL}"),
        ("price[]", pa.list_(pa.decimal128(6, 2)), "{1.5,NULL}"),
        ("list_of_int[]", pa.list_(pa.list_(pa.int32())), '{"{1,2}",NULL,"{}"}'),
        ("hue_domain[]", pa.list_(pa.string()), '{"a,b",NULL}'),
        ("grid", pa.string(), "{{1,2},{3,4}}"),
    ]
    for declared, arrow, literal in cases:
        column = columns.column(declared, [literal, None])
        assert column.mapping.arrow == arrow
        assert identical(column.streamed(), column.copied())
    assert columns.column("list_of_int[]", [cases[2][2]]).streamed().to_pylist() == [
        [[1, 2], None, []]
    ]


def test_nan_in_a_list_is_one_nan(columns: Reader) -> None:
    (values,) = columns.column("float4[]", ["{NaN,1}"]).streamed().to_pylist()
    assert math.isnan(values[0])
    assert values[1] == 1
