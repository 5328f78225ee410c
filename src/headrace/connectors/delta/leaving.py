"""Rows that leave a table: what becomes of the files that hold them.

A file that loses rows has them in its deletion vector from then on, or is written anew where the
table has no vectors; one that loses its last leaves the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """Files of `state` that lose rows: `touched` keep others, and `emptied` none; by path, all rows
    that a file then lacks. `totals`: how many each has, those among them."""

    state: TableState
    touched: Mapping[str, BitMap]
    emptied: Sequence[str]
    totals: Mapping[str, int]

    @classmethod
    def of(cls, storage: Storage, state: TableState, deletions: Mapping[str, BitMap]) -> Leaving:
        """By all rows that files will lack.

        Where there is a feed, a file that has a vector stays until it is compacted: of one that is
        removed, `load_cdf` (deltalake 1.6.6) tells the rows that the vector had taken before.
        """
        stays = has_feed(state)
        totals = {path: count_rows(storage, state.files[path]) for path in deletions}
        emptied = [
            path
            for path, gone in deletions.items()
            if len(gone) == totals[path] and not (stays and state.files[path].get("deletionVector"))
        ]
        touched = {path: gone for path, gone in deletions.items() if path not in set(emptied)}
        return cls(state, touched, emptied, totals)

    @property
    def vectors(self) -> Mapping[str, BitMap]:
        """The vectors that must be durable first; none in a table without them."""
        return self.touched if has_vectors(self.state) else {}

    @property
    def rewrites(self) -> bool:
        """Whether files are written anew."""
        return bool(self.touched) and not has_vectors(self.state)

    def untold(self, storage: Storage) -> bool:
        """Whether a feed's readers cannot see by these files which rows go: some are written anew,
        or `load_cdf` (deltalake 1.6.6) would misread what two vectors differ by.

        It takes wrong rows, or panics, where a file has several row groups.
        """
        if not has_feed(self.state):
            return False
        return self.rewrites or any(_groups(storage, path) > 1 for path in self.touched)

    def actions(
        self, storage: Storage, descriptors: Mapping[str, Mapping[str, Any]]
    ) -> list[Action]:
        """What a commit says of these files; `descriptors` are those of `vectors`.

        Raises:
            LogError: a file cannot be read or written.
        """
        files = self.state.files
        removes = [actions.remove(files[path]) for path in [*self.touched, *self.emptied]]
        if self.rewrites:
            touched = [(files[path], gone) for path, gone in self.touched.items()]
            return removes + rewrite(storage, touched, self.state.columns)
        return removes + [
            actions.with_vector(files[path], descriptors[path], self.totals[path])
            for path in self.touched
        ]


def _groups(storage: Storage, path: str) -> int:
    with open_parquet(storage, path) as file:
        return int(file.num_row_groups)
