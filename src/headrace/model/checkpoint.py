"""How far a destination has durably come."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.model.lsn import Lsn


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A table holds exactly the changes up to `lsn`, all found in commits up to `commit`.

    `log_id` is the UUID of the change log: checkpoints of another log never compare or continue.
    A log without LSNs, such as a Delta table's, has the commit's time in milliseconds instead: it
    tells a commit from another one that took its number (0, or the number itself: not known).
    """

    log_id: str
    commit: int
    lsn: Lsn


@dataclass(frozen=True)
class Reached:
    """Up to `lsn` a table is what its source was: it has applied commit `applied` of the log, and
    what came after holds no change of it. Noted beside the log, not in the table.
    """

    log_id: str
    applied: int
    lsn: Lsn
