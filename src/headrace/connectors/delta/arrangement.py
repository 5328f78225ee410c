"""How a table's rows are laid out in files: by partition, and in what order (`cluster_by`).

Rows are ordered column by column, as `ORDER BY` does, not along a curve through all columns: the
bounds of the first column are then as tight as can be, rows compress best, and what a query gains
is foreseen as for a database's index. A curve serves each column worse the more there are of them.

Partition columns are in the data files too, which PROTOCOL.md allows (writers with the feature
materializePartitionColumns must do so), and all files are in one folder: a reader goes by the log,
or by the file alone. Hive's folders are no part of the protocol, and Polars 2.1, which goes by
them, loses deletion vectors where a folder's name has to be escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from headrace.connectors.delta.files import open_parquet
from headrace.connectors.delta.names import is_ours
from headrace.errors import DestinationError
from headrace.log.storage import Storage
from headrace.model import TableFormat

# Of a file of a clustered table: the finer the files, the more of them a reader skips; but each
# costs it one or two requests.
CLUSTERED_BYTES: Final = 16 << 20

Positions = npt.NDArray[np.int64]
PartitionValues = Mapping[str, str | None]


def in_order(rows: pa.Table, by: Sequence[str]) -> Positions:
    """The positions of rows in the order of these columns, nulls last; as they are without any."""
    if not by:
        return np.arange(rows.num_rows)
    order: Positions = pc.sort_indices(rows, [(name, "ascending") for name in by]).to_numpy()
    return order.astype(np.int64)


def pieces(order: Positions, size: int) -> list[Positions]:
    """`order` cut for files; `size` is what all rows take, in bytes."""
    count = max(1, round(size / CLUSTERED_BYTES))
    return [piece for piece in np.array_split(order, count) if len(piece)]


# -- what can be done ------------------------------------------------------------------------------


def check_layout(schema: pa.Schema, layout: TableFormat) -> None:
    """Whether a table of this stored schema can be laid out so.

    Raises:
        DestinationError: a column is missing, or its values have no order or no exact text, or
            there would be no column besides the partitions'.
    """
    for key, by, suits in (
        ("partition_by", layout.partition_by, _has_text),
        ("cluster_by", layout.cluster_by, _has_order),
    ):
        for name in by:
            if name not in schema.names:
                raise DestinationError(
                    f"{key}: there is no column {name}",
                    hint=f"name one of {', '.join(schema.names)}",
                    column=name,
                )
            if not suits(schema.field(name).type):
                raise DestinationError(
                    f"{key}: {name} is of the type {schema.field(name).type}, which does not serve",
                    hint="name a column of text, whole numbers, decimals, booleans, dates or times",
                    column=name,
                )
    if layout.partition_by and set(layout.partition_by) >= set(schema.names):
        raise DestinationError(
            "partition_by names all columns, and Delta needs one that it does not partition by",
            hint="leave a column out of partition_by",
        )


def check_partition_columns(
    storage: Storage, files: Iterable[Mapping[str, Any]], by: Sequence[str]
) -> None:
    """Whether data files that others may have added have the partition columns, as ours do.

    Raises:
        DestinationError: one has not.
    """
    if not by:
        return
    for path in (file["path"] for file in files if not is_ours(file["path"])):
        with open_parquet(storage, path) as parquet:
            missing = sorted(set(by) - set(parquet.schema_arrow.names))
        if missing:
            raise DestinationError(
                f"{storage.location(path)}, a file of another writer, lacks the partition column "
                f"{missing[0]}",
                hint="RESTORE the table to the version before that file came, and let no other "
                "writer compact it",
            )


def _has_text(kind: pa.DataType) -> bool:
    exact = t.is_integer(kind) or t.is_decimal(kind) or t.is_boolean(kind)
    return bool(exact or t.is_string(kind) or t.is_date(kind) or t.is_timestamp(kind))


def _has_order(kind: pa.DataType) -> bool:
    return not t.is_nested(kind)


# -- partitions ------------------------------------------------------------------------------------


def divided(rows: pa.Table, by: Sequence[str]) -> Iterator[tuple[PartitionValues, Positions]]:
    """The values of each partition, as add actions have them, and its rows' positions, in order.

    Raises:
        DestinationError: a text is empty, which Delta takes for null.
    """
    if not rows.num_rows:
        return
    if not by:
        yield {}, np.arange(rows.num_rows)
        return
    columns = [_column(rows, name).dictionary_encode() for name in by]
    texts = [_texts(column.dictionary, name) for column, name in zip(columns, by, strict=True)]
    codes = np.stack([c.indices.fill_null(-1).to_numpy().astype(np.int64) for c in columns])
    groups, which = np.unique(codes, axis=1, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(which.reshape(-1), minlength=groups.shape[1]))
    for group, positions in zip(groups.T.tolist(), np.split(order, ends[:-1]), strict=True):
        values = {
            name: None if code < 0 else text[code]
            for name, text, code in zip(by, texts, group, strict=True)
        }
        yield values, positions


def _column(rows: pa.Table, name: str) -> pa.Array:
    """Null where the source has the column no longer."""
    position = rows.schema.get_field_index(name)
    column = rows.column(position) if position >= 0 else pa.nulls(rows.num_rows, pa.string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _texts(values: pa.Array, name: str) -> list[str]:
    """PROTOCOL.md, "Partition Value Serialization"."""
    if t.is_decimal(values.type):
        return [format(value, "f") for value in values.to_pylist()]
    if t.is_timestamp(values.type) and values.type.tz:
        local = pc.cast(values, pa.timestamp("us"))
        return [f"{text.replace(' ', 'T')}Z" for text in pc.cast(local, pa.string()).to_pylist()]
    texts: list[str] = pc.cast(values, pa.string()).to_pylist()
    if "" in texts:
        raise DestinationError(
            f"the partition column {name} has an empty text, which Delta takes for null",
            hint=f"leave {name} out of partition_by, or give such rows another value",
            column=name,
        )
    return texts
