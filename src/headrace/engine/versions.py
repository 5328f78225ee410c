"""Cuts a stretch of the log where the schema of its table changes.

Each section is applied to a table that has the columns which its rows were made under, so that what
a dropped column held until then is written, and none of it has to be told in other columns. A table
stands at ends of transactions only: one that changed the schema between its own changes stays
whole, and its older rows are brought to the newest version (`conform`). What files hold is known
from their manifests: nothing is read to be cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

from headrace.errors import LogCorruptError
from headrace.log import LogFile
from headrace.model import COMMIT_LSN, COMMIT_TS, ChangeBatch, Lsn


@dataclass(frozen=True)
class Section:
    """The changes in `files` of transactions behind `after` and up to `to`, both their ends.

    The schema of the last file is the newest. All but the last section of a stretch may be empty.
    """

    files: tuple[LogFile, ...]
    after: Lsn
    to: Lsn

    @property
    def version(self) -> int:
        return self.files[-1].schema_version

    @property
    def rows(self) -> int:
        """At most so many: its first and last files may hold others, too."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Of its files, as they are stored."""
        return sum(file.bytes for file in self.files)

    def part(self, batch: ChangeBatch) -> ChangeBatch:
        """What of a file's changes belongs to it."""
        return between(batch, self.after, self.to)


def sections(files: Iterable[LogFile], after: Lsn) -> list[Section]:
    """The changes of one table that were committed after `after`, by schema version.

    `files` are in position order. However the stream is cut into them, a transaction is in a
    section whose newest version is the same.

    Raises:
        LogCorruptError: a manifest does not tell when a file's changes were committed.
    """
    done: list[Section] = []
    held: list[LogFile] = []
    for file in files:
        first, last = _span(file)
        if last <= after:
            continue
        if held and held[-1].schema_version != file.schema_version:
            # The transaction that the file begins with is of its version, whole.
            before = Lsn(int(first) - 1)
            if any(_span(former)[0] <= before for former in held):
                done.append(Section(tuple(held), after, before))
            after = before
            held = [former for former in held if _span(former)[1] > before]
        held.append(file)
    if held:
        done.append(Section(tuple(held), after, _span(held[-1])[1]))
    return done


def _span(file: LogFile) -> tuple[Lsn, Lsn]:
    if file.first_lsn is None or file.last_lsn is None:
        raise LogCorruptError(
            f"a manifest names {file.path} and does not tell its transactions",
            hint=f"headrace resync {file.table}",
            table=str(file.table),
        )
    return file.first_lsn, file.last_lsn


def between(batch: ChangeBatch, after: Lsn, to: Lsn) -> ChangeBatch:
    """The changes of transactions that end behind `after`, and at `to` or before."""
    lsns = lsns_of(batch)
    start = int(np.searchsorted(lsns, np.uint64(after), "right"))
    end = int(np.searchsorted(lsns, np.uint64(to), "right"))
    if start == 0 and end == len(lsns):
        return batch
    return ChangeBatch(batch.schema, batch.data.slice(start, end - start))


def lsns_of(batch: ChangeBatch) -> npt.NDArray[np.uint64]:
    """Where the transaction of each change ends; they grow."""
    lsns: npt.NDArray[np.uint64] = batch.data[COMMIT_LSN].to_numpy()
    return lsns


def committed_at(batches: Sequence[ChangeBatch]) -> datetime | None:
    """When the newest of these changes was committed."""
    moment: datetime | None = batches[-1].data[COMMIT_TS][-1].as_py()
    return moment
