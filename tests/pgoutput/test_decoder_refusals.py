"""What both decoders refuse: messages that may not come, or do not hold what they say."""

from __future__ import annotations

import struct

import pytest
from pgoutput_bytes import (
    PG_EPOCH_US,
    UNCHANGED,
    be,
    begin,
    begin_prepare,
    commit,
    commit_prepared,
    delete,
    frame,
    insert,
    prepare,
    relation,
    rollback_prepared,
    stream_commit,
    stream_start,
    transaction,
    truncate,
    update,
)

from headrace.errors import ProtocolError
from headrace.pgoutput import ReferenceDecoder


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
