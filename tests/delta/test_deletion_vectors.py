"""Deletion vectors as the protocol writes them, and as other writers do."""

from __future__ import annotations

import struct
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap, BitMap64

from headrace.connectors.delta import vectors
from headrace.connectors.delta.files import read_range
from headrace.errors import DestinationError
from headrace.log import open_storage

# As delta-kernel-rs tests it; the inline example of PROTOCOL.md has the older native format.
INLINE = {
    "storageType": "i",
    "pathOrInlineDv": "^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L",
    "sizeInBytes": 44,
    "cardinality": 6,
}


def _no_file(path: str, offset: int, length: int) -> bytes:
    raise AssertionError(path)


def test_a_vector_inside_the_log_is_read() -> None:
    assert list(vectors.read_vector(INLINE, _no_file)) == [3, 4, 7, 11, 18, 29]


def test_a_vector_in_the_native_format_is_refused() -> None:
    text = "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L"
    with pytest.raises(DestinationError, match="magic number"):
        vectors.read_vector({**INLINE, "pathOrInlineDv": text, "sizeInBytes": 40}, _no_file)


def test_the_protocols_uuid_example_names_its_file() -> None:
    path = vectors.vector_path("ab^-aqEH.-t@S}K{vb[*k^")
    assert path == "ab/deletion_vector_d2c639aa-8816-431a-aaf6-d3fe2512ff61.bin"


def test_z85_is_that_of_its_rfc() -> None:
    assert vectors.z85_encode(bytes.fromhex("864FD26FB559F75B")) == "HelloWorld"
    assert vectors.z85_decode("HelloWorld") == bytes.fromhex("864FD26FB559F75B")


@given(st.sets(st.integers(0, 2**32 - 1)), st.integers(0, 70_000))
def test_a_vector_is_what_another_roaring_implementation_writes(
    scattered: set[int], run: int
) -> None:
    rows = BitMap(scattered) | BitMap(range(run))
    assert vectors.decode(vectors.encode(rows)) == rows
    assert BitMap64.deserialize(vectors.encode(rows)[4:]) == BitMap64(rows)
    assert vectors.decode(struct.pack("<I", vectors.MAGIC) + BitMap64(rows).serialize()) == rows


def _written(tmp_path: Path, folder: str = "") -> tuple[str, dict[str, Any]]:
    path, content, descriptors = vectors.encode_file(
        {"a": BitMap([1]), "b": BitMap([2, 3]), "c": BitMap(range(100_000))}
    )
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / path).write_bytes(content)
    return path, descriptors


def _read(tmp_path: Path, descriptor: dict[str, Any]) -> BitMap:
    storage = open_storage(tmp_path)
    return vectors.read_vector(descriptor, lambda p, o, n: read_range(storage, p, o, n))


def test_one_file_holds_many_vectors(tmp_path: Path) -> None:
    _, descriptors = _written(tmp_path)
    assert list(_read(tmp_path, descriptors["a"])) == [1]
    assert list(_read(tmp_path, descriptors["b"])) == [2, 3]
    assert len(_read(tmp_path, descriptors["c"])) == 100_000
    assert len({vectors.unique_id(d) for d in descriptors.values()}) == 3


def test_a_vector_in_a_prefixed_folder_is_found(tmp_path: Path) -> None:
    _, descriptors = _written(tmp_path, "ab")
    text = "ab" + descriptors["b"]["pathOrInlineDv"]
    assert list(_read(tmp_path, {**descriptors["b"], "pathOrInlineDv": text})) == [2, 3]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_vector_at_an_absolute_path_is_found(tmp_path: Path, scheme: str) -> None:
    path, descriptors = _written(tmp_path)
    absolute = {"storageType": "p", "pathOrInlineDv": f"{scheme}{tmp_path}/{path}"}
    assert list(_read(tmp_path, {**descriptors["b"], **absolute})) == [2, 3]


@pytest.mark.parametrize("damage", ["flip", "cut", "cardinality", "magic"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    path, descriptors = _written(tmp_path)
    file, descriptor = tmp_path / path, dict(descriptors["b"])
    content = bytearray(file.read_bytes())
    start = descriptor["offset"] + 4
    if damage == "flip":
        content[start + 20] ^= 1
    elif damage == "cut":
        del content[start + 5 :]
    elif damage == "cardinality":
        descriptor["cardinality"] += 1
    else:
        content[start] ^= 1
        crc = zlib.crc32(content[start : start + descriptor["sizeInBytes"]])
        end = start + descriptor["sizeInBytes"]
        content[end : end + 4] = struct.pack(">I", crc)
    file.write_bytes(content)
    with pytest.raises(DestinationError) as caught:
        _read(tmp_path, descriptor)
    assert caught.value.hint


def test_the_files_name_tells_when_it_was_made() -> None:
    path, _, _ = vectors.encode_file({"a": BitMap([1])})
    identity = uuid.UUID(path[len("deletion_vector_") : -len(".bin")])
    assert identity.version == 7
    assert identity.variant == uuid.RFC_4122
