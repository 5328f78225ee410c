"""Loads a table and applies batches to it, in a process that a failpoint kills.

python delta_crash_child.py ROOT KIND
"""

from __future__ import annotations

import sys
from pathlib import Path

from delta_samples import LOG_ID, Lake, Row, at, changes, row_of, schema_of

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


def main(root: str, kind: str) -> None:
    lake, schema = Lake(Path(root)), schema_of(kind)
    table = lake.open()
    standing = table.checkpoint(LOG_ID)
    if standing is None:
        table.load(schema, lake.snapshot(schema, first(kind)[:10], first(kind)[10:]), at(1))
        standing = at(1)
    for number in range(standing.commit, BATCHES + 1):
        upserts, deletes = batch(number, kind)
        table.apply(changes(schema, upserts, deletes), at(number + 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
