"""What both decoders promise, message by message."""

from __future__ import annotations

import gc
import struct

import pyarrow as pa
import pytest
from decoded_rows import batch_rows, rows, tuples
from pgoutput_bytes import (
    PG_EPOCH_US,
    STREAM_STOP,
    UNCHANGED,
    Binary,
    be,
    begin,
    begin_prepare,
    commit,
    commit_prepared,
    delete,
    frame,
    insert,
    message,
    prepare,
    relation,
    rollback_prepared,
    stream_abort,
    stream_commit,
    stream_start,
    string,
    transaction,
    truncate,
    update,
)

from headrace.errors import ProtocolError, SlotLostError
from headrace.pgoutput import Message, ReferenceDecoder, TransactionEnd
from headrace.pgoutput.columns import COMMIT_BYTES, ROW_BYTES, VALUE_BYTES


def test_rows_bear_the_end_of_their_transaction_and_their_place_in_it(
    decoder: ReferenceDecoder,
) -> None:
    decoder.push(
        [
            *transaction(100, relation(1), insert(1, b"1", b"a"), insert(1, b"2", b"b")),
            *transaction(200, insert(1, b"3", None), xid=8, commit_ts=50),
        ]
    )
    decoded = decoder.take()
    (batch,) = decoded.batches
    assert batch.ops.tobytes() == b"iii"
    assert batch.ordinals.tolist() == [0, 1, 0]
    assert batch.commit_lsns.tolist() == [108, 108, 208]
    assert batch.commit_ts.tolist() == [PG_EPOCH_US, PG_EPOCH_US, PG_EPOCH_US + 50]
    assert batch.xids.tolist() == [7, 7, 8]
    assert batch.complete == 3
    assert batch.old is None
    assert batch.new[0].text().to_pylist() == [b"1", b"2", b"3"]
    assert batch.new[1].text().to_pylist() == [b"a", b"b", None]
    assert decoded.transactions.end_lsns.tolist() == [108, 208]
    assert decoded.transactions.xids.tolist() == [7, 8]
    assert decoded.last_commit_lsn == decoder.last_commit_lsn == 208


def test_old_tuples_stand_beside_their_rows_only(decoder: ReferenceDecoder) -> None:
    decoder.push(
        transaction(
            100,
            relation(1),
            insert(1, b"1", b"a"),
            update(1, (b"1", b"b")),
            update(1, (b"2", UNCHANGED), (b"1", None)),
            delete(1, (b"2", b"b"), kind=b"O"),
            insert(1, b"3", b"c"),
        )
    )
    (batch,) = decoder.take().batches
    assert batch.ops.tobytes() == b"iuudi"
    assert batch.old_kind.tolist() == [0, 0, ord("K"), ord("O"), 0]
    absent = ("absent", "absent")
    assert list(tuples(batch.new, 5)) == [
        (b"1", b"a"),
        (b"1", b"b"),
        (b"2", "unsent"),
        absent,
        (b"3", b"c"),
    ]
    assert batch.old is not None
    assert list(tuples(batch.old, 5)) == [absent, absent, (b"1", None), (b"2", b"b"), absent]


def test_a_truncate_is_one_row_of_each_table_under_one_ordinal(decoder: ReferenceDecoder) -> None:
    decoder.push(
        transaction(
            100,
            relation(1, name="a"),
            relation(2, name="b"),
            insert(1, b"1", b"x"),
            truncate(1, 2),
            insert(2, b"2", b"y"),
        )
    )
    absent = ("absent", "absent")
    assert rows(decoder.take()) == [
        ("a", "i", 0, (b"1", b"x")),
        ("a", "t", 1, absent),
        ("b", "t", 1, absent),
        ("b", "i", 2, (b"2", b"y")),
    ]


def test_a_transaction_cut_by_takes_keeps_counting_and_tells_its_end_once(
    decoder: ReferenceDecoder,
) -> None:
    first, last = begin(300, 9, xid=5), commit(300, commit_ts=9)
    decoder.push([*transaction(100, relation(1), insert(1, b"0", b""))])
    decoder.push([frame(first), frame(insert(1, b"1", b""))])
    assert decoder.in_transaction
    one = decoder.take()
    assert one.batches[0].complete == 1
    assert one.batches[0].commit_lsns.tolist() == [108, 0]
    assert one.batches[0].commit_ts.tolist() == [PG_EPOCH_US, 0]
    assert one.finished is None

    decoder.push([frame(insert(1, b"2", b""))])
    two = decoder.take()
    assert two.batches[0].complete == 0
    assert two.batches[0].ordinals.tolist() == [1]
    assert two.finished is None
    assert two.last_commit_lsn == 108

    decoder.push([frame(insert(1, b"3", b"")), frame(last), *transaction(400, xid=6)])
    three = decoder.take()
    assert three.finished == TransactionEnd(308, PG_EPOCH_US + 9, 5)
    assert three.batches[0].ordinals.tolist() == [2]
    assert three.batches[0].commit_lsns.tolist() == [308]
    assert three.transactions.end_lsns.tolist() == [308, 408]
    assert not decoder.in_transaction
    assert decoder.take().finished is None


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


