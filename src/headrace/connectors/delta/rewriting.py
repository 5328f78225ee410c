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
        values = file.get("partitionValues") or {}
        path = new_name()
        with storage.write() as group:
            writer = DataWriter(group.open(path), path, schema, LASTING_COMPRESSION, values)
            for rows in live_rows(storage, file, schema, gone):
                writer.write(rows)
            add = writer.finish(data_change=data_change)
        hit("delta.file_rewritten")
        if writer.rows:
            adds.append(add)
        else:
            storage.delete([path])
    return adds
