"""Renames a column between two batches, in a process that a failpoint kills.

python evolving_child.py ROOT
"""

from __future__ import annotations

import sys
from pathlib import Path

from delta_samples import Lake
from evolving import Evolving

KILLS = [("delta.columns_rewritten", 2), ("delta.log_put", 2)]


class _Nothing:
    """Stands in for the table where only the model is to live on."""

    def evolve(self, *_: object) -> None:
        """Does nothing."""

    def apply(self, *_: object) -> None:
        """Does nothing."""


def live(life: Evolving, *, only_model: bool = False) -> None:
    table = life.table
    if only_model:
        life.table = _Nothing()  # type: ignore[assignment]
    life.rename({"a": "z"})
    life.put([1, 9], 5)
    life.table = table


if __name__ == "__main__":
    live(Evolving(Lake(Path(sys.argv[1]))))
