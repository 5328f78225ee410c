"""Loads a table and applies batches to it, in a process that a failpoint kills.

python delta_crash_child.py ROOT KIND POLICY, which is `lazy`, `parts`: each batch in several, or
`eager`: with compaction at every chance.
"""

from __future__ import annotations

import sys
from pathlib import Path

from delta_samples import (
    LOG_ID,
    NAME,
    PIPELINE,
    AtOnce,
    Lake,
    Row,
    at,
    changes,
    row_of,
    schema_of,
)

from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.maintenance import Policy
from headrace.model import ChangeFeed, TableFormat

BATCHES = 4


def rows(kind: str, keys: range, value: int) -> list[Row]:
    return [row_of(kind, key, value) for key in keys]


def first(kind: str) -> list[Row]:
    return rows(kind, range(16), 1)


def batch(number: int, kind: str) -> tuple[list[Row], list[Row]]:
    """Upserts and deletes; each batch depends on the one before in a table without a key."""
    upserts = rows(kind, range(2 * number, 2 * number + 4), 10 + number)
    if kind == "none":
        return upserts, first(kind)[number : number + 1]
    return upserts, rows(kind, range(2 * number - 2, 2 * number), 0)


EAGER = Policy(together=2, tiny=0, worn=0.01, every=1)

REWRITTEN = TableFormat(deletion_vectors=False, change_feed=ChangeFeed.IMAGES)


def main(root: str, kind: str, policy: str) -> None:
    lake, schema = Lake(Path(root)), schema_of(kind)
    chosen = EAGER if policy == "eager" else None
    place = DeltaDestination(str(lake.root / "lake"), beside=AtOnce(), policy=chosen)
    table = place.table(NAME, PIPELINE, layout=REWRITTEN if policy == "rewrite" else None)
    standing = table.checkpoint(LOG_ID)
    if standing is None:
        table.load(schema, lake.snapshot(schema, first(kind)[:10], first(kind)[10:]), at(1))
        standing = at(1)
    for number in range(standing.commit, BATCHES + 1):
        upserts, deletes = batch(number, kind)
        parts = [changes(schema, upserts, deletes)]
        if policy == "parts":
            parts = [changes(schema, [], deletes), *(changes(schema, [row]) for row in upserts)]
        table.apply(parts.pop(), at(number + 1), parts)
    table.settle()


if __name__ == "__main__":
    main(*sys.argv[1:])
