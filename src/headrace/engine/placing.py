"""Where in the change log a snapshot stands that comes without an LSN."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from headrace.engine.capture import Capture
from headrace.engine.protocols import Source
from headrace.errors import CopyStoppedError
from headrace.log import LogReader, LogWriter
from headrace.model import COMMIT_LSN, XID, Lsn, Visibility

LOOK: Final = 0.2  # seconds until a wait for the log notices that the run ends


@dataclass(frozen=True)
class Placing:
    """Looks into a log that a capture is writing."""

    source: Source
    log: LogWriter
    reader: LogReader
    capture: Capture
    stop: threading.Event

    def reach(self, lsn: Lsn) -> None:
        """Wait until the log holds all changes up to `lsn`.

        Raises:
            CopyStoppedError: the run ends before.
        """
        if (self.log.position or Lsn(0)) < lsn:
            now = self.source.current_lsn()
            self.capture.reach(max(now, lsn, self.capture.target or lsn))
        while (self.log.position or Lsn(0)) < lsn:
            if self.stop.is_set():
                raise CopyStoppedError("the run ended before the changes were there")
            self.reader.wait(self.log.head.commit if self.log.head else 0, LOOK)

    def place(self, after: int, seen: Visibility) -> Lsn | None:
        """See `place`; waits for the log."""
        until = self.source.current_lsn()
        self.reach(until)
        return place(self.reader, after, until, seen)


def place(reader: LogReader, after: int, until: Lsn, seen: Visibility) -> Lsn | None:
    """An LSN such that a snapshot sees just what was committed up to it; None if none is.

    The snapshot sees all that the log's commits up to `after` hold, and nothing beyond `until`,
    which the log has come to. While it was taken, no transaction was open that `after` may hold.
    """
    newest_seen, oldest_unseen = 0, until + 1
    for manifest in reader.manifests(after):
        for file in manifest.files:
            if file.first_lsn is None or file.first_lsn > until:
                continue
            rows = reader.read_columns(file, [COMMIT_LSN, XID])
            lsns, xids = (rows[name].to_numpy() for name in (COMMIT_LSN, XID))
            sees = seen.sees(xids)
            newest_seen = max(newest_seen, int(lsns[sees].max(initial=0)))
            oldest_unseen = min(oldest_unseen, int(lsns[~sees].min(initial=until + 1)))
    return Lsn(oldest_unseen - 1) if newest_seen < oldest_unseen else None
