"""Follows rows through their changes: which earlier change last sent a column's value.

Changes are numbered by their place in a stretch, keys by their codes (factorize.py). Everything is
vectorised; the cost grows with the logarithm of the longest chain of updates, not with its length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

OUTSIDE: Final = -1  # the row before this change is older than the stretch
NOWHERE: Final = -2  # there was no row before this change

_NONE: Final = -1


@dataclass(frozen=True)
class KeyEvents:
    """Per change, the code of the key it takes a row from and of the key it puts one under, or -1.

    A change that does both first removes, then puts, and the keys differ: the row moved.
    """

    removed: Ints
    put: Ints

    def last(self, keys: int) -> tuple[Ints, Ints]:
        """The changes whose row stands at the end, and the last removals of the keys without one.

        Both are in order of position and name each of the `keys` codes at most once.
        """
        last_put, last_removed = _last(self.put, keys), _last(self.removed, keys)
        # One change never removes and puts the same key, so the two are equal only if both are -1.
        stands = last_put > last_removed
        return np.sort(last_put[stands]), np.sort(last_removed[last_removed > last_put])

    def without_removals(self) -> KeyEvents:
        """The same where rows stay under the keys that others moved away from."""
        return KeyEvents(np.full_like(self.removed, _NONE), self.put)

    def predecessors(self, updates: Bools) -> Ints:
        """Per change, the earlier change whose row it updates; else OUTSIDE or NOWHERE.

        Only `updates` have a row before them; one of a row that is gone has it NOWHERE.
        """
        n = len(self.put)
        removals, puts = np.flatnonzero(self.removed != _NONE), np.flatnonzero(self.put != _NONE)
        # Change c removes at time 2c and puts at 2c + 1; one sort orders the times of every key.
        codes = np.concatenate([self.removed[removals], self.put[puts]])
        ordered = np.sort(codes * (2 * n) + np.concatenate([2 * removals, 2 * puts + 1]))
        key, time = np.divmod(ordered, 2 * n)
        earlier = np.full(2 * n, _NONE)
        earlier[time[1:]] = np.where(key[1:] == key[:-1], time[:-1], _NONE)
        changes = np.arange(n)
        before = earlier[2 * changes + (self.removed == _NONE)]
        source = np.where(before % 2 == 1, before // 2, NOWHERE)
        source[before == _NONE] = OUTSIDE
        return np.where(updates, source, NOWHERE)


def origins(unsent: Bools, predecessors: Ints) -> Ints:
    """Per change, the change nearest before it (or itself) that sent the column.

    Where there is none, the oldest change of the row in the stretch; `unsent` holds there.
    """
    step = np.where(unsent & (predecessors >= 0), predecessors, np.arange(len(unsent)))
    while True:
        further = step[step]
        if np.array_equal(further, step):
            return step
        step = further


def _last(codes: Ints, keys: int) -> Ints:
    """Per key the last change that names it, or -1."""
    last = np.full(keys, _NONE)
    changes = np.flatnonzero(codes != _NONE)
    last[codes[changes]] = changes  # numpy: where an index repeats, the last assignment stands
    return last
