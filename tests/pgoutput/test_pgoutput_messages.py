"""The parser reads each message as documented, and refuses whatever is not one."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pgoutput_bytes import (
    PG_EPOCH_US,
    UNCHANGED,
    Binary,
    begin,
    commit,
    delete,
    insert,
    message,
    relation,
    string,
    truncate,
    update,
)

from headrace.errors import ProtocolError
from headrace.model import ReplicaIdentity
from headrace.pgoutput import messages as m
from headrace.pgoutput import parse

XID = struct.pack(">I", 77)
_2PC = struct.pack(">QQqI", 5, 6, 7, 8) + string("gid")
AT = 7 + PG_EPOCH_US

COLUMNS = (m.RelationColumn(True, "id", 25, -1), m.RelationColumn(False, "v", 25, -1))
ROW = m.TupleData(b"tn", (b"1", None))
WHOLE = m.TupleData(b"tbu", (b"1", b"\x02", None))
DEFAULT = ReplicaIdentity.DEFAULT

# (bytes, whether it stands in a stream block, what it means)
EXAMPLES = [
    (begin(5, 7, 8), False, m.Begin(5, AT, 8)),
    (commit(5, 6, 7), False, m.Commit(5, 6, AT)),
    (message("p", b"\0x"), False, m.Message(None, True, 9, "p", b"\0x")),
    (
        message("", b"", transactional=False, xid=XID),
        True,
        m.Message(77, False, 9, "", b""),
    ),
    (b"O" + struct.pack(">Q", 5) + string("o"), True, m.Origin(5, "o")),
    (relation(9), False, m.Relation(None, 9, "public", "t", DEFAULT, COLUMNS)),
    (relation(9, xid=XID), True, m.Relation(77, 9, "public", "t", DEFAULT, COLUMNS)),
    (
        relation(9, (), name="ü", namespace="", identity="f"),
        False,
        m.Relation(None, 9, "pg_catalog", "ü", ReplicaIdentity.FULL, ()),
    ),
    (
        b"Y" + struct.pack(">I", 9) + string("s") + string("mood"),
        False,
        m.Type(None, 9, "s", "mood"),
    ),
    (b"Y" + XID + struct.pack(">I", 9) + b"\0" + b"e\0", True, m.Type(77, 9, "pg_catalog", "e")),
    (insert(9, b"1", None), False, m.Insert(None, 9, ROW)),
    (insert(9, b"1", None, xid=XID), True, m.Insert(77, 9, ROW)),
    (insert(9), False, m.Insert(None, 9, m.TupleData(b"", ()))),
    (
        update(9, (b"1", Binary(b"\x02"), UNCHANGED)),
        False,
        m.Update(None, 9, 0, None, WHOLE),
    ),
    (update(9, (b"1", None), (b"1", None)), False, m.Update(None, 9, m.KEY, ROW, ROW)),
    (
        update(9, (b"1", None), (b"1", None), kind=b"O", xid=XID),
        True,
        m.Update(77, 9, m.OLD, ROW, ROW),
    ),
    (delete(9, (b"1", None)), False, m.Delete(None, 9, m.KEY, ROW)),
    (delete(9, (b"1", None), kind=b"O", xid=XID), True, m.Delete(77, 9, m.OLD, ROW)),
    (truncate(9, 10, flags=3), False, m.Truncate(None, True, True, (9, 10))),
    (truncate(9, flags=2, xid=XID), True, m.Truncate(77, False, True, (9,))),
    (b"S" + XID + b"\1", False, m.StreamStart(77, True)),
    (b"E", True, m.StreamStop()),
    (b"c" + XID + b"\0" + struct.pack(">QQq", 5, 6, 7), False, m.StreamCommit(77, 5, 6, AT)),
    (b"A" + XID + XID, False, m.StreamAbort(77, 77, None, None)),
    (b"A" + XID + XID + struct.pack(">Qq", 5, 7), False, m.StreamAbort(77, 77, 5, AT)),
    (b"b" + _2PC, False, m.BeginPrepare(5, 6, AT, 8, "gid")),
    (b"P\0" + _2PC, False, m.Prepare(5, 6, AT, 8, "gid")),
    (b"K\0" + _2PC, False, m.CommitPrepared(5, 6, AT, 8, "gid")),
    (
        b"r\0" + struct.pack(">QQqqI", 5, 6, 7, 9, 8) + string("gid"),
        False,
        m.RollbackPrepared(5, 6, AT, 9 + PG_EPOCH_US, 8, "gid"),
    ),
    (b"p\0" + _2PC, False, m.StreamPrepare(5, 6, AT, 8, "gid")),
]
by_kind = pytest.mark.parametrize(
    ("payload", "streamed", "meaning"),
    EXAMPLES,
    ids=[f"{type(meaning).__name__}-{i}" for i, (_, _, meaning) in enumerate(EXAMPLES)],
)


@by_kind
def test_each_message_means_what_the_documentation_says(
    payload: bytes, streamed: bool, meaning: m.PgoutputMessage
) -> None:
    assert parse(payload, streamed=streamed) == meaning
    assert parse(memoryview(payload), streamed=streamed) == meaning


def test_every_message_has_an_example() -> None:
    assert {type(meaning) for _, _, meaning in EXAMPLES} == set(m.PgoutputMessage.__args__)


def test_an_xid_is_read_and_does_not_make_a_relation_differ() -> None:
    streamed = parse(relation(9, xid=XID), streamed=True)
    assert isinstance(streamed, m.Relation)
    assert streamed.xid == 77
    assert streamed == parse(relation(9))


@by_kind
def test_a_message_cut_anywhere_is_an_error(
    payload: bytes, streamed: bool, meaning: m.PgoutputMessage
) -> None:
    whole = {len(b"A" + XID + XID)} if isinstance(meaning, m.StreamAbort) else set()
    for size in set(range(len(payload))) - whole:
        with pytest.raises(ProtocolError):
            parse(payload[:size], streamed=streamed)


@by_kind
def test_a_message_with_a_byte_too_many_is_an_error(
    payload: bytes, streamed: bool, meaning: m.PgoutputMessage
) -> None:
    with pytest.raises(ProtocolError, match=r"."):
        parse(payload + b"\0", streamed=streamed)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_damaged_message_is_read_or_refused_never_worse(
    example: tuple[bytes, bool, m.PgoutputMessage], data: st.DataObject
) -> None:
    payload, streamed, _ = example
    damaged = bytearray(payload)
    for at in data.draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=4)):
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(damaged), streamed=streamed)
    except ProtocolError:
        return


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "no type byte at byte 0"),
        (b"Z", "type 0x5a at byte 0"),
        (b"C\1" + bytes(24), "malformed Commit message: unknown flags 0x1 at byte 1"),
        (begin(5, (1 << 63) - 1), "commit timestamp .* at byte 9"),
        (b"O" + bytes(8) + b"\xff\0", "origin's name is not UTF-8 at byte 9"),
        (b"O" + bytes(8) + b"abc", "origin's name has no end at byte 9"),
        (relation(9, identity="x"), "replica identity 'x' at byte 14"),
        (insert(9, b"1") + b"!", "1 bytes too many at byte 14"),
        (b"I" + bytes(4) + b"N" + struct.pack(">h", -1), "count of -1 at byte 6"),
        (b"I" + bytes(4) + b"K", "tuple kind 0x4b at byte 5"),
        (b"I" + bytes(4) + b"N\0\1x", "column kind 0x78 at byte 8"),
        (b"I" + bytes(4) + b"N\0\1t" + struct.pack(">i", -2), "value of -2 bytes"),
        (b"I" + bytes(4) + b"N\0\1t" + struct.pack(">i", 3) + b"ab", "3 bytes, 2 are left"),
        (b"D" + bytes(4) + b"N\0\0", "Delete message: tuple kind 0x4e at byte 5"),
    ],
)
def test_an_error_says_what_is_wrong_and_at_which_byte(payload: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words) as caught:
        parse(payload)
    assert caught.value.hint
