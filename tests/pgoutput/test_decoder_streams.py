"""What both decoders promise of transactions that are sent in progress, or prepared."""

from __future__ import annotations

import pytest
from decoded_rows import batch_rows, rows
from pgoutput_bytes import (
    PG_EPOCH_US,
    STREAM_STOP,
    be,
    begin_prepare,
    commit_prepared,
    frame,
    insert,
    prepare,
    relation,
    rollback_prepared,
    stream_abort,
    stream_commit,
    stream_start,
    transaction,
    truncate,
)

from headrace.errors import SlotLostError
from headrace.pgoutput import ReferenceDecoder, TransactionEnd


def block(xid: int, *payloads: bytes, first: bool = False) -> list[bytes]:
    """Frames of a block of a streamed transaction."""
    return [frame(p) for p in (stream_start(xid, first=first), *payloads, STREAM_STOP)]


def streamed(decoder: ReferenceDecoder) -> list[tuple[int, list[bytes | None], int | None]]:
    """(xid, keys, commit LSN) of each streamed transaction of a take."""
    return [
        (s.xid, [row[-1][0] for row in batch_rows(s.batches)], s.end and s.end.end_lsn)
        for s in decoder.take().streamed
    ]


def test_rows_of_streams_stay_apart_until_they_commit(decoder: ReferenceDecoder) -> None:
    """Two at once, and whole transactions between their blocks."""
    decoder.push(block(5, relation(1, xid=be(5)), insert(1, b"50", b"", xid=be(5)), first=True))
    decoder.push(block(6, relation(1, xid=be(6)), insert(1, b"60", b"", xid=be(6)), first=True))
    decoder.push(transaction(100, relation(1), insert(1, b"1", b"")))
    decoder.push(block(5, insert(1, b"51", b"", xid=be(7))))
    assert not decoder.in_transaction
    assert decoder.buffered_rows == 1
    decoder.push([frame(stream_commit(5, 200)), *transaction(300, insert(1, b"2", b""))])
    decoded = decoder.take()
    assert [row[-1][0] for row in rows(decoded)] == [b"1", b"2"]
    five, six = decoded.streamed
    assert (five.xid, five.end, five.after) == (5, TransactionEnd(208, PG_EPOCH_US, 5), 1)
    assert [x for batch in five.batches for x in batch.xids.tolist()] == [5, 7]
    assert [x for batch in five.batches for x in batch.ordinals.tolist()] == [0, 1]
    assert (six.xid, six.end, six.aborted) == (6, None, False)
    assert decoded.transactions.end_lsns.tolist() == [108, 208, 308]
    decoder.push([frame(stream_commit(6, 400))])
    assert decoder.buffered_rows == 1  # what was handed over before is to be committed
    assert streamed(decoder) == [(6, [], 408)]


def test_what_was_rolled_back_is_left_out_or_told(decoder: ReferenceDecoder) -> None:
    """Of a subtransaction, whose rows may have been taken before; of all of it."""
    first = [insert(1, b"a", b"", xid=be(5)), insert(1, b"b", b"xyz", xid=be(7))]
    decoder.push(block(5, relation(1, xid=be(5)), *first, first=True))
    decoder.push([frame(stream_abort(5, 7))])
    assert streamed(decoder) == [(5, [b"a"], None)]
    decoder.push(block(5, insert(1, b"c", b"", xid=be(8)), insert(1, b"d", b"", xid=be(5))))
    decoder.take()
    decoder.push([frame(stream_abort(5, 8)), frame(stream_commit(5, 300))])
    (five,) = decoder.take().streamed
    assert five.rolled_back == {8}

    decoder.push(block(6, relation(1, xid=be(6)), insert(1, b"e", b"", xid=be(6)), first=True))
    decoder.push([frame(stream_abort(6, 6)), frame(stream_abort(4, 4))])
    assert decoder.buffered_bytes == 0
    assert decoder.take().streamed == []  # nobody ever heard of it
    decoder.push(block(9, relation(1, xid=be(9)), insert(1, b"f", b"", xid=be(9)), first=True))
    decoder.take()
    decoder.push([frame(stream_abort(9, 9))])
    (nine,) = decoder.take().streamed
    assert (nine.xid, nine.aborted, nine.end) == (9, True, None)


