"""Change data files: what a commit did to rows, where readers cannot see it from its other files.

PROTOCOL.md, "Change Data Files" and "Add CDC File". A commit that only adds and takes away rows
needs none: files that come or go, and deletion vectors that grow, tell it exactly. An update, as
two images of one row, and rows that go in ways that readers misread (`Leaving.untold`), cannot be
told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.arrangement import PartitionValues, divided
from headrace.connectors.delta.changeset import Changeset
from headrace.connectors.delta.leaving import Leaving
from headrace.connectors.delta.names import new_name
from headrace.connectors.delta.rows import RowIndex, live_rows, numbered_rows
from headrace.connectors.delta.writer import SMALL_COMPRESSION
from headrace.failpoints import hit
from headrace.log.storage import FileWriter, Storage
from headrace.model import START_AT
from headrace.model.feed import CHANGE_TYPE
from headrace.model.fingerprint import Hasher

FOLDER: Final = "_change_data"
SHARE_ROWS: Final = 1 << 17  # of a batch in parts, that are told at a time: both images are held


def changes_of(
    rows: RowIndex, batch: Changeset, key: Sequence[str], *, images: bool, untold: bool
) -> pa.Table | None:
    """What a batch does to rows, by change type; None where the commit's other files tell it.

    `untold`: see `Leaving.untold`.
    """
    if not len(batch.doomed) or not (untold or (images and batch.upserts.num_rows)):
        return None
    before = rows.read(batch.doomed, batch.upserts.schema)
    if images and key:
        identity = key if rows.history is None else [*key, START_AT]
        told = as_images(before, batch.upserts, identity)
        if told is not None:
            return told
    return as_rows(before, batch.upserts) if untold else None


def changes_of_parts(
    before: Callable[[], Iterable[pa.Table]],
    after: Callable[[], Iterable[pa.Table]],
    schema: pa.Schema,
    identity: Sequence[str],
    count: int,
) -> Iterator[pa.Table]:
    """The rows that a batch in parts takes away and brings, by change type, some at a time.

    `count`: about how many come. With `identity`, both are read once for each share of the
    identities whose rows memory holds: an update's images are found wherever they stand.
    """
    if not identity:
        yield from (_told([("delete", rows)]) for rows in before())
        yield from (_told([("insert", rows)]) for rows in after())
        return
    hasher = Hasher.of(pa.schema([schema.field(n) for n in identity]), exact=False)
    shares = 1 + count // SHARE_ROWS

    def share(parts: Iterable[pa.Table], number: int) -> pa.Table:
        hashed = ((rows, hasher.hash(rows.select(identity)).high) for rows in parts)
        of_share = (rows.filter(pa.array(words % shares == number)) for rows, words in hashed)
        return pa.concat_tables([schema.empty_table(), *of_share])

    for number in range(shares):
        old, new = share(before(), number), share(after(), number)
        told = as_images(old, new, identity)
        yield as_rows(old, new) if told is None else told


def as_rows(before: pa.Table, after: pa.Table) -> pa.Table:
    """Rows that went, as deletes, and rows that came, as inserts."""
    return _told([("delete", before), ("insert", after)])


def as_images(before: pa.Table, after: pa.Table, identity: Sequence[str]) -> pa.Table | None:
    """The same, but a row that went and one that came with equal values in the columns `identity`
    are the two images of an update; None if there is no such pair.

    Each has the values of `identity` once at most.
    """
    old, new = _numbers(before, after, identity)
    _, left, right = np.intersect1d(old, new, assume_unique=True, return_indices=True)
    if not len(left):
        return None
    return _told(
        [
            ("delete", _others(before, left)),
            ("update_preimage", before.take(pa.array(left))),
            ("update_postimage", after.take(pa.array(right))),
            ("insert", _others(after, right)),
        ]
    )


def _numbers(
    before: pa.Table, after: pa.Table, identity: Sequence[str]
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
    """A 128-bit fingerprint of the identity of each row."""
    keys = pa.concat_tables([before.select(identity), after.select(identity)])
    hashes = Hasher.of(keys.schema, exact=False).hash(keys)
    assert hashes.low is not None
    pairs = np.rec.fromarrays([hashes.high, hashes.low])
    return pairs[: before.num_rows], pairs[before.num_rows :]


def _others(rows: pa.Table, which: npt.NDArray[np.intp]) -> pa.Table:
    return rows.take(pa.array(np.setdiff1d(np.arange(rows.num_rows), which)))


def _told(parts: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    kind = pa.field(CHANGE_TYPE, pa.string())
    return pa.concat_tables(
        rows.append_column(kind, pa.repeat(pa.scalar(word, kind.type), rows.num_rows))
        for word, rows in parts
    )


def changes_of_files(
    storage: Storage, leaving: Leaving, come: Iterable[Action]
) -> Iterator[pa.Table]:
    """The same of a commit that may be about the whole table, a batch of rows at a time: the rows
    that leave files, and all rows of those that `come`. None where files tell it."""
    if leaving.untold(storage):
        going = rows_leaving(storage, leaving)
        rows = (part for add in come for part in live_rows(storage, add["add"], leaving.columns))
        yield from changes_of_parts(lambda: going, lambda: rows, leaving.columns, (), 0)


def rows_leaving(storage: Storage, leaving: Leaving) -> Iterator[pa.Table]:
    """The rows of the table's versions that leave it, a batch at a time. Raises LogError."""
    for path, gone in leaving.deletions.items():
        if path not in leaving.new:
            file = leaving.state.files[path]
            for numbers, rows in numbered_rows(storage, file, leaving.columns):
                going = np.isin(numbers, np.frombuffer(gone.to_array(), np.uint32))
                yield rows.filter(pa.array(going))


def write_change_files(
    storage: Storage, parts: Iterable[pa.Table], partition_by: Sequence[str] = ()
) -> list[Action]:
    """Make change data files durable, one a partition; returns their cdc actions.

    Raises:
        LogError: they cannot be written.
    """
    files: dict[tuple[str | None, ...], _ChangeFile] = {}
    with storage.write() as group:
        for rows in parts:
            for values, positions in divided(rows, partition_by):
                partition = tuple(values.values())
                if partition not in files:
                    path = f"{FOLDER}/{new_name()}"
                    files[partition] = _ChangeFile(group.open(path), path, rows.schema, values)
                files[partition].write(rows.take(pa.array(positions)) if values else rows)
        told = [file.finish() for file in files.values()]
    if told:
        hit("delta.changes_written")
    return told


class _ChangeFile:
    def __init__(
        self, file: IO[bytes], path: str, schema: pa.Schema, values: PartitionValues
    ) -> None:
        self._file, self._path, self._values = file, path, values
        self._writer = FileWriter(file, schema, compression=SMALL_COMPRESSION)

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows)

    def finish(self) -> Action:
        self._writer.close()
        return actions.change_file(self._path, self._file.tell(), self._values)
