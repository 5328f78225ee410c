"""Builds what a server would send, byte by byte from the protocol documentation."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

MAX_LSN = (1 << 64) - 1
PG_EPOCH_US = 946_684_800_000_000

# A value of a tuple: None is null, UNCHANGED an unsent TOAST value, bytes text, Binary binary.
UNCHANGED = object()


class Binary(bytes):
    """A value that is sent in binary."""


def frame(payload: bytes, *, wal_start: int = 1, wal_end: int = 2, sent_at: int = 3) -> bytes:
    return b"w" + struct.pack(">QQq", wal_start, wal_end, sent_at) + payload


def string(text: str) -> bytes:
    return text.encode() + b"\0"


def begin(final_lsn: int, commit_ts: int = 0, xid: int = 7) -> bytes:
    return b"B" + struct.pack(">QqI", final_lsn, commit_ts, xid)


def commit(commit_lsn: int, end_lsn: int | None = None, commit_ts: int = 0) -> bytes:
    end = commit_lsn + 8 if end_lsn is None else end_lsn
    return b"C\0" + struct.pack(">QQq", commit_lsn, end, commit_ts)


def relation(
    oid: int,
    columns: Sequence[str] = ("id", "v"),
    *,
    name: str = "t",
    namespace: str = "public",
    identity: str = "d",
    keys: int = 1,
    xid: bytes = b"",
) -> bytes:
    head = b"R" + xid + struct.pack(">I", oid) + string(namespace) + string(name)
    described = [
        struct.pack(">B", i < keys) + string(column) + struct.pack(">Ii", 25, -1)
        for i, column in enumerate(columns)
    ]
    return head + identity.encode() + struct.pack(">h", len(columns)) + b"".join(described)


def tuple_data(values: Sequence[Any]) -> bytes:
    return struct.pack(">h", len(values)) + b"".join(map(_value, values))


def _value(value: Any) -> bytes:
    if value is None:
        return b"n"
    if value is UNCHANGED:
        return b"u"
    kind = b"b" if isinstance(value, Binary) else b"t"
    return kind + struct.pack(">i", len(value)) + value


def insert(oid: int, *values: Any, xid: bytes = b"") -> bytes:
    return b"I" + xid + struct.pack(">I", oid) + b"N" + tuple_data(values)


def update(
    oid: int,
    new: Sequence[Any],
    old: Sequence[Any] | None = None,
    *,
    kind: bytes = b"K",
    xid: bytes = b"",
) -> bytes:
    before = b"" if old is None else kind + tuple_data(old)
    return b"U" + xid + struct.pack(">I", oid) + before + b"N" + tuple_data(new)


def delete(oid: int, old: Sequence[Any], *, kind: bytes = b"K", xid: bytes = b"") -> bytes:
    return b"D" + xid + struct.pack(">I", oid) + kind + tuple_data(old)


def truncate(*oids: int, flags: int = 0, xid: bytes = b"") -> bytes:
    return b"T" + xid + struct.pack(">iB", len(oids), flags) + struct.pack(f">{len(oids)}I", *oids)


def message(
    prefix: str, content: bytes, *, transactional: bool = True, lsn: int = 9, xid: bytes = b""
) -> bytes:
    head = b"M" + xid + struct.pack(">BQ", transactional, lsn) + string(prefix)
    return head + struct.pack(">i", len(content)) + content


STREAM_STOP = b"E"


def be(xid: int) -> bytes:
    """An xid as it stands in the messages of a stream block."""
    return struct.pack(">I", xid)


def stream_start(xid: int, *, first: bool = True) -> bytes:
    return b"S" + struct.pack(">IB", xid, first)


def stream_commit(xid: int, lsn: int, end_lsn: int | None = None, commit_ts: int = 0) -> bytes:
    end = lsn + 8 if end_lsn is None else end_lsn
    return b"c" + struct.pack(">IBQQq", xid, 0, lsn, end, commit_ts)


def stream_abort(xid: int, subtransaction: int) -> bytes:
    return b"A" + struct.pack(">II", xid, subtransaction)


def begin_prepare(xid: int, lsn: int, gid: str = "g") -> bytes:
    return b"b" + struct.pack(">QQqI", lsn, lsn + 8 & MAX_LSN, 0, xid) + string(gid)


def prepare(xid: int, lsn: int, gid: str = "g", *, letter: bytes = b"P") -> bytes:
    """Prepare, or Stream Prepare with the letter `p`."""
    return letter + struct.pack(">BQQqI", 0, lsn, lsn + 8 & MAX_LSN, 0, xid) + string(gid)


def commit_prepared(
    xid: int, lsn: int, end_lsn: int | None = None, commit_ts: int = 0, gid: str = "g"
) -> bytes:
    end = lsn + 8 if end_lsn is None else end_lsn
    return b"K" + struct.pack(">BQQqI", 0, lsn, end, commit_ts, xid) + string(gid)


def rollback_prepared(xid: int, gid: str = "g") -> bytes:
    return b"r" + struct.pack(">BQQqqI", 0, 100, 200, 0, 0, xid) + string(gid)


def transaction(lsn: int, *messages: bytes, xid: int = 7, commit_ts: int = 0) -> list[bytes]:
    """Frames of a whole transaction: Begin, the messages, Commit."""
    inner = [begin(lsn, commit_ts, xid), *messages, commit(lsn, commit_ts=commit_ts)]
    return [frame(payload) for payload in inner]