def test_a_table_looks_as_its_transaction_says_and_to_others_so_when_that_commits(
    decoder: ReferenceDecoder,
) -> None:
    wide, wider = ("id", "v", "w"), ("id", "v", "w", "x")
    decoder.push(transaction(100, relation(1), insert(1, b"1", b"")))
    decoder.push(block(5, relation(1, wide, xid=be(5)), first=True))
    decoder.push(block(6, relation(1, wider, xid=be(6)), first=True))
    decoder.push(transaction(200, insert(1, b"2", b"")))  # still two columns
    decoder.push([frame(stream_abort(6, 6)), frame(stream_commit(5, 300))])
    decoder.push(transaction(400, insert(1, b"3", b"", b"")))
    assert [row[-1] for row in rows(decoder.take())][-1] == (b"3", b"", b"")


def test_of_two_looks_of_a_table_the_one_told_last_stands(decoder: ReferenceDecoder) -> None:
    """A publication's columns may change while a transaction is in progress."""
    wide = ("id", "v", "w")
    decoder.push(block(5, relation(1, xid=be(5)), first=True))
    decoder.push(transaction(200, relation(1, wide), insert(1, b"2", b"", b"")))
    decoder.push([frame(stream_commit(5, 300))])
    decoder.push(transaction(400, insert(1, b"3", b"", b"")))
    assert decoder.buffered_rows == 2


def test_a_prepared_transaction_waits_apart_and_what_it_holds_up_with_it(
    decoder: ReferenceDecoder,
) -> None:
    """Until its COMMIT PREPARED is durable the server must not be told to forget its PREPARE."""
    decoder.push(transaction(50, relation(1)))
    decoder.push([frame(begin_prepare(5, 100)), frame(insert(1, b"5", b""))])
    assert decoder.in_transaction
    decoder.push([frame(prepare(5, 100)), *transaction(200, insert(1, b"1", b""))])
    decoder.push(block(6, relation(1, xid=be(6)), insert(1, b"6", b"", xid=be(6)), first=True))
    decoder.push([frame(prepare(6, 300, letter=b"p"))])
    assert not decoder.in_transaction
    assert decoder.buffered_rows == 1
    assert [row[-1][0] for row in rows(decoder.take())] == [b"1"]
    assert decoder.prepared.releasable(90) == 90
    assert decoder.prepared.releasable(400) == 100
    decoder.push([frame(commit_prepared(5, 400))])
    assert streamed(decoder) == [(5, [], 408)]
    assert decoder.prepared.releasable(407) == 100
    assert decoder.prepared.releasable(500) == 300
    decoder.push([frame(rollback_prepared(6)), frame(rollback_prepared(7))])
    assert decoder.prepared.releasable(500) == 500
    assert decoder.take().streamed[0].aborted


def test_what_commits_before_the_start_is_passed_over(decoder_type: type[ReferenceDecoder]) -> None:
    """The server sends it again; the tables that it tells of then are told once and for all."""
    decoder = decoder_type(start=300)
    decoder.push([frame(begin_prepare(4, 100)), frame(prepare(4, 100))])
    decoder.push(transaction(200, relation(1), insert(1, b"0", b""), truncate(1)))
    decoder.push(block(5, relation(2, xid=be(5)), insert(2, b"5", b"", xid=be(5)), first=True))
    decoder.push([frame(stream_commit(5, 250)), frame(commit_prepared(4, 299))])
    decoder.push([frame(commit_prepared(3, 280))])  # it was prepared before
    assert decoder.last_commit_lsn == decoder.buffered_rows == 0
    decoder.push(transaction(300, insert(1, b"1", b""), insert(2, b"2", b"")))
    assert [row[-1][0] for row in rows(decoder.take())] == [b"1", b"2"]
    with pytest.raises(SlotLostError, match=r"'lost' has committed at 0/190") as lost:
        decoder.push([frame(commit_prepared(9, 400, gid="lost"))])
    assert lost.value.hint


def test_streams_stay_while_they_are_small_and_the_largest_goes_first(
    decoder: ReferenceDecoder,
) -> None:
    for xid, size in ((5, 100), (6, 1000), (7, 10)):
        row = insert(1, b"k", b"x" * size, xid=be(xid))
        decoder.push(block(xid, relation(1, xid=be(xid)), row, first=True))
    before = decoder.buffered_bytes
    assert [s.xid for s in decoder.take(before).streamed] == []
    assert [s.xid for s in decoder.take(before - 1).streamed] == [6]
    assert decoder.buffered_bytes < 300
    assert [s.xid for s in decoder.take().streamed] == [5, 7]
    assert decoder.buffered_bytes == 0
