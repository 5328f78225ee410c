"""What Postgres reads of a table to apply a batch: the rows of the batch, whatever stands there.

Plans that read the whole table for each part of a large transaction take minutes, not seconds.
"""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
from target_place import Place, at, net, schema_of

from headrace.model import Fill

SCHEMA = schema_of({"id": pa.int64(), "n": pa.int32(), "v": pa.string()})
STANDING, BATCH = 300_000, 5_000

READ = """
select (seq_tup_read + idx_tup_fetch)::bigint from pg_stat_user_tables
 where relid = 'shop.customers'::regclass
"""


def test_a_batch_reads_its_own_rows_of_a_table_and_no_others(place: Place) -> None:
    table = place.prepared(SCHEMA)
    place.database.execute(
        f"insert into shop.customers select i, 0, 'first' from generate_series(1, {STANDING}) i"
    )
    place.database.execute("analyze shop.customers")
    place.database.execute("select pg_stat_reset()")
    keys = np.linspace(2, STANDING - 1, BATCH).astype(np.int64)
    unsent = [{"id": key, "n": 1} for key in keys.tolist()]
    gone = [{"id": key + 1} for key in keys.tolist()]
    fill = Fill(("v",), np.arange(BATCH), pa.table({"id": keys}))
    table.apply(net(SCHEMA, unsent, gone, fills=[fill]), at(1))
    table.close()  # a session that ends tells what it read
    deadline = time.monotonic() + 30
    while not (read := place.rows(READ)[0][0]):
        assert time.monotonic() < deadline, "nobody told what was read"
    assert 2 * BATCH <= read < 4 * BATCH
    assert place.rows("select count(*), sum(n) from shop.customers where v = 'first'") == [
        (STANDING - BATCH, BATCH)
    ]
