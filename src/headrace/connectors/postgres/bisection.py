"""Landing a batch of which some rows may be refused: all that can be applied is, the rest is named.

A batch that the server takes costs one savepoint. One that it refuses is halved, inside savepoints,
until the refused rows stand alone: about 2 log2(n) statements for each of them.

A constraint between rows (unique, foreign key, exclusion) may refuse a part of a batch for want of
the other part: a value handed from one row to another, a child before its parent. Such a part is
not halved while others still move, and is tried again, joined, after them. Rows that a foreign
key stands against for good are then told apart by one query. Values that go round (a
swap) no order of single rows can apply: where the table allows it, their rows make room first
(`Part.vacate`) and come back together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa

from headrace.connectors.postgres.foreign_keys import against
from headrace.connectors.postgres.refusals import UNIQUE, Refusal, refusal
from headrace.connectors.postgres.target_session import Connection

Positions = npt.NDArray[np.int64]
LandRows = Callable[[pa.Table], None]

# Constraints that may be deferred to COMMIT would refuse the whole transaction there, when it is
# too late to tell which row is to blame. What stands so far is checked at once.
CHECK_NOW = "SET CONSTRAINTS ALL IMMEDIATE"


class Operation(Enum):
    """What was to be done with a row."""

    UPSERT = "upsert"
    DELETE = "delete"  # the row holds the key columns only, where the table has a key


@dataclass(frozen=True)
class Part:
    """Rows of one operation, and how any of them are landed, in a transaction that is open.

    `land` may be rolled back to a savepoint and called again with fewer rows: what it makes in the
    database goes with it (a temporary table too), and it must keep no memory of that.
    `vacate`, where given, removes the rows that stand under the same keys, so that their unique
    values are free; it is followed by `land` of the same rows, or rolled back. Whether the table
    allows that, `vacatable` is asked first, and only where it is needed.
    """

    operation: Operation
    rows: pa.Table
    land: LandRows
    vacate: LandRows | None = None
    vacatable: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Refused:
    """A row that was not applied: the one at `position` of its part, a table of one."""

    operation: Operation
    position: int
    row: pa.Table
    refusal: Refusal


class TooManyRefusedError(Exception):
    """More rows are refused than `land` was allowed to find; `refused` are those found so far."""

    def __init__(self, refused: Sequence[Refused]) -> None:
        super().__init__(f"more than {len(refused) - 1} rows are refused")
        self.refused = refused


def land(connection: Connection, parts: Sequence[Part], limit: int) -> list[Refused]:
    """Land the parts in their order, all but the rows returned; a transaction must be open.

    Each operation has at most one part.

    Raises:
        TooManyRefusedError: more than `limit` rows are refused; the transaction is to be rolled
            back, part of the rows is applied.
        psycopg.Error: what is no row's fault.
    """
    whole = [_Piece(part, np.arange(part.rows.num_rows)) for part in parts if part.rows.num_rows]
    search = _Search(connection, limit)
    waiting = search.advance(whole)
    search.settle(waiting)
    return [_refused(piece) for piece in search.refused]


@dataclass(frozen=True, eq=False)
class _Piece:
    part: Part
    positions: Positions  # of rows of the part, ascending
    refusal: Refusal | None = None  # of the last attempt

    @property
    def single(self) -> bool:
        return len(self.positions) == 1

    @property
    def curable(self) -> bool:
        return self.refusal is not None and self.refusal.dependent

    @property
    def rows(self) -> pa.Table:
        """As slices: nothing is copied for whole halves, and `take` does not know every type."""
        ends = np.flatnonzero(np.diff(self.positions) != 1) + 1
        runs = np.split(self.positions, ends)
        slices = [self.part.rows.slice(int(run[0]), len(run)) for run in runs]
        return slices[0] if len(slices) == 1 else pa.concat_tables(slices).combine_chunks()

    def halves(self) -> tuple[_Piece, _Piece]:
        low, high = np.array_split(self.positions, 2)
        return _Piece(self.part, low), _Piece(self.part, high)


class _Search:
    """The refused rows of one batch; those in `refused` are final, whatever else is applied."""

    def __init__(self, connection: Connection, limit: int) -> None:
        self._connection = connection
        self._limit = limit
        self._vacate: dict[Operation, LandRows | None] = {}
        self.refused: list[_Piece] = []

    def advance(self, pieces: Sequence[_Piece]) -> Sequence[_Piece]:
        """Land what can be without halving pieces that wait for others; return those."""
        while pieces:
            waiting = self._keep_curable(self._pass(pieces, halve_curable=False))
            if _count(waiting) == _count(pieces):
                break
            pieces = _joined(waiting)
        return pieces

    def settle(self, pieces: Sequence[_Piece]) -> None:
        """Halve what waits too, until nothing moves any more; then all that is left is refused."""
        while pieces:
            waiting = self._keep_curable(self._pass(pieces, halve_curable=True))
            if _count(waiting) == _count(pieces):
                self._refuse(self._together(waiting))
                break
            pieces = _joined(waiting)

    def _pass(self, pieces: Sequence[_Piece], *, halve_curable: bool) -> list[_Piece]:
        """Try each piece once, halving those refused; the pieces that no halving helps."""
        failed: list[_Piece] = []
        todo = list(reversed(pieces))
        while todo:
            piece = todo.pop()
            found = self._try(piece)
            if found is None:
                continue
            piece = replace(piece, refusal=found)
            if piece.single or (piece.curable and not halve_curable):
                failed.append(piece)
                self._spend([p for p in failed if p.single])
            else:
                todo.extend(reversed(self._divided(piece)))
        return failed

    def _divided(self, piece: _Piece) -> Sequence[_Piece]:
        """Apart from each other, as far as can be told: rows to blame, and rows that are not."""
        if piece.refusal and piece.refusal.waits:
            blamed = against(self._connection, piece.refusal, piece.rows)
            if blamed and len(blamed) < len(piece.positions):
                mask = np.zeros(len(piece.positions), np.bool_)
                mask[list(blamed)] = True
                return [_Piece(piece.part, piece.positions[side]) for side in (~mask, mask)]
        return piece.halves()

    def _try(self, piece: _Piece) -> Refusal | None:
        found = _attempt(self._connection, piece.rows, piece.part.land)
        vacate = self._vacating(piece.part) if found and found.sqlstate == UNIQUE else None
        if vacate is None:
            return found
        return _attempt(self._connection, piece.rows, vacate, piece.part.land)

    def _vacating(self, part: Part) -> LandRows | None:
        if part.operation not in self._vacate:
            allowed = part.vacate is not None and part.vacatable()
            self._vacate[part.operation] = part.vacate if allowed else None
        return self._vacate[part.operation]

    def _together(self, waiting: Sequence[_Piece]) -> list[_Piece]:
        """Let rows whose unique values go round make room for each other; return the others.

        All of them make room. Those that are refused even then are refused by rows that stay where
        they are: they keep their former values, which others may want, and the rest is tried anew.
        """
        rotating = [p for p in waiting if _state(p) == UNIQUE and self._vacating(p.part)]
        left = [p for p in waiting if p not in rotating]
        while rotating:
            blocked = self._land_vacated(rotating)
            if not blocked:
                break
            left.extend(blocked)
            out = {int(piece.positions[0]) for piece in blocked}
            rotating = [p for p in rotating if int(p.positions[0]) not in out]
        return left

    def _land_vacated(self, rotating: Sequence[_Piece]) -> Sequence[_Piece]:
        """Land single rows in the room they make, or nothing of them: those that are refused."""
        (group,) = _joined(rotating)
        vacate = self._vacating(group.part)
        assert vacate is not None
        blocked: Sequence[_Piece] = ()
        with self._connection.transaction():
            if _attempt(self._connection, group.rows, vacate):
                blocked = rotating
            else:
                blocked = self._pass([group], halve_curable=True)
            if blocked:
                raise psycopg.Rollback
        return blocked

    def _keep_curable(self, failed: Sequence[_Piece]) -> list[_Piece]:
        self._refuse([piece for piece in failed if not piece.curable])
        return [piece for piece in failed if piece.curable]

    def _refuse(self, pieces: Sequence[_Piece]) -> None:
        self.refused.extend(pieces)
        self._spend(())

    def _spend(self, more: Sequence[_Piece]) -> None:
        if len(self.refused) + len(more) > self._limit:
            raise TooManyRefusedError([_refused(piece) for piece in (*self.refused, *more)])


def _attempt(connection: Connection, rows: pa.Table, *steps: LandRows) -> Refusal | None:
    """Take the steps in a savepoint; where a row is to blame, go back to it and say why."""
    try:
        with connection.transaction():
            for step in steps:
                step(rows)
            connection.execute(CHECK_NOW)
    except psycopg.Error as error:
        found = refusal(error)
        if found is None:
            raise
        return found
    return None


def _count(pieces: Sequence[_Piece]) -> int:
    return sum(len(piece.positions) for piece in pieces)


def _joined(pieces: Sequence[_Piece]) -> list[_Piece]:
    """The pieces of each part as one, parts in their order."""
    found: dict[int, list[_Piece]] = {}
    for piece in pieces:
        found.setdefault(id(piece.part), []).append(piece)
    return [
        _Piece(group[0].part, np.sort(np.concatenate([p.positions for p in group])))
        for group in found.values()
    ]


def _state(piece: _Piece) -> str:
    return piece.refusal.sqlstate if piece.refusal else ""


def _refused(piece: _Piece) -> Refused:
    assert piece.refusal is not None
    return Refused(piece.part.operation, int(piece.positions[0]), piece.rows, piece.refusal)
