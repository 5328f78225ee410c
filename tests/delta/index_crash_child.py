"""Applies batches to a table whose key index is saved as soon as it can be, until it is killed.

python index_crash_child.py ROOT BATCHES
"""

from __future__ import annotations

import sys
from pathlib import Path

from delta_samples import LOG_ID, NAME, PIPELINE, Lake, at, changes, row_of, schema_of

from headrace.connectors.delta import preserving
from headrace.connectors.delta.destination import DeltaDestination

KIND = "text"
ROWS = 60


def main(root: str, batches: int) -> None:
    preserving.DUE = preserving.DUE_LAST = 1
    lake, schema = Lake(Path(root)), schema_of(KIND)
    place = DeltaDestination(str(lake.root / "lake"), indexes=lake.root / "index")
    table = place.table(NAME, PIPELINE)
    standing = table.checkpoint(LOG_ID)
    if standing is None:
        rows = [row_of(KIND, key, 1) for key in range(ROWS)]
        table.load(schema, lake.snapshot(schema, rows[:40], rows[40:]), at(1))
        standing = at(1)
    for number in range(standing.commit, batches + 1):
        upserts = [row_of(KIND, key, number) for key in range(number, ROWS + number, 3)]
        table.apply(changes(schema, upserts, [row_of(KIND, 2 * number, 0)]), at(number + 1))
        table.settle()
    place.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
