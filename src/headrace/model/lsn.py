"""Positions in a Postgres write-ahead log."""

from __future__ import annotations

import re
from typing import Final, Self

MAX_LSN: Final = (1 << 64) - 1
_TEXT: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")


class Lsn(int):
    """A log sequence number: an unsigned 64-bit byte position, printed `16/B374D848`.

    Postgres documentation, "pg_lsn type". Orders and hashes as the integer it is.
    """

    __slots__ = ()

    def __new__(cls, value: int = 0) -> Self:
        if not 0 <= value <= MAX_LSN:
            raise ValueError(f"an LSN is an unsigned 64-bit number, not {value}")
        return super().__new__(cls, value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `16/B374D848`. Raises ValueError on anything else."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(found[1], 16) << 32) | int(found[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)
