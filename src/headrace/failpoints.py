"""Named places where tests make the process die or an operation fail.

A failpoint that nobody armed costs one dictionary look-up. `HEADRACE_FAILPOINT=name=kill@3` arms
one for a subprocess: the third hit sends SIGKILL, which nothing can catch, as a power cut would.
`name=enospc@1-5` makes hits 1 to 5 raise ENOSPC instead.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from typing import Final

FAILPOINTS: Final[dict[str, str]] = {
    "slot.created": "the slot is there; nobody knows yet whether it began beside changes of tables",
    "capture.received": "changes were decoded, nothing is durable yet",
    "capture.spilled": "rows of a transaction in progress are durable, no manifest names them",
    "capture.rolled_back": "a file was written anew without the rows of a subtransaction",
    "log.file_written": "a data file is fsynced under its temporary name",
    "log.file_renamed": "a data file has its final name, no manifest names it",
    "log.document_put": "a document of the log is durable, a manifest or another; nobody knows yet",
    "log.manifest_put": "the manifest is durable, nothing is acknowledged",
    "capture.acknowledged": "the flush LSN was sent to the source",
    "snapshot.chunk_written": "a chunk of a snapshot is durable, the snapshot is not complete",
    "snapshot.range_kept": "a range of a table's keys is noted as copied, the table is incomplete",
    "snapshot.range_advanced": "a range's rows as of a later LSN are durable, nothing names them",
    "delta.load_linked": "snapshot files stand in the table's folder, no Delta commit names them",
    "delta.dv_written": "the deletion vector file is durable, no Delta commit names it",
    "delta.data_written": "the data file is durable, no Delta commit names it",
    "delta.part_written": "a part of a batch is durable, no Delta commit names it",
    "delta.file_rewritten": "a file without the rows that go is durable, no Delta commit names it",
    "delta.versions_closed": "versions that ended stand in a new file, no Delta commit names it",
    "delta.changes_written": "the change data file is durable, no Delta commit names it",
    "delta.columns_rewritten": "a file with a table's new columns is durable, no commit names it",
    "delta.log_put": "the Delta commit, with its checkpoint, is durable; we do not know it yet",
    "delta.compaction_written": "copies of rows are durable, no Delta commit names them",
    "delta.compacted": "a compaction is durable; the key index does not know it yet",
    "index.leaves_written": "the leaves of a key index are durable, no directory names them",
    "index.saved": "a key index is saved, leaves of older ones stand beside it",
    "postgres.evolved": "a table's columns follow its source's, nothing is committed",
    "postgres.part_applied": "a part of a batch is written, its transaction is not committed",
    "postgres.applied": "rows and checkpoint are written, their transaction is not committed",
    "postgres.load": "rows of a new generation are committed, more are to come; nobody reads it",
    "postgres.built": "a new generation has its keys and indexes; nobody reads it",
    "postgres.swap": "the new generation bears the name, the transaction is not committed",
    "postgres.swapped": "the swap is committed; foreign keys are not validated yet",
    "postgres.reconciled": "a table's content was changed in place, nothing is committed",
    "postgres.undo": "the former generation bears the name again, nothing is committed",
    "postgres.committed": "the transaction is committed; we do not know it yet",
    "sync.loaded": "a table was built anew and swapped in; we have noted nothing yet",
    "sync.applied": "a version is durable at the destination; we have noted nothing yet",
    "sync.recorded": "the state of a pipeline was recorded for `headrace status`",
    "materialize.checkpoint": "the position of a pipeline was recorded in the log folder",
}


@dataclass
class _Armed:
    action: str
    first: int
    last: int
    hits: int = 0


def _parse(spec: str) -> dict[str, _Armed]:
    armed = {}
    for part in filter(None, spec.split(",")):
        name, _, action = part.partition("=")
        kind, _, span = action.partition("@")
        first, _, last = (span or "1").partition("-")
        if name not in FAILPOINTS:
            raise ValueError(f"no failpoint {name!r}; there are {', '.join(FAILPOINTS)}")
        armed[name] = _Armed(kind, int(first), int(last or first))
    return armed


_armed: dict[str, _Armed] = _parse(os.environ.get("HEADRACE_FAILPOINT", ""))


def arm(spec: str) -> None:
    """Arm failpoints in this process, replacing those armed before; an empty text disarms all."""
    _armed.clear()
    _armed.update(_parse(spec))


def hit(name: str) -> None:
    """Pass the failpoint `name`; does nothing unless it is armed for this hit.

    Raises:
        OSError: ENOSPC, where the failpoint is armed with `enospc`.
    """
    armed = _armed.get(name)
    if armed is None:
        return
    armed.hits += 1
    if armed.first <= armed.hits <= armed.last:
        _fire(name, armed.action)


def _fire(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, f"failpoint {name}")
    else:
        raise ValueError(f"failpoint {name}: unknown action {action!r}")
