"""What a stretch of changes comes to, in the form that destinations apply."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.model.lsn import Lsn
from headrace.model.table import TableSchema


@dataclass(frozen=True)
class Fill:
    """Upserted rows whose `columns` the source did not send (unchanged TOAST).

    Row `rows[i]` of the upserts takes those columns from the row that the destination holds under
    the key in row i of `keys` (the row's old key, where the key moved).
    """

    columns: tuple[str, ...]
    rows: npt.NDArray[np.int64]
    keys: pa.Table


@dataclass(frozen=True)
class Amendment:
    """Rows that stay, with new values: the row under the key in row i of `keys` takes the values in
    row i of `values`, whose columns are some of the schema's. A key that no row has is passed over.
    """

    keys: pa.Table
    values: pa.Table


@dataclass(frozen=True)
class Rejected:
    """Rows that must not be applied but kept in the destination's quarantine, in the same commit.

    `rows` have the columns of the schema; `code` is a stable name (`duplicate_key`, `null_key`,
    `expect:<rule>`), `reason` a sentence for a person.
    """

    rows: pa.Table
    code: str
    reason: str


@dataclass(frozen=True)
class RowCounts:
    """Rows of a table that were added or took new values, and rows whose key went.

    What a truncation takes away is not counted; a key that came and went in between is deleted.
    """

    upserted: int = 0
    deleted: int = 0

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(self.upserted + other.upserted, self.deleted + other.deleted)


@dataclass(frozen=True)
class NetChanges:
    """The net effect of a range of the log on one table, applied in this order:

    1. `truncate`: every row goes;
    2. `fills` are read from the rows the destination holds, before anything else changes;
    3. `amendments` are made to rows that the destination holds;
    4. rows under the keys in `deletes` (key columns only) and of `upserts` go;
    5. `upserts` (all columns, at most one row per key) are added.

    In a table that keeps history (mode scd2) a row whose `__END_AT` is set has no key: nothing
    finds it, and it replaces nothing. There an amendment closes a row before upserts are added.

    Deletes and upserts share no key. A table without a key is a multiset: `deletes` holds whole
    rows, each taking away exactly one equal row, `upserts` is only added, and `fills` is empty.

    Where deleted rows stay, `truncate` marks those that are not marked, as of `truncated_at`.

    `commit_ts` is when the newest change of the range was committed, where the source tells. All
    changes lie behind `after`, where that is known: up to it the content before was the source's.
    """

    schema: TableSchema
    upserts: pa.Table
    deletes: pa.Table
    fills: tuple[Fill, ...] = ()
    truncate: bool = False
    truncated_at: datetime | None = None
    rejected: tuple[Rejected, ...] = ()
    commit_ts: datetime | None = None
    after: Lsn | None = None
    amendments: tuple[Amendment, ...] = ()

    @property
    def counts(self) -> RowCounts:
        amended = sum(amendment.keys.num_rows for amendment in self.amendments)
        return RowCounts(self.upserts.num_rows + amended, self.deletes.num_rows)

    @property
    def is_empty(self) -> bool:
        rows = self.upserts.num_rows or self.deletes.num_rows
        return not (self.truncate or rows or self.rejected or self.amendments)


def no_changes(schema: TableSchema) -> NetChanges:
    """Changes of a table that come to nothing."""
    none = schema.arrow().empty_table()
    return NetChanges(schema, none, none.select(list(schema.key or schema.names)))
