"""Rows that leave a table: what becomes of the files that hold them.

A file that loses rows has them in its deletion vector from then on, or is written anew where the
table has no vectors; one that loses its last leaves the table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyroaring import BitMap

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.conversion import has_feed, has_vectors
from headrace.connectors.delta.files import open_parquet
from headrace.connectors.delta.rewriting import rewrite
from headrace.connectors.delta.rows import count_rows
from headrace.connectors.delta.state import TableState
from headrace.log.storage import Storage


@dataclass(frozen=True)
class Leaving:
    """Files of `state` that lose rows: `deletions` are, by path, all rows that a file then lacks;
    those `touched` keep others, and those `emptied` none. `totals`: how many each has, those among
    them. `anew`: those touched that are written anew. `new`: files that no version names yet."""

    state: TableState
    deletions: Mapping[str, BitMap]
    touched: Mapping[str, BitMap]
    emptied: Sequence[str]
    totals: Mapping[str, int]
    anew: Sequence[str]
    new: Collection[str]

    @classmethod
    def of(
        cls,
        storage: Storage,
        state: TableState,
        deletions: Mapping[str, BitMap],
        new: Collection[str] = (),
    ) -> Leaving:
        """By all rows that files will lack.

        Where there is a feed, a file that has a vector stays until it is compacted: of one that is
        removed, `load_cdf` (deltalake 1.6.6) tells the rows that the vector had taken before. And
        none comes with a vector: it would tell rows that never came.
        """
        feed = has_feed(state)
        totals = {path: count_rows(storage, state.files[path]) for path in deletions}
        emptied = [
            path
            for path, gone in deletions.items()
            if len(gone) == totals[path] and not (feed and state.files[path].get("deletionVector"))
        ]
        touched = {path: gone for path, gone in deletions.items() if path not in set(emptied)}
        marked = has_vectors(state)
        anew = [path for path in touched if not marked or (feed and path in new)]
        return cls(state, deletions, touched, emptied, totals, anew, new)

    @property
    def columns(self) -> pa.Schema:
        """Those of the table."""
        return self.state.columns

    @property
    def vectors(self) -> Mapping[str, BitMap]:
        """The vectors that must be durable first; none in a table without them."""
        anew = set(self.anew)
        return {path: gone for path, gone in self.touched.items() if path not in anew}

    @property
    def rewrites(self) -> bool:
        """Whether files that a version names are written anew."""
        return any(path not in self.new for path in self.anew)

    def untold(self, storage: Storage) -> bool:
        """Whether a feed's readers cannot see by these files which rows go: some are written anew,
        or `load_cdf` (deltalake 1.6.6) would misread what two vectors differ by.

        It takes wrong rows, or panics, where a file has several row groups.
        """
        if not has_feed(self.state):
            return False
        return self.rewrites or any(_groups(storage, path) > 1 for path in self.vectors)

    def actions(
        self, storage: Storage, descriptors: Mapping[str, Mapping[str, Any]]
    ) -> list[Action]:
        """What a commit says of these files; `descriptors` are those of `vectors`.

        Raises:
            LogError: a file cannot be read or written.
        """
        files = self.state.files
        left = [path for path in [*self.touched, *self.emptied] if path not in self.new]
        anew = [(files[path], self.touched[path]) for path in self.anew]
        return [
            *(actions.remove(files[path]) for path in left),
            *rewrite(storage, anew, self.state.columns),
            *(
                actions.with_vector(files[path], descriptors[path], self.totals[path])
                for path in self.vectors
            ),
        ]


def _groups(storage: Storage, path: str) -> int:
    with open_parquet(storage, path) as file:
        return int(file.num_row_groups)
