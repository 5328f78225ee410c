"""What CopyData carries in both directions while replicating.

PostgreSQL documentation, "Streaming Replication Protocol": XLogData and Primary keepalive come in,
Standby status update goes out. Timestamps are microseconds since 1970-01-01 UTC.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import Final

from headrace.model import Lsn
from headrace.pgoutput.malformed import malformed
from headrace.pgoutput.wire import POSTGRES_EPOCH_US, Cursor

XLOG_DATA: Final = ord("w")
KEEPALIVE: Final = ord("k")
XLOG_DATA_HEADER: Final = 25  # Byte1, two LSNs, a timestamp; the pgoutput message follows

_STATUS: Final = struct.Struct(">cQQQqB")


@dataclass(frozen=True, slots=True)
class XLogData:
    """One message of the output plugin.

    `wal_start` is where its WAL record starts (0 where it has none), `wal_end` the end of the
    server's WAL, `payload` a view of the pgoutput message.
    """

    wal_start: Lsn
    wal_end: Lsn
    sent_at: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class PrimaryKeepalive:
    """The server's position; with `reply_requested` it waits for a status update at once."""

    wal_end: Lsn
    sent_at: int
    reply_requested: bool


def parse_frame(frame: bytes | memoryview) -> XLogData | PrimaryKeepalive:
    """Read one CopyData payload of either kind. Raises ProtocolError."""
    kind = frame[0] if len(frame) else None
    return parse_keepalive(frame) if kind == KEEPALIVE else parse_xlog_data(frame)


def parse_xlog_data(frame: bytes | memoryview) -> XLogData:
    """Read the XLogData header; the message inside is not looked at. Raises ProtocolError."""
    cursor = _cursor(frame, XLOG_DATA, "XLogData")
    start, end = cursor.lsn("start of the WAL data"), cursor.lsn("end of the WAL")
    sent_at = cursor.timestamp("server's clock")
    return XLogData(start, end, sent_at, cursor.raw(cursor.remaining, "message"))


def payload_of(frame: bytes | memoryview) -> memoryview:
    """The pgoutput message in an XLogData frame, whose header is skipped. Raises ProtocolError."""
    cursor = _cursor(frame, XLOG_DATA, "XLogData")
    cursor.raw(XLOG_DATA_HEADER - 1, "header")
    return cursor.raw(cursor.remaining, "message")


def parse_keepalive(frame: bytes | memoryview) -> PrimaryKeepalive:
    """Read a Primary keepalive message. Raises ProtocolError."""
    cursor = _cursor(frame, KEEPALIVE, "primary keepalive")
    end, sent_at = cursor.lsn("end of the WAL"), cursor.timestamp("server's clock")
    reply = cursor.byte("reply flag")
    cursor.end()
    return PrimaryKeepalive(end, sent_at, bool(reply))


def standby_status(
    write: Lsn, flush: Lsn, apply: Lsn, *, reply: bool = False, sent_at: int | None = None
) -> bytes:
    """Build a Standby status update: what was received, is durable and is applied.

    `reply` asks the server to answer at once; `sent_at` is the clock that pg_stat_replication
    shows as reply_time, by default now.
    """
    clock = time.time_ns() // 1000 if sent_at is None else sent_at
    return _STATUS.pack(b"r", write, flush, apply, clock - POSTGRES_EPOCH_US, reply)


def _cursor(frame: bytes | memoryview, kind: int, name: str) -> Cursor:
    cursor = Cursor(memoryview(frame), 0, lambda what, at: malformed(f"{name} frame", what, at))
    found = cursor.byte("type")
    if found != kind:
        raise cursor.fail(f"type {found:#04x} instead of {chr(kind)!r}", 0)
    return cursor
