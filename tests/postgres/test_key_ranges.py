"""Ranges of a key mean the same rows to the server and to the engine, for every type they know."""

from __future__ import annotations

import pyarrow as pa
import pytest

from headrace.connectors.postgres.catalog import TypeCatalog
from headrace.connectors.postgres.ranges import cut, in_range, key_ranges, range_column
from headrace.connectors.postgres.schemas import SchemaRegistry
from headrace.engine.key_ranges import places
from headrace.model import TableId
from headrace.testing.database import Database

KEYS = {
    "smallint": "(g * 7919 % 65536 - 32768)::smallint",
    "integer": "(hashint4(g))",
    "bigint": "(hashint8(g)::bigint << 31)",
    "uuid": "md5(g::text)::uuid",
    "date": "date '2024-02-29' + (g * 7919 % 400000 - 200000)",
    "timestamp(3)": "timestamp '2024-02-29 12:00:00.125' + (g * 997) * interval '1 minute'",
    "timestamptz": "timestamptz '1969-12-31 23:59:59.999999+00' + (g - 500) * interval '1.25 s'",
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_row_is_in_the_range_that_the_server_reads_it_in(database: Database, kind: str) -> None:
    table = TableId("public", "Big")
    database.execute(f'create table "Big" ("the Key" {kind}, n int, primary key ("the Key", n))')
    rows = f"select {KEYS[kind]}, g from generate_series(1, 1000) g order by 1"
    database.execute(f'insert into "Big" {rows}')
    with database.connect() as session:
        types = TypeCatalog.read(session)
        registry = SchemaRegistry(database.connect, "p", {}, [table])
        schema = registry.of_table(session, types, table).schema
        column = range_column(schema)
        assert column is not None
        relation = 'ONLY "Big"'
        ranges = key_ranges(session, schema, relation, (10, 1 << 20), 100_000)
        assert len(ranges) > 2
        assert ranges[0].low is ranges[-1].high is None
        for number, keys in enumerate(ranges):
            found = session.execute(
                f'select "the Key"::text from {relation} where {in_range(column, keys)}'
            ).fetchall()
            assert found
            texts = pa.array([text for (text,) in found], pa.string())
            assert set(places(ranges, pa.table({"k": texts.cast(column.type)}))) == {number}


@pytest.mark.parametrize(
    ("definition", "above"),
    [
        ("id text primary key", 1),
        ("id numeric(9) primary key", 1),
        ("id int", 1),
        ("id int primary key", 1 << 30),
    ],
    ids=["text depends on collations", "numeric", "no key", "small"],
)
def test_other_tables_are_copied_whole(database: Database, definition: str, above: int) -> None:
    table = TableId("public", "t")
    database.execute(f"create table t ({definition})")
    database.execute("insert into t select g from generate_series(1, 1000) g")
    with database.connect() as session:
        types = TypeCatalog.read(session)
        schema = SchemaRegistry(database.connect, "p", {}, [table]).of_table(session, types, table)
        assert key_ranges(session, schema.schema, "t", (10, 1 << 20), above) == ()


def test_keys_that_lie_scattered_are_cut_into_fewer_ranges() -> None:
    """Each range costs the pages that it is found on."""
    together = [(n // 100, str(n)) for n in range(10_000)]
    scattered = [(n % 100, str(n)) for n in range(10_000)]
    assert len(cut(together, 64)) == 64
    assert len(cut(scattered, 64)) == 4
    assert cut([(1, "7")] * 10, 4) == ()
    assert cut([], 4) == ()
