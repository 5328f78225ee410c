"""The newest changes of a table, straight from the change log, for a person to look at."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from headrace.log import LogReader
from headrace.model import ChangeBatch, TableId


def newest_changes(reader: LogReader, table: TableId, limit: int) -> pa.Table | None:
    """The last `limit` changes of `table`, oldest first, as the log has them; None without any.

    Rows of an older schema version show null in columns that came later.
    """
    found: list[ChangeBatch] = []
    rows = 0
    for batch in _backwards(reader, table):
        found.append(batch)
        rows += batch.num_rows
        if rows >= limit:
            break
    if not found:
        return None
    tables = [pa.Table.from_batches([batch.data]) for batch in reversed(found)]
    merged = pa.concat_tables(tables, promote_options="permissive")
    return merged.slice(max(merged.num_rows - limit, 0))


def _backwards(reader: LogReader, table: TableId) -> Iterator[ChangeBatch]:
    for number in range(reader.head(), reader.floor, -1):
        for manifest in reader.manifests(number - 1, number):
            for file in reversed(manifest.files):
                if file.table == table:
                    yield from reversed(reader.read(file))
