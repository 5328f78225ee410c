"""A capture in small, for crash tests: commits for as long as it lives, telling what is durable.

Run as `python log_crash_child.py STATE`; each line of its output is one acknowledged commit LSN,
which stands for the flush LSN that Postgres would have been told. A failpoint ends it.
"""

from __future__ import annotations

import sys

from log_samples import CAPTURE, ORDERS, WHEN, inserts, rows_of

from headrace.log import CommitDraft, LogWriter, SnapshotEvent, open_storage
from headrace.model import ChangeBatch, Lsn, TableId, TableSchema

OTHER = TableSchema(TableId("public", "Other"), 1, ORDERS.columns, ORDERS.key)


def transaction(lsn: int) -> list[ChangeBatch]:
    """Two tables in one transaction: half of it would show."""
    return [inserts(lsn, [lsn, lsn + 1]), inserts(lsn, [lsn], OTHER)]


def main(state: str) -> None:
    with LogWriter.open(open_storage(state), CAPTURE) as log:
        log.add_schema(ORDERS)
        log.add_schema(OTHER)
        for number in range(100):
            lsn = int(log.position or 0) + 10
            files = log.stage_all(transaction(lsn))
            snapshots = []
            if number == 1:
                with log.stage_snapshot(ORDERS, Lsn(lsn), 0) as chunk:
                    chunk.write(rows_of([1, 2, 3]))
                snapshots = [SnapshotEvent(ORDERS.table, Lsn(lsn), 1, (chunk.file,))]
            log.commit(CommitDraft(Lsn(lsn), WHEN, files, snapshots))
            print(lsn, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
