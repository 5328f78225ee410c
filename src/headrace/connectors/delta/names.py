"""Names of the files that we make; each holds a UUID that tells when it was made.

A sweep can so tell a file that is yet to be committed from one that never was, even where the file
is a link that bears the time of its origin.
"""

from __future__ import annotations

import contextlib
import secrets
import time
import uuid
from collections.abc import Mapping
from itertools import starmap
from typing import Final
from urllib.parse import quote

_SUFFIX: Final = "-headrace.parquet"
NULL_FOLDER: Final = "__HIVE_DEFAULT_PARTITION__"
LONGEST_NAME: Final = 255  # bytes of a file's name on Linux


def new_name(partition_values: Mapping[str, str | None] | None = None) -> str:
    """A data file's path; its UUID (version 7, RFC 9562) tells when it was made."""
    name = f"part-{new_uuid()}{_SUFFIX}"
    return "/".join([*starmap(partition_folder, (partition_values or {}).items()), name])


def is_ours(path: str) -> bool:
    """Whether a data file has the name of one that we made."""
    return path.endswith(_SUFFIX)


def partition_folder(column: str, value: str | None) -> str:
    """Hive's name of a partition's folder. Readers should go by the log, and some go by it."""
    return f"{_escaped(column)}={_escaped(value)}"


def _escaped(text: str | None) -> str:
    """As delta-rs does: readers differ over keys of an object store that hold anything else."""
    return NULL_FOLDER if text is None else quote(text, safe="")


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
