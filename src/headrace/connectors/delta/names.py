"""Names of the files that we make; each holds a UUID that tells when it was made.

A sweep can so tell a file that is yet to be committed from one that never was, even where the file
is a link that bears the time of its origin.
"""

from __future__ import annotations

import contextlib
import secrets
import time
import uuid
from typing import Final

_SUFFIX: Final = "-headrace.parquet"


def new_name() -> str:
    """A data file's name; its UUID (version 7, RFC 9562) tells when it was made."""
    return f"part-{new_uuid()}{_SUFFIX}"


def is_ours(path: str) -> bool:
    """Whether a data file has the name of one that we made."""
    return path.endswith(_SUFFIX)


def new_uuid() -> uuid.UUID:
    milliseconds = time.time_ns() // 1_000_000
    bits = (milliseconds << 80) | secrets.randbits(80)
    return uuid.UUID(int=bits & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def made_at_ms(identity: str) -> int | None:
    """When one of our UUIDs was made, in ms since the epoch; None if it is not one of ours."""
    with contextlib.suppress(ValueError):
        parsed = uuid.UUID(identity)
        return parsed.int >> 80 if parsed.version == 7 else None
    return None
