"""A snapshot's place in the log: all that it sees is before, all else is after."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from change_samples import change_batch, insert, table_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.engine.capture import Capture
from headrace.engine.placing import Placing
from headrace.log import CommitDraft, LogReader, LogWriter, open_storage
from headrace.model import COMMIT_LSN, XID, ChangeBatch, Lsn, Visibility

SCHEMA = table_schema({"id": "bigint"}, key=("id",))
NOW = datetime(2026, 1, 2, tzinfo=UTC)
EPOCH = 3 << 32  # ids have 64 bits, of which the log knows 32


class Quiet:
    """A source where nothing more happens."""

    def __init__(self, lsn: Lsn) -> None:
        self.lsn = lsn

    def current_lsn(self) -> Lsn:
        return self.lsn


def placed(xids: Sequence[int], seen: Visibility, after: int = 0) -> Lsn | None:
    """Of a log of one transaction per commit, the n-th of which ends at LSN 10 * n."""
    with TemporaryDirectory() as folder, LogWriter.open(open_storage(folder), "shop") as log:
        log.add_schema(SCHEMA)
        for number, xid in enumerate(xids, 1):
            lsn = Lsn(10 * number)
            batch = change_batch(SCHEMA, [insert(id=number)])
            columns = {COMMIT_LSN: int(lsn), XID: xid & 0xFFFFFFFF}
            data = batch.data
            for name, value in columns.items():
                place = data.schema.get_field_index(name)
                field = data.schema.field(place)
                data = data.set_column(place, field, cast(Any, pa.array([value], field.type)))
            log.commit(CommitDraft(lsn, NOW, [log.stage(ChangeBatch(SCHEMA, data))]))
        source = cast(Any, Quiet(Lsn(10 * len(xids) + 5)))
        log.commit(CommitDraft(source.lsn, NOW, []))
        capture = Capture(source, log)
        try:
            reader = LogReader(log.storage, log.layout, log.log_id, log.feed)
            return Placing(source, log, reader, capture, threading.Event()).place(after, seen)
        finally:
            capture.close()


@settings(deadline=None, max_examples=60)
@given(
    xids=st.permutations(range(8)),
    running=st.frozensets(st.integers(0, 7), max_size=3),
    following=st.integers(0, 8),
    wrap=st.sampled_from([0, 0xFFFFFFFC]),
)
def test_7_a_place_is_found_where_there_is_one_and_only_there(
    xids: list[int], running: frozenset[int], following: int, wrap: int
) -> None:
    """Invariant 7; ids may wrap around in between."""
    first = EPOCH + wrap
    seen = Visibility(first + following, frozenset(first + x for x in running))
    visible = [x < following and x not in running for x in xids]
    place = placed([first + x for x in xids], seen)
    if visible == sorted(visible, reverse=True):
        assert place is not None
        assert [10 * n <= place for n in range(1, 9)] == visible
    else:
        assert place is None


def test_what_the_log_held_before_is_not_asked_for() -> None:
    """It may be of any age, more than 32 bits can tell."""
    assert placed([5, 1, 2], Visibility(3, frozenset()), after=1) == Lsn(35)


@pytest.mark.parametrize("age", [1, 2**31 - 1])
def test_ids_of_32_bits_are_read_as_those_nearby(age: int) -> None:
    seen = Visibility(EPOCH + 5, frozenset())
    xids = np.array([(EPOCH + 5 - age) & 0xFFFFFFFF, (EPOCH + 4 + age) & 0xFFFFFFFF], np.uint32)
    assert seen.sees(xids).tolist() == [True, False]
