"""Rows that are kept raw until their transaction commits come back as they were."""

from __future__ import annotations

import dataclasses
import errno
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace.connectors.postgres.raw_spill import RawSpill
from headrace.connectors.postgres.taken import InProgress
from headrace.errors import LogFullError
from headrace.model import ReplicaIdentity
from headrace.pgoutput import RawBatch, ReferenceDecoder, Relation
from headrace.pgoutput.messages import RelationColumn

XIDS = [5, 6, 6, 7]


def relation(*columns: str) -> Relation:
    told = tuple(RelationColumn(False, name, 25, -1) for name in columns)
    return Relation(5, 16384, "public", "t", ReplicaIdentity.FULL, told)


def batch(told: Relation, *, old: bool) -> RawBatch:
    """Four rows: a null, an unsent value, an empty one and a long one in each column."""
    width, decoder = len(told.columns), ReferenceDecoder()
    values = [b"n", b"u", b"t\0\0\0\0", b"t\0\0\4\0" + b"x" * 1024]
    decoder._plain.relations[told.relation_id] = told  # as told before
    frames = [b"B" + bytes(8) + bytes(8) + bytes(4)]
    for value in values:
        row = width.to_bytes(2, "big") + value * width
        before = b"O" + row if old else b""
        frames.append((b"U" if old else b"I") + (16384).to_bytes(4, "big") + before + b"N" + row)
    decoder.push([b"w" + bytes(24) + frame for frame in frames])
    (found,) = decoder.take().batches
    return dataclasses.replace(found, xids=np.array(XIDS, np.uint32))


def plain(found: RawBatch) -> dict[str, Any]:
    """All that a batch holds, as values that compare."""
    columns = [c for side in (found.new, found.old or ()) for c in side]
    arrays: list[npt.NDArray[Any]] = [found.ops, found.ordinals, found.xids, found.old_kind]
    return {
        "relation": found.relation,
        "rows": [array.tolist() for array in arrays],
        "columns": [(c.kinds.tolist(), c.to_arrow().to_pylist()) for c in columns],
        "old": found.old is not None,
    }


def test_batches_of_any_shape_come_back_in_order() -> None:
    shapes = [relation("a"), relation("a", "b", "c"), relation()]
    batches = [batch(told, old=old) for told in shapes for old in (False, True)]
    spill = RawSpill()
    for each in batches:
        spill.add(each)
    assert [plain(found) for found in spill.read()] == [plain(each) for each in batches]
    spill.close()


def test_what_was_rolled_back_does_not_come_back() -> None:
    """Whether before or after it was kept, and whole batches not at all."""
    progress, told = InProgress(), relation("a", "b")
    progress.keep(batch(told, old=True))
    progress.rolled_back |= {6}
    (found,) = progress.kept()
    assert found.xids.tolist() == [5, 7]
    assert found.new[1].to_arrow().to_pylist() == [None, b"x" * 1024]
    assert found.old is not None
    assert found.old[0].kinds.tobytes() == b"nt"
    progress.rolled_back |= {5, 7}
    assert list(progress.kept()) == []
    progress.close()


def test_a_full_folder_for_temporary_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(LogFullError, match="No space left") as caught:
        RawSpill()
    assert "TMPDIR" in caught.value.hint
