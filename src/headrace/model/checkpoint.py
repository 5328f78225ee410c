"""How far a destination has durably come."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.model.lsn import Lsn


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A table holds exactly the changes up to `lsn`, all found in commits up to `commit`.

    `log_id` is the UUID of the change log: checkpoints of another log never compare or continue.
    """

    log_id: str
    commit: int
    lsn: Lsn
