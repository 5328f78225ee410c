"""Copy-on-write: files that lose rows are written anew without them.

For readers that do not know deletion vectors. What a batch costs follows the files that it touches,
not its rows. By our own writer rather than by `DeltaTable.merge`: the key index knows which rows go
without a join over the table, the checkpoint stands in the same commit, and a multiset of rows
without a key is as exact as with deletion vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from pyroaring import BitMap

from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.rows import live_rows
from headrace.connectors.delta.writer import LASTING_COMPRESSION, DataWriter
from headrace.failpoints import hit
from headrace.log.storage import Storage


def rewrite(
    storage: Storage,
    touched: Iterable[tuple[Mapping[str, Any], BitMap]],
    schema: pa.Schema,
    *,
    data_change: bool = True,
) -> list[Action]:
    """The add actions of new files, one for each of `touched`: a file of the table, and the rows
    that are not in the new one. None if there are no others. A batch of rows is in memory.

    Raises:
        LogError: a file cannot be read or written.
    """
    adds = []
    for file, gone in touched:
        rows = live_rows(storage, file, schema, gone)
        values = file.get("partitionValues") or {}
        adds += write_anew(storage, rows, schema, values, data_change=data_change)
        hit("delta.file_rewritten")
    return adds


def write_anew(
    storage: Storage,
    batches: Iterable[pa.Table],
    schema: pa.Schema,
    partition_values: Mapping[str, str | None],
    *,
    data_change: bool = True,
) -> list[Action]:
    """The add action of one new file; none if there are no rows. Raises LogError."""
    path = new_name()
    with storage.write() as group:
        writer = DataWriter(group.open(path), path, schema, LASTING_COMPRESSION, partition_values)
        for rows in batches:
            writer.write(rows)
        add = writer.finish(data_change=data_change)
    if writer.rows:
        return [add]
    storage.delete([path])
    return []
