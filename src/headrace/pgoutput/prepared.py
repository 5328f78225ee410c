"""Prepared transactions that wait for their COMMIT PREPARED, and what they hold up.

Nothing of a prepared transaction outlives the session: the server sends it again, if its PREPARE
record begins at or after the position that was confirmed to it. Else nothing comes of it but the
COMMIT PREPARED (Postgres, reorderbuffer.c, ReorderBufferFinishPrepared, and snapbuild.c,
SnapBuildXactNeedsSkip). So no more may be confirmed than where the oldest of them begins.
"""

from __future__ import annotations

from headrace.errors import SlotLostError
from headrace.model import Lsn
from headrace.pgoutput.messages import CommitPrepared


class Prepared:
    """Noted as the messages come; LSNs are as in these, `durable` is what the caller has kept."""

    def __init__(self) -> None:
        self._waiting: dict[int, int] = {}  # by xid, where the PREPARE begins
        self._ended: list[tuple[int, int]] = []  # that, and the end of the COMMIT PREPARED

    def prepare(self, xid: int, prepare_lsn: int) -> None:
        self._waiting[xid] = prepare_lsn

    def commit(self, xid: int, end_lsn: int) -> None:
        began = self._waiting.pop(xid, None)
        if began is not None:
            self._ended.append((began, end_lsn))

    def roll_back(self, xid: int) -> None:
        self._waiting.pop(xid, None)

    def releasable(self, durable: int) -> int:
        """Up to where the server may be told that all is durable, if it is up to `durable`."""
        self._ended = [(began, end) for began, end in self._ended if end > durable]
        held = [*self._waiting.values(), *(began for began, _ in self._ended)]
        return min(durable, *held) if held else durable


def require_sent(commit: CommitPrepared, start: int) -> None:
    """Refuse a COMMIT PREPARED without rows, unless it is one of those that `start` is after.

    Raises:
        SlotLostError: its rows were confirmed to the server, by somebody else.
    """
    if commit.commit_lsn >= start:
        raise SlotLostError(
            f"the prepared transaction {commit.gid!r} has committed at {Lsn(commit.commit_lsn)}, "
            "but the slot stands after its PREPARE: its changes are not sent any more",
            hint="somebody else read from the slot: headrace destroy, then headrace run writes "
            "what differs; auto_refresh: {on: [log_lost]} does it by itself",
        )