@pytest.mark.parametrize(
    "changed",
    [
        relation(1, ("id", "v", "w")),
        relation(1, ("id", "w")),
        relation(1, name="renamed"),
        relation(1, identity="f"),
        relation(1, keys=2),
    ],
)
def test_a_changed_relation_begins_a_new_batch(decoder: ReferenceDecoder, changed: bytes) -> None:
    """Invariant 8: a value stays with the columns that it was sent under."""
    three = b"v\0" in changed and b"w\0" in changed
    new_row = (b"2", b"b", b"c") if three else (b"2", b"b")
    decoder.push(transaction(100, relation(1), insert(1, b"1", b"a"), relation(1), changed))
    decoder.push(transaction(200, changed, insert(1, *new_row)))
    before, after = decoder.take().batches
    assert list(tuples(before.new, 1)) == [(b"1", b"a")]
    assert list(tuples(after.new, 1)) == [new_row]
    assert before.relation != after.relation


def test_the_same_relation_again_begins_a_new_batch(decoder: ReferenceDecoder) -> None:
    """Invariant 8: one of its columns may be another one, under the name of one that went."""
    decoder.push(transaction(100, relation(1), insert(1, b"1", b"a")))
    decoder.push(transaction(200, relation(1), insert(1, b"2", b"a")))
    before, after = decoder.take().batches
    assert (len(before.ops), len(after.ops)) == (1, 1)
    assert before.relation is not after.relation


def test_relations_outlive_a_take(decoder: ReferenceDecoder) -> None:
    decoder.push(transaction(100, relation(1)))
    assert decoder.take().batches == []
    decoder.push(transaction(200, insert(1, b"1", b"a")))
    assert rows(decoder.take()) == [("t", "i", 0, (b"1", b"a"))]


def test_batches_come_in_the_order_of_their_first_rows(decoder: ReferenceDecoder) -> None:
    known = [relation(oid, name=f"t{oid}") for oid in (1, 2, 3)]
    inserts = [insert(oid, b"1", b"") for oid in (3, 1, 3, 2, 1)]
    decoder.push(transaction(100, *known, *inserts))
    assert [batch.relation.name for batch in decoder.take().batches] == ["t3", "t1", "t2"]


def test_logical_messages_are_kept_in_order(decoder: ReferenceDecoder) -> None:
    decoder.push([frame(message("beat", b"1", transactional=False))])
    decoder.push(transaction(100, message("app", b"\0\xff")))
    decoded = decoder.take()
    assert decoded.messages == [
        Message(None, False, 9, "beat", b"1"),
        Message(None, True, 9, "app", b"\0\xff"),
    ]
    assert decoder.take().messages == []


def test_origin_and_type_messages_are_no_rows(decoder: ReferenceDecoder) -> None:
    origin = b"O" + bytes(8) + string("elsewhere")
    kind = b"Y" + bytes(4) + string("public") + string("mood")
    decoder.push(transaction(100, origin, kind))
    decoded = decoder.take()
    assert (decoded.batches, decoded.messages) == ([], [])
    assert decoded.transactions.end_lsns.tolist() == [108]


def test_buffered_counts_what_was_gathered_since_the_last_take(decoder: ReferenceDecoder) -> None:
    decoder.push(transaction(100, relation(1), insert(1, b"12", b"345"), delete(1, (b"1", None))))
    decoder.push(transaction(200, truncate(1), message("p", b"1234")))
    assert decoder.buffered_rows == 3
    assert decoder.buffered_bytes == 3 * ROW_BYTES + 4 * VALUE_BYTES + 6 + 4 + 2 * COMMIT_BYTES
    decoder.take()
    assert decoder.buffered_rows == decoder.buffered_bytes == 0


