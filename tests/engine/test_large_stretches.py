"""A stretch of the log that memory does not hold gives the table that it gives in one piece."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast
from unittest import mock

import large_transaction_child
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_history import BEGAN, DEFAULT, FULL, LIVES, Model, Transaction, batches_of, played

from headrace.connectors.delta.destination import DeltaDestination
from headrace.engine import parting, table_state
from headrace.engine.shaping import snapshot_schema
from headrace.engine.stretches import StretchApplier
from headrace.engine.table_state import Phase, Stretch, TableState, TableTarget
from headrace.log import LogFile, LogReader, SnapshotEvent
from headrace.model import (
    ChangeBatch,
    ChangeFeed,
    Checkpoint,
    Lsn,
    Metadata,
    Mode,
    OnDelete,
    Shape,
    TableFormat,
    TableSchema,
)

LOG_ID = "5d0d2f0e-54a0-4f7c-8a92-1f4a1c8a0001"
FIRST = {key: {"id": key, "n": 0, "doc": f"first {key}"} for key in (1, 2)}
TOLD = (Metadata.LSN, Metadata.OP)
SHAPES = {
    "state": Shape(),
    "told": Shape(metadata=TOLD),
    "marked": Shape(metadata=TOLD, on_delete=OnDelete.MARK),
    "kept": Shape(on_delete=OnDelete.IGNORE),
    "history": Shape(Mode.SCD2),
    "tracked": Shape(Mode.SCD2, track=("n",)),
    "changes": Shape(Mode.APPEND),
}


class FewFiles:
    """A log's reader of files that a test made."""

    def __init__(self, schemas: Iterable[TableSchema]) -> None:
        self.schemas = {schema.version: schema for schema in schemas}
        self.batches: dict[str, ChangeBatch] = {}

    def keep(self, batch: ChangeBatch, lsns: tuple[int, int]) -> LogFile:
        path = f"{len(self.batches)}.parquet"
        self.batches[path] = batch
        first, last = map(Lsn, lsns)
        table, version = batch.schema.table, batch.schema.version
        return LogFile(path, table, version, batch.num_rows, {}, first, last, 100 * batch.num_rows)

    def schema(self, table: Any, version: int) -> TableSchema:
        return self.schemas[version]

    def read_all(self, files: Sequence[LogFile]) -> list[ChangeBatch]:
        return [self.batches[file.path] for file in files]


class Kept:
    """A Delta table that takes a life as one stretch, whole or in parts of a few changes."""

    def __init__(self, root: Path, shape: Shape, schema: TableSchema, layout: TableFormat) -> None:
        place = DeltaDestination(str(root / "lake"))
        table = place.table(schema.table, "p", shape, layout=layout)
        self.path = root / "lake" / schema.table.schema / schema.table.name
        event = SnapshotEvent(schema.table, Lsn(1), 1, (), taken_at=BEGAN)
        pq.write_table(pa.Table.from_pylist([*FIRST.values()], schema.arrow()), root / "s.parquet")
        at = Checkpoint(LOG_ID, 1, Lsn(1))
        table.load(snapshot_schema(schema, shape, event), [str(root / "s.parquet")], at)
        target = TableTarget(schema.table, table, None, shape)
        self.state = TableState(target, at, 0, Phase.STREAMING, schema_version=1)

    def take(self, reader: FewFiles, stretch: Sequence[Stretch]) -> None:
        applier = StretchApplier(cast(LogReader, reader), lambda state: None)
        applier.apply(self.state, stretch)

    def rows(self) -> Counter[Any]:
        found = QueryBuilder().register("t", DeltaTable(self.path)).execute("select * from t")
        return Counter(repr(row) for row in pa.table(found).to_pylist())

    def versions(self) -> int:
        return DeltaTable(self.path).version()


def stretch_of(reader: FewFiles, transactions: Sequence[Transaction], schema: Any) -> list[Stretch]:
    """One commit for each three transactions, and one file for each."""
    made = []
    batches = zip(transactions, batches_of(transactions, schema), strict=True)
    files = [reader.keep(batch, (tx.lsn, tx.lsn)) for tx, batch in batches if batch.num_rows]
    for number, start in enumerate(range(0, len(files), 3), start=2):
        few = tuple(files[start : start + 3])
        first, last = few[0].first_lsn, few[-1].last_lsn
        assert first is not None
        assert last is not None
        made.append(Stretch(number, Lsn(int(first) - 1), last, None, few))
    return made


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=12, deadline=None)
@given(
    life=LIVES,
    full=st.booleans(),
    rows=st.integers(1, 4),
    feed=st.sampled_from(["off", "rows", "images"]),
    vectors=st.booleans(),
)
def test_10_5_6_any_life_in_parts_gives_the_table_that_it_gives_at_once(
    name: str, life: Any, full: bool, rows: int, feed: str, vectors: bool
) -> None:
    """Invariants 4, 5, 6 and 10: whatever a part ends between, a value that a later one did not
    send is found, and no version comes of it that no transaction wrote."""
    model, schema, shape = Model(), FULL if full else DEFAULT, SHAPES[name]
    model.rows = {key: dict(row) for key, row in FIRST.items()}
    model.versions = [[key, BEGAN, None, row] for key, row in model.rows.items()]
    told = list(played(life, model, full=full))
    lived = [Transaction(tx.lsn + 1, tx.time, tx.changes) for tx in told]
    layout = TableFormat(deletion_vectors=vectors, change_feed=ChangeFeed(feed))
    with tempfile.TemporaryDirectory() as folder:
        tables = []
        for number in range(2):
            root = Path(folder) / str(number)
            root.mkdir()
            tables.append(Kept(root, shape, schema, layout))
        whole, parted = tables
        reader = FewFiles([schema])
        stretch = stretch_of(reader, lived, schema)
        if not stretch:
            return
        whole.take(reader, stretch)
        with (
            mock.patch.object(table_state, "STRETCH_ROWS", 0),
            mock.patch.object(parting, "PART_ROWS", rows),
        ):
            parted.take(reader, stretch)
        assert parted.rows() == whole.rows()
        assert parted.state.checkpoint == whole.state.checkpoint
        assert parted.state.applied_rows == whole.state.applied_rows
        if name == "state":
            assert parted.rows() == Counter(repr(row) for row in model.rows.values())


MEGABYTES = 600  # of values, once; collapsing them at once would hold them twice
PEAK_MEGABYTES = 300  # above what the process had before


def test_10_the_memory_of_a_transaction_is_that_of_a_part_of_it(tmp_path: Path) -> None:
    """Invariant 10, however little the size of its files tells."""
    child = large_transaction_child.__file__
    done = subprocess.run(
        [sys.executable, child, tmp_path, str(MEGABYTES)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = DeltaTable(tmp_path / "lake" / "public" / "wide")
    rows = QueryBuilder().register("t", found).execute("select count(*) from t")
    assert pa.table(rows).column(0)[0].as_py() == (MEGABYTES << 20) // 8192
    assert int(done.stdout) < PEAK_MEGABYTES
