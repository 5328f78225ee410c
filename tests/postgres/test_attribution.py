"""Which column of the catalog a column of a Relation message is: against every possible reading."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.connectors.postgres.attribution import (
    AmbiguousColumnsError,
    KnownColumns,
    attribute_numbers,
)

looks = st.tuples(st.sampled_from("ab"), st.sampled_from(["integer", "text"]))
columns = st.dictionaries(st.integers(1, 6), looks, max_size=6)


def every_reading(sent, known, *, by_looks: bool) -> list[tuple[int, ...]]:
    """All ways to give the columns numbers in order, no column missing that was there all along."""
    needed = {n for n in known.candidates() if known.required(n)}
    return [
        numbers
        for numbers in combinations(known.candidates(), len(sent))
        if needed <= {*numbers} and (not by_looks or all(map(known.looks, numbers, sent)))
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(looks, max_size=6), columns, columns, st.sets(st.integers(1, 8)))
def test_8_a_reading_is_taken_only_where_there_is_no_other(sent, former, live, dropped):
    """Invariant 8: by looks first, by order else, and never by a guess."""
    known = KnownColumns(former, live, dropped - live.keys())
    found = every_reading(sent, known, by_looks=True) or every_reading(sent, known, by_looks=False)
    if len(found) > 1:
        with pytest.raises(AmbiguousColumnsError):
            attribute_numbers(sent, known)
    else:
        assert attribute_numbers(sent, known) == (found[0] if found else None)


def test_1600_columns_are_told_apart_without_comparing_each_with_each():
    """All of them were there before and are there now: their order settles them."""

    class Counted(KnownColumns):
        asked = 0

        def looks(self, number, look):
            Counted.asked += 1
            return super().looks(number, look)

    before = {number: (f"c{number}", "integer") for number in range(1, 1600)}
    renamed = {**before, 5: ("other", "integer"), 1600: ("added", "text")}
    known = Counted(before, renamed, [])
    assert attribute_numbers([*renamed.values()], known) == tuple(renamed)
    assert Counted.asked < 3 * 1600
