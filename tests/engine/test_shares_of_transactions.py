"""A transaction that memory does not hold, where versions of rows are kept: divided by its keys."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import pytest
from change_samples import Change, change_batch, insert, table_schema, update

from headrace.engine import parting
from headrace.engine.parting import cut
from headrace.errors import LogFullError
from headrace.model import COMMIT_LSN, ORDINAL, ChangeBatch

SCHEMA = table_schema({"id": "bigint", "doc": "text"}, ["id"])
PART = 50
Place = tuple[int, int]  # a change's LSN and ordinal


def transactions(*changes: Sequence[Change]) -> list[ChangeBatch]:
    """One after the other, in batches that do not end with them."""
    told = [replace(c, lsn=lsn) for lsn, some in enumerate(changes, start=1) for c in some]
    data = change_batch(SCHEMA, told).data
    return [ChangeBatch(SCHEMA, data.slice(start, 70)) for start in range(0, len(told), 70)]


def parts(batches: Sequence[ChangeBatch]) -> list[list[tuple[Place, int | None]]]:
    """By part, the place and the key of each change."""
    with mock.patch.object(parting, "PART_ROWS", PART):
        return [
            [place for batch in part for place in places(batch)]
            for part in cut(batches, whole_transactions=True)
        ]


def places(batch: ChangeBatch) -> list[tuple[Place, int | None]]:
    lsn, ordinal, key = (batch.data[name].to_pylist() for name in (COMMIT_LSN, ORDINAL, "id"))
    return [((a, b), c) for a, b, c in zip(lsn, ordinal, key, strict=True)]


def test_10_a_large_transaction_is_divided_and_what_it_does_to_a_key_is_not() -> None:
    """Invariant 10: parts are bounded, complete, and hold all changes of a key in their order."""
    few, many = [insert(id=1, doc="a")], [insert(id=n % 90, doc="b") for n in range(1000)]
    made = parts(transactions(few, many, few))
    assert max(map(len, made)) <= 2 * PART
    assert sorted(place for part in made for place in part) == sorted(
        place for batch in transactions(few, many, few) for place in places(batch)
    )
    for part in made:
        assert len({lsn for (lsn, _), _ in part}) == 1
        assert [place for place, _ in part] == sorted(place for place, _ in part)
    large = [{key for _, key in part} for part in made if len(part) > 1]
    assert sum(map(len, large)) == len(set().union(*large)) == 90


@pytest.mark.parametrize(
    "apart", [update({"id": 7}, ("doc",), id=500, doc=None), Change("t")], ids=["moved", "truncate"]
)
def test_5_a_transaction_that_moves_a_key_or_truncates_stays_whole(apart: Change) -> None:
    """Invariant 5: its keys are not apart from each other."""
    many = [insert(id=n, doc="b") for n in range(300)]
    (part,) = parts(transactions([*many, apart, *many]))
    assert [place for place, _ in part] == [(1, n) for n in range(601)]


def test_no_room_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(LogFullError, match="/proc/nowhere"):
        parts(transactions([insert(id=n, doc="b") for n in range(300)]))
