"""How a Delta table is to be laid out and written, as far as its user has a choice."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

INDEX_MEMORY: Final = 1 << 30  # bytes; 50 million keys


class ChangeFeed(Enum):
    """What the table's own Change Data Feed tells."""

    OFF = "off"
    ROWS = "rows"  # deletes and inserts, which readers derive: nothing more is written
    IMAGES = "images"  # updates with their pre- and post-images, which are written


@dataclass(frozen=True)
class TableFormat:
    """The user's choices for one Delta table; column names are the table's.

    Without `deletion_vectors` changed files are rewritten, for readers that lack them. `cluster_by`
    orders rows where files are written to stay. Beyond `index_memory` (bytes, of one table) the key
    index stands on disk.
    """

    deletion_vectors: bool = True
    change_feed: ChangeFeed = ChangeFeed.OFF
    cluster_by: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()
    index_memory: int = INDEX_MEMORY

    @property
    def clustering(self) -> tuple[str, ...]:
        """By which columns rows are ordered inside a partition."""
        return tuple(name for name in self.cluster_by if name not in self.partition_by)
