"""The frame of COPY's binary format, and how bytes that it does not allow are reported.

Postgres documentation, COPY, "Binary Format": a signature, flags, a header extension; then tuples,
each a field count and per field its length and bytes; then a field count of -1. In the protocol
("COPY Operations") each CopyData message of a server is one row, the header before the first.
"""

from __future__ import annotations

import struct
from typing import Final

from headrace.errors import ProtocolError

SIGNATURE: Final = b"PGCOPY\n\xff\r\n\0"
FIXED_HEADER: Final = len(SIGNATURE) + 8  # with flags and the extension's length
CRITICAL_FLAGS: Final = 0xFFFF0000  # a reader that does not know one of these must give up
NULL: Final = -1
TRAILER: Final = -1

INT16: Final = struct.Struct(">h")
INT32: Final = struct.Struct(">i")
INT64: Final = struct.Struct(">q")
_FLAGS: Final = struct.Struct(">II")

_HINT: Final = (
    "run the pipeline again; if this comes back, report it together with the server's version and "
    "anything between Headrace and the server (proxy, pooler)"
)


def malformed(what: str) -> ProtocolError:
    """The error for bytes in which `what` is wrong."""
    return ProtocolError(f"malformed COPY data: {what}", hint=_HINT)


def header_size(data: bytes) -> int:
    """Where the first tuple begins.

    Raises:
        ProtocolError: this is no header, or one with something in it that must be understood.
    """
    if len(data) < FIXED_HEADER or not data.startswith(SIGNATURE):
        raise wrong_header()
    flags, extension = _FLAGS.unpack_from(data, len(SIGNATURE))
    if flags & CRITICAL_FLAGS or extension > len(data) - FIXED_HEADER:
        raise wrong_header()
    return FIXED_HEADER + int(extension)


def wrong_header() -> ProtocolError:
    return malformed("it does not begin with a header of the binary format")


def wrong_count(found: int, expected: int) -> ProtocolError:
    return malformed(f"a row of {found} columns instead of {expected}")


def wrong_value(column: int) -> ProtocolError:
    return malformed(f"column {column + 1} has a value that its type does not have")


def cut_off() -> ProtocolError:
    return malformed("a row is cut off")


def beyond_the_end() -> ProtocolError:
    return malformed("it goes on behind its end")
