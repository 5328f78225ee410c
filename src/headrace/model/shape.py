"""What a table at a destination shows of its source: the state, the history, or every change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from headrace.model.delivery import OnDelete

# Of a table in mode scd2, as Databricks names them: when a version came, and when the next one did.
# The version that is current has a null END_AT.
START_AT: Final = "__START_AT"
END_AT: Final = "__END_AT"


class Mode(Enum):
    SCD1 = "scd1"  # the current state
    SCD2 = "scd2"  # every version of every row, with its interval
    APPEND = "append"  # every change as a row


class Metadata(Enum):
    """What else a row may tell of the change that brought it, as columns `_lsn`, `_commit_ts` …"""

    LSN = "lsn"  # end of its transaction
    COMMIT_TS = "commit_ts"
    OP = "op"  # i, u, d; r where a snapshot brought the row
    XID = "xid"

    @property
    def column(self) -> str:
        return f"_{self.value}"


@dataclass(frozen=True)
class Shape:
    """The user's choices for one table.

    `track` names the columns whose changes make a version in mode scd2 (none: all do). `on_delete`
    is left at DELETE for a destination that keeps deleted rows by itself (Delivery).
    """

    mode: Mode = Mode.SCD1
    metadata: tuple[Metadata, ...] = ()
    track: tuple[str, ...] = ()
    on_delete: OnDelete = OnDelete.DELETE