def test_a_batch_of_any_size_is_whole(decoder: ReferenceDecoder) -> None:
    values = [(str(i).encode(), b"x" * (i % 300)) for i in range(3000)]
    frames = transaction(100, relation(1), *(insert(1, *value) for value in values))
    for start in range(0, len(frames), 700):
        decoder.push(frames[start : start + 700])
    (batch,) = decoder.take().batches
    assert list(tuples(batch.new, 3000)) == values


def test_values_of_megabytes_are_whole(decoder: ReferenceDecoder) -> None:
    values = [(b"1", b"a" * 3_000_001), (b"2", b"b" * 5_000_000)]
    decoder.push(transaction(100, relation(1), *(insert(1, *value) for value in values)))
    (batch,) = decoder.take().batches
    assert list(tuples(batch.new, 2)) == values


def test_a_table_without_columns_has_rows(decoder: ReferenceDecoder) -> None:
    decoder.push(transaction(100, relation(1, ()), insert(1), insert(1)))
    (batch,) = decoder.take().batches
    assert (batch.ops.tobytes(), batch.new) == (b"ii", [])


def test_what_was_taken_stays_when_the_decoder_goes(
    decoder_type: type[ReferenceDecoder],
) -> None:
    decoder = decoder_type()
    decoder.push(transaction(100, relation(1), insert(1, b"1", b"abc")))
    decoded = decoder.take()
    arrow = decoded.batches[0].new[1].text()
    decoder.push(transaction(200, insert(1, b"2", b"xyz")))
    del decoder, decoded
    gc.collect()
    assert arrow.to_pylist() == [b"abc"]


def test_frames_may_be_freed_after_the_push(decoder: ReferenceDecoder) -> None:
    buffers = [bytearray(f) for f in transaction(100, relation(1), insert(1, b"1", b"abc"))]
    decoder.push([memoryview(buffer) for buffer in buffers])
    for buffer in buffers:
        buffer[:] = b""  # would raise BufferError while a view were held
    assert rows(decoder.take()) == [("t", "i", 0, (b"1", b"abc"))]


def test_columns_share_their_memory_with_arrow(decoder: ReferenceDecoder) -> None:
    decoder.push(transaction(100, relation(1), insert(1, b"1", b"abc")))
    column = decoder.take().batches[0].new[1]
    array = column.to_arrow()
    assert array.type == pa.binary()
    assert array.buffers()[2].address == column.data.address
    assert array.buffers()[1].address == column.offsets.__array_interface__["data"][0]


def test_binary_values_are_never_taken_for_text(decoder: ReferenceDecoder) -> None:
    decoder.push(transaction(100, relation(1), insert(1, b"1", Binary(b"abc"))))
    column = decoder.take().batches[0].new[1]
    assert column.kinds.tolist() == [ord("b")]
    with pytest.raises(ProtocolError, match="binary"):
        column.text()


@pytest.mark.parametrize(
    ("payloads", "words"),
    [
        ([insert(1, b"1", b"a")], "Insert message outside of a transaction"),
        ([truncate(1)], "Truncate message outside of a transaction"),
        ([commit(100)], "Commit message outside of a transaction"),
        ([begin(100), begin(200)], "Begin message inside a transaction"),
        ([begin(100), commit(101)], "commit at 0/65 for the transaction of 0/64"),
        ([begin(100), insert(4711, b"1")], "relation 4711 without a Relation message"),
        ([begin(100), truncate(4711)], "relation 4711 without a Relation message"),
        ([begin(100), relation(1), insert(1, b"1")], "1 columns, the relation has 2, at byte 6"),
        (
            [begin(100), relation(1), delete(1, (b"1", b"2", b"3"))],
            "3 columns, the relation has 2, at byte 6",
        ),
        ([begin(100), stream_start(5)], "Stream Start message inside a transaction"),
        ([stream_start(5), begin(100)], "Begin message inside a transaction"),
        ([stream_start(5), stream_start(6)], "Stream Start message inside a transaction"),
        ([stream_start(5), stream_commit(5, 100)], "Stream Commit message inside a transaction"),
        ([stream_start(5, first=False)], "streamed transaction 5, whose first block never came"),
        ([stream_commit(5, 100)], "streamed transaction 5, whose first block never came"),
        ([stream_start(5), insert(1, b"1", xid=be(6))], "relation 1 without a Relation message"),
        ([b"E"], "Stream Stop message outside of a transaction"),
        ([stream_start(5), b"I" + bytes(3)], "malformed Insert message"),
        ([prepare(5, 100, letter=b"p")], "streamed transaction 5, whose first block never came"),
        ([prepare(5, 100)], "Prepare message outside of a transaction"),
        ([begin_prepare(5, 100), prepare(6, 100)], "prepared transaction 6 inside of 5"),
        ([begin(100), begin_prepare(5, 100)], "Begin Prepare message inside a transaction"),
        ([begin_prepare(5, 100), begin(100)], "Begin message inside a transaction"),
        ([begin_prepare(5, 100), commit_prepared(5, 100)], "Commit Prepared message inside a"),
        ([stream_start(5), rollback_prepared(5)], "Rollback Prepared message inside a transaction"),
        ([b""], "no type byte"),
        ([b"?"], "type 0x3f"),
    ],
)
def test_what_may_not_come_is_refused(
    decoder: ReferenceDecoder, payloads: list[bytes], words: str
) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        decoder.push([frame(payload) for payload in payloads])
    assert caught.value.hint


