"""Merge or rebuild: from which share of changed rows on is building a table anew the faster way?

The same versions of a Delta table are brought into two tables of Postgres as the engine does it:
into one by netting the feed and merging, into the other by reading the whole version, building the
table beside and swapping. Both have a primary key and no other index. The share where the two
curves cross is the default of `rebuild_above`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from pydantic import SecretStr

from benchmarks import report, reverse
from benchmarks.report import Measured
from benchmarks.wide import TABLE, rows
from headrace.config import PostgresConnection
from headrace.connectors.delta.source import DeltaSource
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.engine.netting import feed_schema, net
from headrace.model import Checkpoint, Lsn
from headrace.testing.postgres import EmbeddedPostgres

SIZE = 2_000_000
SHARES = (0.01, 0.05, 0.10, 0.30, 0.60)
ROUNDS = 3


class Carrier:
    """Both ends of one table, with the version that is to be brought over."""

    def __init__(self, lake: str, dsn: str) -> None:
        connection = PostgresConnection(type="postgres", url=SecretStr(dsn))
        self.source = DeltaSource(lake).table(TABLE, ("id",))
        self.table = PostgresDestination(connection).table(TABLE, "bench")
        head = self.source.head()
        self.version = head.number
        self.schema = self.source.schema(self.version)
        self.to = Checkpoint(head.log_id, self.version, Lsn(self.version))
        self.table.standing()  # connected, as it is when a run goes on

    def merge(self) -> None:
        feed = self.source.changes(self.schema, self.version, self.version)
        found = pa.Table.from_batches(feed, feed_schema(self.schema))
        self.table.apply(net(self.schema, found), self.to)

    def rebuild(self) -> None:
        self.table.replace(self.schema, self.source.rows(self.version), self.to)


def first_load(lake: str, dsn: str) -> None:
    carrier = Carrier(lake, dsn)
    carrier.table.prepare(carrier.schema)
    carrier.rebuild()


def carry(lake: str, dsn: str, way: str) -> float:
    """Seconds of bringing the newest version over in one of the two ways."""
    reverse.settle(dsn, reverse.NAME)
    carrier = Carrier(lake, dsn)
    return report.timed(getattr(carrier, way))


def change(path: str, size: int, share: float, seed: int) -> None:
    """One version that updates a share of the rows, taken from everywhere."""
    keys = np.random.default_rng(seed).choice(size, round(size * share), replace=False)
    changed = rows(np.sort(keys), size + seed)
    merging = DeltaTable(path).merge(changed, "t.id = s.id", source_alias="s", target_alias="t")
    merging.when_matched_update_all().execute()


def measure(size: int) -> dict[float, Mapping[str, list[Measured]]]:
    found = {}
    with (
        EmbeddedPostgres() as server,
        tempfile.TemporaryDirectory() as folder,
        reverse.database(server) as merged,
        reverse.database(server) as rebuilt,
    ):
        lake = f"{folder}/lake"
        path = reverse.write_lake(lake, size)
        ways = {"merge": merged, "rebuild": rebuilt}
        for dsn in ways.values():
            first_load(lake, dsn)
        for share in SHARES:
            results: dict[str, list[Measured]] = {way: [] for way in ways}
            for number in range(ROUNDS):
                change(path, size, share, round(share * 100) * ROUNDS + number)
                contest = {
                    way: partial(report.in_child, carry, lake, dsn, way)
                    for way, dsn in ways.items()
                }
                for way, [one] in report.interleaved(1, contest).items():
                    results[way].append(one)
            found[share] = results
    return found


def crossing(curves: list[tuple[float, float, float]]) -> float | None:
    """The share at which merging takes as long as rebuilding; (share, merge, rebuild) in order."""
    for (low, merge, rebuild), (high, merge_then, rebuild_then) in pairwise(curves):
        before, after = rebuild - merge, rebuild_then - merge_then
        if before > 0 >= after:
            return round(low + (high - low) * before / (before - after), 2)
    return None


def main(size: int = SIZE) -> None:
    found = measure(size)
    curves = [
        (share, report.median(results["merge"]), report.median(results["rebuild"]))
        for share, results in found.items()
    ]
    result: dict[str, Any] = {
        "rows": size,
        "shares": [
            {
                "share": share,
                "merge_seconds": round(merge, 2),
                "rebuild_seconds": round(rebuild, 2),
                "merge_peak_mib": report.peak(found[share]["merge"]),
                "rebuild_peak_mib": report.peak(found[share]["rebuild"]),
            }
            for share, merge, rebuild in curves
        ],
        "rebuild_is_faster_above": crossing(curves),
    }
    report.write("reverse_merge_or_rebuild", result, keep=size == SIZE)
