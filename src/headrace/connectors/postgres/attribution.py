"""Which column of the catalog each column of a Relation message is, as of its transaction.

A Relation has no attribute numbers, and the catalog, read now, may be ahead of it: columns may have
been renamed, retyped, dropped and added since. But columns are sent in the order of their numbers,
no number is given twice, and the numbers of the version before are known. Where that leaves room
for doubt, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Looks = tuple[str, str]  # a column's name and its type's text


@dataclass(frozen=True)
class KnownColumns:
    """Columns by number: in the version before, in the catalog now, and numbers of dropped ones."""

    former: Mapping[int, Looks]
    live: Mapping[int, Looks]
    dropped: Collection[int]

    def candidates(self) -> list[int]:
        """Numbers that a column of a version after `former` may have, in order."""
        newest = max(self.former, default=0)
        gone = (number for number in self.dropped if number > newest)
        return sorted({*self.former, *self.live, *gone})

    def required(self, number: int) -> bool:
        """Whether it was there before and is there now: then it was all the time."""
        return number in self.former and number in self.live

    def looks(self, number: int, look: Looks) -> bool:
        """Whether that column looked so before, or does now."""
        return look in (self.former.get(number), self.live.get(number))


class AmbiguousColumnsError(Exception):
    """More than one reading is possible; never leaves the connector."""


def attribute_numbers(sent: Sequence[Looks], known: KnownColumns) -> tuple[int, ...] | None:
    """The number of each column of `sent`; None where `sent` is from before `former`.

    A reading in which each column looks as it did before, or as it does now, is taken for true if
    it is the only one; else the only reading that the order allows.

    Raises:
        AmbiguousColumnsError: there are several.
    """
    candidates = known.candidates()
    required = [known.required(n) for n in candidates]
    # No column comes before the first candidate: if that is required, it is the first one sent.
    # So most columns are settled without looking further; 1,600 in doubt would take seconds.
    head = _run(required)
    tail = _run(required[head:][::-1])
    if head + tail > len(sent):
        return None
    inner = range(head, len(sent) - tail)
    ends = [*range(head), *range(-tail, 0)]
    doubtful, places = candidates[head : len(candidates) - tail], required[head:]
    readings = [[[True] * len(doubtful) for _ in inner]]
    if all(known.looks(candidates[i], sent[i]) for i in ends):
        readings.insert(0, [[known.looks(n, sent[i]) for n in doubtful] for i in inner])
    for fits in readings:
        found = _only_reading(fits, places[: len(doubtful)])
        if found is not None:
            middle = (doubtful[place] for place in found)
            return (*candidates[:head], *middle, *candidates[len(candidates) - tail :])
    return None


def _run(required: Sequence[bool]) -> int:
    """How many are so from the start on."""
    return next((i for i, each in enumerate(required) if not each), len(required))


def _only_reading(fits: Sequence[Sequence[bool]], required: Sequence[bool]) -> Sequence[int] | None:
    readings = _readings(fits, required)
    if readings == _SEVERAL:
        raise AmbiguousColumnsError
    return _first(fits, required) if readings else None


_SEVERAL: Final = 2


def _readings(fits: Sequence[Sequence[bool]], required: Sequence[bool]) -> int:
    """How many ways there are to lay the rows of `fits` in order along `required`; 2 for more."""
    return _counts(fits, required)[0][0]


def _counts(fits: Sequence[Sequence[bool]], required: Sequence[bool]) -> list[list[int]]:
    """The same for the rows from i on along the places from j on, for all i and j."""
    rows, places = len(fits), len(required)
    counts = [[0] * (places + 1) for _ in range(rows + 1)]
    counts[rows][places] = 1
    for j in range(places - 1, -1, -1):
        for i in range(rows, -1, -1):
            skipped = 0 if required[j] else counts[i][j + 1]
            taken = counts[i + 1][j + 1] if i < rows and fits[i][j] else 0
            counts[i][j] = min(skipped + taken, _SEVERAL)
    return counts


def _first(fits: Sequence[Sequence[bool]], required: Sequence[bool]) -> list[int]:
    counts = _counts(fits, required)
    taken: list[int] = []
    for j in range(len(required)):
        i = len(taken)
        if i < len(fits) and fits[i][j] and counts[i + 1][j + 1]:
            taken.append(j)
    return taken
