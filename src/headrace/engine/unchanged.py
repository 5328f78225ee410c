"""Reads and rewrites `_unchanged`: which columns an update did not send (TOAST left as it was).

A batch holds few different bitmaps however many rows bear them, so each distinct one is decoded
once and the result is spread over the rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def unsent_columns(
    bitmaps: pa.ChunkedArray, names: Sequence[str]
) -> dict[str, npt.NDArray[np.bool_]]:
    """Per column that some row did not send, a mask over the rows.

    `bitmaps` is the `_unchanged` column (model/batch.py); a bitmap may be shorter than `names` asks
    for, the columns beyond it were sent.
    """
    if bitmaps.null_count == len(bitmaps):
        return {}
    pattern, flags = _distinct(bitmaps, len(names))
    marked = np.flatnonzero(flags.any(axis=0)).tolist()
    return {names[i]: flags[pattern, i] for i in marked}


def bitmap_of(names: Sequence[str], unsent: Collection[str]) -> bytes:
    """The bitmap that marks the columns `unsent` among `names`."""
    flags = np.array([name in unsent for name in names], np.bool_)
    return np.packbits(flags, bitorder="little").tobytes()


def unsent_names(bitmaps: pa.ChunkedArray, names: Sequence[str]) -> pa.Array:
    """Per row the columns that it did not send, as a list of names; null where it sent all."""
    pattern, flags = _distinct(bitmaps, len(names))
    listed = [[name for name, flag in zip(names, row, strict=True) if flag] for row in flags]
    distinct = pa.array([each or None for each in listed], pa.list_(pa.string()))
    return distinct.take(pa.array(pattern))


def move_bits(bitmaps: pa.Array, positions: Sequence[int | None], width: int) -> pa.Array:
    """The same marks for another schema: what was column i is column `positions[i]` of `width`, or
    is there no more. A row that sent the rest is told as one that sent all."""
    if bitmaps.null_count == len(bitmaps):
        return bitmaps
    pattern, flags = _distinct(pa.chunked_array([bitmaps]), len(positions))
    moved = np.zeros((len(flags), width), dtype=np.bool_)
    stays = [column for column, place in enumerate(positions) if place is not None]
    moved[:, [place for place in positions if place is not None]] = flags[:, stays]
    packed = np.packbits(moved, axis=1, bitorder="little")
    texts = [row.tobytes() if any(row) else None for row in packed]
    distinct = pa.array(texts, pa.binary())
    return distinct.take(pa.array(pattern, mask=bitmaps.is_null().to_numpy(zero_copy_only=False)))


def _distinct(
    bitmaps: pa.ChunkedArray, width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Per row the number of its bitmap, and per distinct bitmap its flags; null is all False."""
    encoded = bitmaps.combine_chunks().dictionary_encode(null_encoding="encode")
    flags = np.zeros((len(encoded.dictionary), width), dtype=np.bool_)
    for number, bitmap in enumerate(encoded.dictionary.to_pylist()):
        bits = np.unpackbits(np.frombuffer(bitmap or b"", np.uint8), bitorder="little")[:width]
        flags[number, : len(bits)] = bits
    return encoded.indices.to_numpy().astype(np.int64), flags
