"""Positions in a Postgres write-ahead log."""

from __future__ import annotations

from typing import Self

MAX_LSN = (1 << 64) - 1


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
        high, slash, low = text.partition("/")
        if not slash or not 1 <= len(high) <= 8 or not 1 <= len(low) <= 8:
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(high, 16) << 32) | int(low, 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn({str(self)!r})"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)