HOT = {
    "begin": [begin(200)],
    "insert": [begin(200), insert(1, b"1", b"abc")],
    "update": [begin(200), update(1, (b"1", None), (b"0", UNCHANGED), kind=b"O")],
    "delete": [begin(200), delete(1, (b"1", None))],
    "commit": [begin(200), insert(1, b"1", b"abc"), commit(200)],
}


@pytest.mark.parametrize("payloads", HOT.values(), ids=HOT)
def test_hot_messages_cut_or_overlong_are_refused(
    decoder_type: type[ReferenceDecoder], payloads: list[bytes]
) -> None:
    known = transaction(100, relation(1))
    *before, last = map(frame, payloads)
    for damaged in [*(last[:size] for size in range(len(last))), last + b"\0"]:
        decoder = decoder_type()
        decoder.push([*known, *before])
        with pytest.raises(ProtocolError):
            decoder.push([damaged])


@pytest.mark.parametrize("length", [-1, -(1 << 31), (1 << 31) - 1, 4])
def test_a_length_beyond_the_message_is_refused(decoder: ReferenceDecoder, length: int) -> None:
    row = insert(1, b"1", b"abc")
    damaged = row[:-7] + struct.pack(">i", length) + row[-3:]
    decoder.push([*transaction(100, relation(1)), frame(begin(200))])
    with pytest.raises(ProtocolError, match="malformed Insert message"):
        decoder.push([frame(damaged)])


def test_a_time_that_postgres_cannot_hold_is_refused(
    decoder_type: type[ReferenceDecoder],
) -> None:
    latest = (1 << 63) - 1 - PG_EPOCH_US
    decoder_type().push(transaction(100, commit_ts=latest))
    for late in (begin(100, latest + 1), commit(100, commit_ts=latest + 1)):
        decoder = decoder_type()
        with pytest.raises(ProtocolError, match="timestamp"):
            decoder.push([*([] if late[:1] == b"B" else [frame(begin(100))]), frame(late)])


def test_a_full_column_is_an_error_that_names_it(decoder_type: type[ReferenceDecoder]) -> None:
    decoder = decoder_type(column_limit=10)
    decoder.push(
        transaction(100, relation(1), insert(1, b"1", b"12345"), insert(1, b"2", b"12345"))
    )
    with pytest.raises(ProtocolError, match="more than 10 bytes of column 'v'"):
        decoder.push(transaction(200, insert(1, b"3", b"1")))


def test_the_limit_starts_anew_with_each_take(decoder_type: type[ReferenceDecoder]) -> None:
    decoder = decoder_type(column_limit=10)
    decoder.push(transaction(100, relation(1), insert(1, b"1", b"1234567890")))
    decoder.take()
    decoder.push(transaction(200, insert(1, b"2", b"1234567890")))
    assert decoder.buffered_rows == 1


def test_after_an_error_nothing_more_is_taken_or_given(decoder: ReferenceDecoder) -> None:
    """Invariant 2: a transaction that was cut by an error is never handed over as committed."""
    decoder.push(transaction(100, relation(1), insert(1, b"1", b"a")))
    with pytest.raises(ProtocolError):
        decoder.push([frame(begin(200)), frame(insert(1, b"2", b"b") + b"!"), frame(commit(200))])
    with pytest.raises(ProtocolError, match="cannot go on"):
        decoder.push([])
    with pytest.raises(ProtocolError, match="cannot go on"):
        decoder.take()


@pytest.mark.parametrize("wrong", [None, 1, "text"])
def test_what_is_no_bytes_is_a_callers_mistake(decoder: ReferenceDecoder, wrong: object) -> None:
    with pytest.raises(TypeError):
        decoder.push([wrong])  # type: ignore[list-item]  # the mistake
