"""Random tables: whatever the types side by side, stream and snapshot agree on every row.

Tables are drawn until a budget of time is spent, `HEADRACE_SECONDS` or a few. A failure tells the
seed that it came from; `HEADRACE_SEED=…` begins with that one.
"""

from __future__ import annotations

import itertools
import os
import secrets
import time

import pyarrow as pa
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from psycopg import sql
from typed_columns import Reader, identical

from headrace.connectors.postgres.catalog import TypeCatalog, read_table_schema
from headrace.connectors.postgres.copy_out import copy_out
from headrace.model import TableId

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


def _bits(width: int) -> st.SearchStrategy[str]:
    return st.integers(-(1 << width - 1), (1 << width - 1) - 1).map(str)


# Literals by declared type. Dates and times are offsets from a start, over all that Arrow holds.
LITERALS: dict[str, st.SearchStrategy[str]] = {
    "bool": st.sampled_from(["t", "f"]),
    "int2": _bits(16),
    "int4": _bits(32),
    "int8": _bits(64),
    "float4": st.floats(width=32).map(repr),
    "float8": st.floats().map(repr),
    "numeric(20,5)": st.decimals(-(10**14), 10**14, places=5).map(str),
    "numeric(38,0)": st.integers(-(10**38) + 1, 10**38 - 1).map(str),
    "numeric": st.decimals(allow_nan=True).map(lambda d: str(d).replace("sNaN", "NaN").lstrip("-"))
    | st.integers(10**999, 10**1000).map(str),
    "text": TEXT,
    "varchar(30)": TEXT,
    "char(30)": TEXT,
    "bytea": st.binary(max_size=30).map(lambda value: "\\x" + value.hex()),
    "jsonb": TEXT.map(lambda value: '{"k": "' + "".join(filter(str.isalnum, value)) + '"}'),
    "uuid": st.uuids().map(str),
    "inet": st.ip_addresses().map(str),
    "date": st.integers(0, 5_000_000).map(lambda days: f"J{days}"),
    "time": st.times().map(str),
    "timestamp": st.integers(0, 5_000_000).map(lambda days: f"J{days} 12:34:56.000789"),
    "timestamptz": st.datetimes().map(lambda moment: f"{moment.isoformat()}+00"),
    "int4[]": st.lists(_bits(32) | st.just("NULL"), max_size=4).map(lambda v: f"{{{','.join(v)}}}"),
}


Table = tuple[list[str], list[list[str | None]]]  # types of its columns, and rows of literals

BUDGET = 3.0  # seconds


@st.composite
def tables(draw: st.DrawFn) -> Table:
    types = draw(st.lists(st.sampled_from(sorted(LITERALS)), min_size=1, max_size=8))
    row = st.tuples(*(st.none() | LITERALS[declared] for declared in types)).map(list)
    return types, draw(st.lists(row, max_size=12))


def test_random_tables_come_the_same_by_stream_and_snapshot(columns: Reader) -> None:
    first = int(os.environ.get("HEADRACE_SEED") or secrets.randbits(32))
    until = time.monotonic() + float(os.environ.get("HEADRACE_SECONDS") or BUDGET)
    for number in itertools.count(first):

        @seed(number)
        @settings(max_examples=20, deadline=None, database=None)
        @given(table=tables())
        def agree(table: Table) -> None:
            assert_same_by_both_ways(columns, *table)

        try:
            agree()
        except BaseException as error:
            error.add_note(f"to see it again: HEADRACE_SEED={number}")
            raise
        if time.monotonic() > until:
            return


def assert_same_by_both_ways(
    columns: Reader, declared: list[str], rows: list[list[str | None]]
) -> None:
    names = [f'C "{number}"' for number in range(len(declared))]
    name = f"random_{next(columns.numbers)}"
    definition = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind))
        for column, kind in zip(names, declared, strict=True)
    )
    session = columns.session
    session.execute(sql.SQL("create table {} ({})").format(sql.Identifier(name), definition))
    with session.cursor().copy(f"copy {name} from stdin") as copy:
        for row in rows:
            copy.write_row(row)
    described = read_table_schema(session, TypeCatalog.read(session), TableId("public", name))
    assert described.schema.names == tuple(names)

    result = session.execute(f"select * from {name}").pgresult
    assert result is not None
    assert result.ntuples == len(rows)
    selected = ", ".join(
        mapped.select(sql.Identifier(column).as_string(session))
        for mapped, column in zip(described.mappings, names, strict=True)
    )
    wanted = [mapped.wanted for mapped in described.mappings]
    batches = list(copy_out(session, f"select {selected} from {name}", wanted))
    assert sum(batch.rows for batch in batches) == len(rows)
    for number, mapped in enumerate(described.mappings):
        texts = [result.get_value(row, number) for row in range(result.ntuples)]
        streamed = mapped.from_text(pa.array(texts, pa.binary()))
        for batch in batches:  # one, unless there are no rows
            assert identical(streamed, mapped.from_copy(batch.columns[number])), declared[number]
        assert [row[number] is None for row in rows] == streamed.is_null().to_pylist()
