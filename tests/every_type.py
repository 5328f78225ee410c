"""Columns of every type that an ordinary application has, with values easy to get wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TYPES = """
create type mood as enum ('sad', 'glad', 'it''s "complicated", really');
create domain price as numeric(12, 2) check (value >= 0);
create domain label as text;
create type pair as (a int, b text);
create extension hstore;
create domain labels as hstore;
create domain day as date;
create domain age as timestamptz;
create type nest as (one pair, "Many" pair[], day date, at timestamptz, grid int[][], tags labels);
"""

# Column type, and literals that are easy to get wrong; NULL comes by itself.
COLUMNS: dict[str, tuple[str, ...]] = {
    "bool": ("true", "false"),
    "int2": ("-32768", "32767"),
    "int4": ("-2147483648", "2147483647"),
    "int8": ("-9223372036854775808", "9223372036854775807"),
    "float4": ("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "3.4028235e38", "1e-45", "0.1"),
    "float8": ("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "5e-324", "1.7976931348623157e308"),
    "numeric(38,10)": ("'9999999999999999999999999999.9999999999'", "-0.0000000001", "1.5"),
    "numeric(5,0)": ("99999", "-99999", "0"),
    "numeric(50,20)": ("1e29", "0.00000000000000000001"),
    "numeric": (
        *("'NaN'", "'Infinity'", "1e200", "1.10", "0.000", "-12345678901234567890.123456789"),
        f"-{'9' * 600}.{'3' * 400}",
    ),
    "text": ("''", "' '", r"E'a\tb\nc\\d''\"'", "'NULL'", r"'\N'", "'ẞßſ e\u0301 \U0001f980'"),
    "varchar(10)": ("''", "'ten chars!'", "'\U0010ffff'"),
    "char(6)": ("''", "'ab'", "'abcdef'"),
    '"char"': ("'x'",),
    "bytea": (r"'\x'", r"'\x00ff0a5c27'", r"'\xdeadbeef'"),
    "date": ("'0001-01-01'", "'9999-12-31'", "'1970-01-01'", "'2000-02-29'"),
    "time": ("'00:00'", "'23:59:59.999999'", "'24:00'"),
    "timetz": ("'12:00:00.5+05:30'", "'00:00-11'"),
    "timestamp": ("'0001-01-01'", "'9999-12-31 23:59:59.999999'", "'1969-12-31 23:59:59.999999'"),
    "timestamptz": ("'1900-01-01 00:00+00'", "'2038-01-19 03:14:08.000001+02'"),
    "interval": ("'0'", "'1 year -2 mons 3 days -04:05:06.789'", "'-1 day +1 sec'"),
    "uuid": ("'00000000-0000-0000-0000-000000000000'", "'FFFFFFFF-ffff-4fff-bfff-ffffffffffff'"),
    "json": ("""'{"b" : 1,  "a":null, "a": 2}'""", "'null'", """'"\\u00e9"'"""),
    "jsonb": ("""'{"b" : 1.10, "a":[null, "x\\"y"]}'""", "'null'", "'[]'"),
    "mood": ("'sad'", "'it''s \"complicated\", really'"),
    "price": ("0", "1234567890.12"),
    "label": ("''", "'x'"),
    "inet": ("'10.0.0.1'", "'10.0.0.0/8'", "'::1'"),
    "cidr": ("'10.0.0.0/8'",),
    "macaddr": ("'08:00:2b:01:02:03'",),
    "int4range": ("'empty'", "'[1,5)'", "'(,)'"),
    "tstzrange": ("'[2020-01-01 00:00+00,)'",),
    "bit(3)": ("B'101'",),
    "tsvector": ("'a:1 fat:2'",),
    "point": ("'(1.5,-2)'",),
    "int4[]": ("'{}'", "'{1,NULL,-3}'"),
    "text[]": ("'{}'", """'{NULL,"NULL","",a b,"q\\"u\\\\o,te","{}"}'""", "'{\U0001f980}'"),
    "float8[]": ("'{NaN,-Infinity,0.1,NULL}'",),
    "numeric(10,2)[]": ("'{1.50,NULL}'",),
    "timestamptz[]": ("'{2020-01-01 00:00:00.000001+00,NULL}'",),
    "bytea[]": (r"""'{"\\x00ff",NULL}'""",),
    "uuid[]": ("'{11111111-2222-3333-4444-555555555555}'",),
    "mood[]": ("'{sad,NULL}'",),
    "bool[]": ("'{t,f,NULL}'",),
    "int4[][]": ("'{{1,2},{3,NULL}}'", "'{}'"),
    "text[][]": ("""'{{a,"b,c"},{NULL,"d\\"e"}}'""",),
}

# What psycopg does not read as what it is: types made of others, and bounds and times of any kind.
NESTED: dict[str, tuple[str, ...]] = {
    "pair": (r"""'(1,"a,\"b\"")'""",),
    "pair[]": (r"""'{"(1,\"a \"\"b, {}\")",NULL,"(,)"}'""", "'{}'"),
    "nest": (
        "'(,,,,,)'",
        r"""'("(1,""a, \\b"")","{""(1,x)"",NULL}",2020-02-29,2020-01-01 00:00:00.5+00,,)'""",
        """row((null, ''), '{}', '0044-03-15 BC', '12345-01-01 00:00+00', '{{1},{2}}', 'a=>1')""",
    ),
    "hstore": ("''", r"""'a=>1, "b, =>"=>NULL, "\"q\\"=>"NULL"'"""),
    "labels": ("'a=>1'",),
    "int8[][]": ("'[0:1]={1,2}'", "'[2:2][-1:-1]={{7}}'", "'{1,2}'"),
    "nest[]": ("array[row(null, null, '4714-11-24 BC', null, null, 'a=>NULL')::nest, null]",),
    "day": ("'4714-11-24 BC'", "'5874897-12-31'", "'0001-12-31 BC'"),
    "age": ("'4714-11-24 00:00+00 BC'", "'294247-01-10 04:00:54.775807+00'", "'10000-01-01'"),
    "age[]": ("'{0044-03-15 12:00:00.5+00 BC,NULL}'",),
    "daterange": ("'(,infinity]'",),
}

Columns = Mapping[str, Sequence[str]]


def column_names(columns: Columns = COLUMNS) -> list[str]:
    return [f"c{number}" for number in range(len(columns))]


def rows(first_id: int, columns: Columns = COLUMNS) -> str:
    """INSERT of rows that show every literal, and one row of NULLs."""
    depth = max(map(len, columns.values()))
    lines = [
        ", ".join(literals[i] if i < len(literals) else "NULL" for literals in columns.values())
        for i in range(depth + 1)
    ]
    values = ", ".join(f"({first_id + i}, {line})" for i, line in enumerate(lines))
    return f"insert into everything values {values}"
