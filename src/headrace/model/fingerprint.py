"""Keys as numbers, whole columns at a time: exact for integers, 128-bit fingerprints for the rest.

An integer key is its own number, so an index of them is exact. Any other key becomes a seeded
fingerprint; that two of n keys share one has a chance below n**2 / 2**129: 10**-19 for ten billion.
The seed is drawn per index and lives in memory only, so that no one can prepare keys that collide.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as t

from headrace.model.times import counted

Words = npt.NDArray[np.uint64]

LONG: Final = 256  # bytes; beyond, one cryptographic hash is cheaper than a pass over all rows
_MUL1: Final = (np.uint64(0x87C37B91114253D5), np.uint64(0x9E3779B97F4A7C15))
_MUL2: Final = (np.uint64(0x4CF5AD432745937F), np.uint64(0xC2B2AE3D27D4EB4F))
_ADD: Final = (np.uint64(0x52DCE729), np.uint64(0x38495AB5))
_TAIL_MASKS: Final = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)


class NullKeyError(ValueError):
    """A null among keys that are their own numbers; never leaves the caller."""


@dataclass(frozen=True)
class Hashes:
    """One number, or a pair of them, for each row."""

    high: Words
    low: Words | None = None

    def __len__(self) -> int:
        return len(self.high)

    def take(self, which: npt.NDArray[Any]) -> Hashes:
        return Hashes(self.high[which], None if self.low is None else self.low[which])


def concat_hashes(parts: list[Hashes]) -> Hashes:
    lows = [part.low for part in parts if part.low is not None]
    return Hashes(
        np.concatenate([part.high for part in parts]), np.concatenate(lows) if lows else None
    )


def repeated(words: Words) -> Words:
    """The words that are there more than once, sorted."""
    ordered = np.sort(words)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


@dataclass(frozen=True)
class Hasher:
    """Turns the rows of key columns into numbers; `exact` for a single column of integers."""

    exact: bool
    seeds: tuple[int, int]

    @classmethod
    def of(cls, schema: pa.Schema, *, exact: bool = True) -> Hasher:
        """For these columns; `exact=False` makes fingerprints of integers too, for their nulls."""
        exact = exact and len(schema) == 1 and t.is_integer(schema.field(0).type)
        return cls(exact, (secrets.randbits(64), secrets.randbits(64)))

    def hash(self, keys: pa.Table) -> Hashes:
        """The numbers of each row.

        Raises:
            NullKeyError: a null among keys that are their own numbers.
        """
        parts = [self._hash_batch(batch) for batch in keys.to_batches() if batch.num_rows]
        if parts:
            return concat_hashes(parts)
        empty = np.empty(0, np.uint64)
        return Hashes(empty, None if self.exact else empty)

    def _hash_batch(self, keys: pa.RecordBatch) -> Hashes:
        if self.exact:
            if keys.column(0).null_count:
                raise NullKeyError("null in an integer key")
            return Hashes(keys.column(0).to_numpy().astype(np.int64, copy=False).view(np.uint64))
        pair = tuple(np.full(keys.num_rows, seed, np.uint64) for seed in self.seeds)
        for column in keys.columns:
            _mix_column(pair, column)
        return Hashes(_finish(pair[0]), _finish(pair[1]))


Pair = tuple[Words, ...]


def _rotate(words: Words, bits: int) -> Words:
    return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))


def _mixed(state: Words, words: Words, half: int) -> Words:
    """One round of MurmurHash3_x64_128's body, on one half of the state."""
    mixed = state ^ (_rotate(words * _MUL1[half], 31) * _MUL2[half])
    return _rotate(mixed, 27) * np.uint64(5) + _ADD[half]


def _mix(pair: Pair, words: Words) -> None:
    for half, state in enumerate(pair):
        state[:] = _mixed(state, words, half)


def _finish(words: Words) -> Words:
    """MurmurHash3's fmix64."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        words = (words ^ (words >> np.uint64(33))) * np.uint64(multiplier)
    return words ^ (words >> np.uint64(33))


def _mix_column(pair: Pair, column: pa.Array) -> None:
    """Nulls are told from zero and from empty by a word of their own, added for every row."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if t.is_nested(column.type):
        plain = column.cast(counted(column.type)).to_pylist()
        column = pa.array([repr(value).encode() for value in plain], pa.binary())
    if t.is_string(column.type) or t.is_binary(column.type):
        _mix_bytes(pair, column, valid)
    elif t.is_decimal(column.type):
        raw = np.frombuffer(column.buffers()[1], np.uint64).reshape(-1, 2)
        for word in raw[column.offset : column.offset + len(column)].T:
            _mix(pair, np.where(valid, word, np.uint64(0)))
    else:
        _mix(pair, np.where(valid, _fixed_words(column), np.uint64(0)))
    _mix(pair, valid.astype(np.uint64))


def _fixed_words(column: pa.Array) -> Words:
    """Values of up to eight bytes; all zeros are one, and all NaNs."""
    if t.is_floating(column.type):
        numbers = column.fill_null(0).to_numpy().astype(np.float64) + 0.0
        numbers[np.isnan(numbers)] = np.nan
        return cast("Words", numbers.view(np.uint64))
    if t.is_boolean(column.type):
        bits = column.fill_null(False).to_numpy(zero_copy_only=False)
        return cast("Words", bits.astype(np.uint64))
    if t.is_date32(column.type):
        column = column.view(pa.int32())
    elif t.is_timestamp(column.type):
        column = column.view(pa.int64())
    return cast("Words", column.fill_null(0).to_numpy().astype(np.int64).view(np.uint64))


def _mix_bytes(pair: Pair, column: pa.Array, valid: npt.NDArray[np.bool_]) -> None:
    """Eight bytes of every row at a time, gathered through a view that starts at any byte."""
    offsets = np.frombuffer(column.buffers()[1], np.int32)
    starts = offsets[column.offset : column.offset + len(column) + 1].astype(np.int64)
    lengths = np.where(valid, np.diff(starts), 0)
    starts = starts[:-1]
    _mix(pair, lengths.astype(np.uint64))
    words = _words_at_any_byte(column.buffers()[2])
    rows = np.flatnonzero((lengths > 0) & (lengths <= LONG))
    at = 0
    while len(rows):
        rest = lengths[rows] - at
        _mix_rows(pair, rows, words[starts[rows] + at] & _TAIL_MASKS[np.minimum(rest, 8)])
        rows, at = rows[rest > 8], at + 8
    rows = np.flatnonzero(lengths > LONG)
    if len(rows):
        digests = b"".join(_digest(column[row].as_buffer()) for row in rows.tolist())
        for part in np.frombuffer(digests, np.uint64).reshape(-1, 2).T:
            _mix_rows(pair, rows, part)


def _mix_rows(pair: Pair, rows: npt.NDArray[np.intp], words: Words) -> None:
    for half, state in enumerate(pair):
        state[rows] = _mixed(state[rows], words, half)


def _digest(value: pa.Buffer) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


def _words_at_any_byte(buffer: pa.Buffer | None) -> Words:
    data = np.empty(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    return np.ndarray(len(data) + 1, np.uint64, padded, strides=(1,))
