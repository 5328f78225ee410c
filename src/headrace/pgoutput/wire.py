"""A bounds-checked cursor over network-order bytes: every read either is whole or is an error.

PostgreSQL documentation, "Message Data Types": IntN in network byte order, String ended by a zero.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from headrace.errors import ProtocolError
from headrace.model import Lsn

# Postgres counts microseconds from 2000-01-01, everybody else from 1970-01-01.
POSTGRES_EPOCH_US: Final = 946_684_800_000_000
MAX_TIMESTAMP: Final = (1 << 63) - 1 - POSTGRES_EPOCH_US

_INT16: Final = struct.Struct(">h")
_INT32: Final = struct.Struct(">i")
_UINT32: Final = struct.Struct(">I")
_INT64: Final = struct.Struct(">q")
_UINT64: Final = struct.Struct(">Q")


class Cursor:
    """Reads `data` from byte `at` on; `refuse(what, at)` makes the error for what is wrong."""

    def __init__(
        self, data: memoryview, at: int, refuse: Callable[[str, int], ProtocolError]
    ) -> None:
        self._data = data
        self.at = at
        self._refuse = refuse

    def fail(self, what: str, at: int | None = None) -> ProtocolError:
        """The error to raise for `what`, at the byte read next unless told otherwise."""
        return self._refuse(what, self.at if at is None else at)

    @property
    def remaining(self) -> int:
        return len(self._data) - self.at

    def raw(self, size: int, what: str) -> memoryview:
        """The next `size` bytes, not copied."""
        if not 0 <= size <= self.remaining:
            raise self.fail(f"{what} of {size} bytes, {self.remaining} are left")
        start, self.at = self.at, self.at + size
        return self._data[start : self.at]

    def _number(self, layout: struct.Struct, what: str) -> int:
        return int(layout.unpack(self.raw(layout.size, what))[0])

    def byte(self, what: str) -> int:
        return self.raw(1, what)[0]

    def int16(self, what: str) -> int:
        return self._number(_INT16, what)

    def int32(self, what: str) -> int:
        return self._number(_INT32, what)

    def uint32(self, what: str) -> int:
        return self._number(_UINT32, what)

    def lsn(self, what: str) -> Lsn:
        return Lsn(self._number(_UINT64, what))

    def timestamp(self, what: str) -> int:
        """A TimestampTz as microseconds since 1970-01-01 UTC."""
        value = self._number(_INT64, what)
        if value > MAX_TIMESTAMP:
            raise self.fail(f"{what} {value} is beyond what Postgres can hold", self.at - 8)
        return value + POSTGRES_EPOCH_US

    def string(self, what: str) -> str:
        start = self.at
        rest = bytes(self._data[start:])
        text, end, _ = rest.partition(b"\0")
        if not end:
            raise self.fail(f"{what} has no end")
        self.at += len(text) + 1
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8", start + error.start) from None

    def zero_flags(self) -> None:
        """An Int8 that is "currently unused" and must be 0, as in Postgres's own subscriber."""
        flags = self.byte("flags")
        if flags:
            raise self.fail(f"unknown flags {flags:#x}", self.at - 1)

    def end(self) -> None:
        if self.remaining:
            raise self.fail(f"{self.remaining} bytes too many")
