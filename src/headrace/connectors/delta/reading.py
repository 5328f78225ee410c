"""Reading a table as of one version, by the deltalake library: not by what wrote it."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from headrace.connectors.delta.actions import LSN_SUFFIX
from headrace.connectors.delta.failures import plain
from headrace.errors import DestinationError
from headrace.model import Checkpoint, Lsn


class PinnedTable:
    """A table at the version that it has when this is made."""

    def __init__(self, table: DeltaTable, app_id: str, log_id: str) -> None:
        self._table = table
        self.version = table.version()
        commit = table.transaction_version(app_id)
        lsn = table.transaction_version(app_id + LSN_SUFFIX)
        self.checkpoint: Checkpoint | None = None
        if commit is not None and lsn is not None:
            self.checkpoint = Checkpoint(log_id, commit, Lsn(lsn))

    def rows(self) -> Iterator[pa.Table]:
        """All rows, in pieces; raises as `read_all` does."""
        return read_all(self._table)


def read_all(table: DeltaTable) -> Iterator[pa.Table]:
    """All rows of the table's version, in pieces.

    Raises:
        DestinationError: a file is missing or damaged, or the storage does not answer.
    """
    try:
        builder = QueryBuilder().register("pinned", table)
        for batch in builder.execute("SELECT * FROM pinned"):
            yield pa.Table.from_batches([pa.record_batch(batch)])
    except Exception as error:  # the query engine raises no class of its own
        where = f"{table.table_uri} at version {table.version()}"
        raise DestinationError(
            f"{where} cannot be read: {plain(error)}",
            hint="headrace verify --repair, or headrace resync, writes it anew",
        ) from error
