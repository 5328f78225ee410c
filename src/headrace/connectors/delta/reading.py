"""Reading a table as of one version, by the deltalake library: not by what wrote it."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from headrace.connectors.delta.actions import LSN_SUFFIX
from headrace.model import Checkpoint, Lsn


class PinnedTable:
    """A table at the version that it has when this is made."""

    def __init__(self, table: DeltaTable, app_id: str, log_id: str) -> None:
        self._table = table
        commit = table.transaction_version(app_id)
        lsn = table.transaction_version(app_id + LSN_SUFFIX)
        self.checkpoint: Checkpoint | None = None
        if commit is not None and lsn is not None:
            self.checkpoint = Checkpoint(log_id, commit, Lsn(lsn))

    def rows(self) -> Iterator[pa.Table]:
        """All rows, in pieces."""
        builder = QueryBuilder().register("pinned", self._table)
        for batch in builder.execute("SELECT * FROM pinned"):
            yield pa.Table.from_batches([pa.record_batch(batch)])
