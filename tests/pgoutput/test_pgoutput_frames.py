"""The CopyData envelope is read and written as documented."""

from __future__ import annotations

import struct
import time

import pytest
from pgoutput_bytes import PG_EPOCH_US, frame

from headrace.errors import ProtocolError
from headrace.model import Lsn
from headrace.pgoutput.frames import (
    PrimaryKeepalive,
    XLogData,
    parse_frame,
    parse_keepalive,
    parse_xlog_data,
    payload_of,
    standby_status,
)

KEEPALIVE = b"k" + struct.pack(">QqB", 0x16B374D848, 5, 1)


def test_xlog_data_is_read() -> None:
    data = frame(b"payload", wal_start=1, wal_end=2, sent_at=3)
    assert parse_frame(data) == XLogData(Lsn(1), Lsn(2), 3 + PG_EPOCH_US, memoryview(b"payload"))
    assert payload_of(data) == b"payload"


def test_a_keepalive_is_read() -> None:
    assert parse_frame(KEEPALIVE) == PrimaryKeepalive(Lsn(0x16B374D848), 5 + PG_EPOCH_US, True)


@pytest.mark.parametrize("size", range(len(KEEPALIVE)))
def test_a_cut_keepalive_is_an_error(size: int) -> None:
    with pytest.raises(ProtocolError):
        parse_keepalive(KEEPALIVE[:size])


@pytest.mark.parametrize("size", range(25))
def test_a_cut_header_is_an_error(size: int) -> None:
    for read in (parse_frame, parse_xlog_data, payload_of):
        with pytest.raises(ProtocolError):
            read(frame(b"")[:size])


def test_a_frame_of_another_kind_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="type 0x78 instead of 'w' at byte 0"):
        parse_frame(b"x" + bytes(24))
    with pytest.raises(ProtocolError, match="too many"):
        parse_keepalive(KEEPALIVE + b"\0")


def test_a_status_update_is_built_as_documented() -> None:
    built = standby_status(Lsn(3), Lsn(2), Lsn(1), reply=True, sent_at=PG_EPOCH_US + 9)
    assert struct.unpack(">cQQQqB", built) == (b"r", 3, 2, 1, 9, 1)


def test_a_status_update_bears_the_clock_by_default() -> None:
    before = time.time_ns() // 1000
    clock = struct.unpack(">cQQQqB", standby_status(Lsn(3), Lsn(2), Lsn(1)))[4] + PG_EPOCH_US
    assert before <= clock <= time.time_ns() // 1000
