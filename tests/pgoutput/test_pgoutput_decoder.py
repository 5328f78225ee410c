"""What both decoders promise, message by message."""

from __future__ import annotations

import gc

import pyarrow as pa
import pytest
from decoded_rows import rows, tuples
from pgoutput_bytes import (
    PG_EPOCH_US,
    UNCHANGED,
    Binary,
    begin,
    commit,
    delete,
    frame,
    insert,
    message,
    relation,
    string,
    transaction,
    truncate,
    update,
)

from headrace.errors import ProtocolError
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
