"""Deletion vectors: which rows of a data file are no longer in the table.

PROTOCOL.md, "Deletion Vectors" and "Deletion Vector Format". In memory a vector is a 32-bit roaring
bitmap: a Parquet file of ours never comes near 2**32 rows.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from pyroaring import BitMap

from headrace.connectors.delta.names import new_uuid
from headrace.errors import DestinationError

MAGIC: Final = 1681511377
_VERSION: Final = b"\x01"
_Z85: Final = (
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
)
_Z85_VALUE: Final = {character: value for value, character in enumerate(_Z85)}

ReadBytes = Callable[[str, int, int], bytes]  # path, offset and length to bytes


def z85_encode(data: bytes) -> str:
    """ZeroMQ RFC 32; `data` is padded to a multiple of four bytes by the caller."""
    digits = []
    for (word,) in struct.iter_unpack(">I", data):
        digits += [_Z85[word // 85**power % 85] for power in (4, 3, 2, 1, 0)]
    return "".join(digits)


def z85_decode(text: str) -> bytes:
    """ZeroMQ RFC 32. Raises ValueError on characters or lengths it does not have."""
    if len(text) % 5 or not set(text) <= _Z85_VALUE.keys():
        raise ValueError("not Z85")
    words = []
    for start in range(0, len(text), 5):
        word = 0
        for character in text[start : start + 5]:
            word = word * 85 + _Z85_VALUE[character]
        words.append(word)
    return struct.pack(f">{len(words)}I", *words)


def encode(rows: BitMap) -> bytes:
    """A RoaringBitmapArray: the magic number, then the portable 64-bit form with one bucket."""
    if not rows:
        return struct.pack("<IQ", MAGIC, 0)
    return struct.pack("<IQI", MAGIC, 1, 0) + bytes(rows.serialize())


def decode(data: bytes) -> BitMap:
    """The opposite of `encode`. Raises ValueError on anything else."""
    if len(data) < 12:
        raise ValueError("too short")
    magic, buckets = struct.unpack_from("<IQ", data)
    if magic != MAGIC:
        raise ValueError(f"magic number {magic}")
    if buckets == 0:
        return BitMap()
    if buckets > 1 or struct.unpack_from("<I", data, 12)[0]:
        raise ValueError("rows beyond 2**32")
    return BitMap.deserialize(data[16:])


def encode_file(vectors: Mapping[str, BitMap]) -> tuple[str, bytes, dict[str, dict[str, Any]]]:
    """One file with the vector of each data file.

    Returns:
        The file's name, its content, and the DeletionVectorDescriptor of each data file.
    """
    identity = new_uuid()
    content = bytearray(_VERSION)
    descriptors = {}
    for path, rows in vectors.items():
        data = encode(rows)
        descriptors[path] = {
            "storageType": "u",
            "pathOrInlineDv": z85_encode(identity.bytes),
            "offset": len(content),
            "sizeInBytes": len(data),
            "cardinality": len(rows),
        }
        content += struct.pack(">I", len(data)) + data + struct.pack(">I", zlib.crc32(data))
    return vector_path(z85_encode(identity.bytes)), bytes(content), descriptors


def vector_path(text: str) -> str:
    """The file of a vector of storage type `u`, relative to the table."""
    prefix, identity = text[:-20], text[-20:]
    name = f"deletion_vector_{uuid.UUID(bytes=z85_decode(identity))}.bin"
    return f"{prefix}/{name}" if prefix else name


def unique_id(descriptor: Mapping[str, Any] | None) -> str | None:
    """What identifies a vector. PROTOCOL.md, "Derived Fields"."""
    if not descriptor:
        return None
    text = f"{descriptor['storageType']}{descriptor['pathOrInlineDv']}"
    offset = descriptor.get("offset")
    return text if offset is None else f"{text}@{offset}"


def cardinality(descriptor: Mapping[str, Any] | None) -> int:
    """How many rows a descriptor takes away."""
    return int(descriptor["cardinality"]) if descriptor else 0


def read_vector(descriptor: Mapping[str, Any] | None, read: ReadBytes) -> BitMap:
    """The rows that a descriptor takes away.

    Raises:
        DestinationError: the vector is not what its descriptor says.
    """
    if not descriptor:
        return BitMap()
    try:
        rows = decode(_raw(descriptor, read))
    except (ValueError, struct.error) as error:
        raise DestinationError(
            f"deletion vector {unique_id(descriptor)} is damaged: {error}",
            hint="restore the table from a backup, or resync it",
        ) from error
    if len(rows) != descriptor["cardinality"]:
        raise DestinationError(
            f"deletion vector {unique_id(descriptor)} has {len(rows)} rows, "
            f"its descriptor says {descriptor['cardinality']}",
            hint="restore the table from a backup, or resync it",
        )
    return rows


def _raw(descriptor: Mapping[str, Any], read: ReadBytes) -> bytes:
    size = descriptor["sizeInBytes"]
    kind, text = descriptor["storageType"], descriptor["pathOrInlineDv"]
    if kind == "i":
        return z85_decode(text)[:size]
    if kind not in ("u", "p"):
        raise ValueError(f"storage type {kind!r}")
    path = vector_path(text) if kind == "u" else text
    framed = read(path, descriptor.get("offset") or 0, size + 8)
    (stored_size,) = struct.unpack_from(">I", framed)
    data = framed[4 : 4 + size]
    if stored_size != size or struct.unpack_from(">I", framed, 4 + size)[0] != zlib.crc32(data):
        raise ValueError("checksum or size differ")
    return data
