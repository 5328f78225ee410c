"""A key index saved on local disk, so that a restart need not read the key columns again.

A folder holds a file of leaves (see `leaves`) and `directory`, which names the leaves that make up
the index, with their checksums, and says what it is an index of: the table's id, its version, its
key columns, its data files and the rows deleted from each. Leaves become durable first; then the
directory takes the place of the one before in one rename, and until then the leaves that that one
names stay as they are. Whatever is damaged, or belongs to another table, key or later version, is
as if it were not there. Data files never change and paths are not used twice, so from an older
version the table's own log leads on. The seed of the fingerprints is in it: only its owner may
read it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import uuid
import weakref
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from headrace.connectors.delta.leaves import Pool, Words
from headrace.failpoints import hit

_MAGIC: Final = b"HRKI0001"  # the format, and how keys become numbers: another one is not read
_DIRECTORY: Final = "directory"
_LEAVES: Final = ".leaves"

TierColumns = tuple[Words, npt.NDArray[np.int64], npt.NDArray[np.int64]]  # see leaves.Tier
Extents = Sequence[tuple[int, int, int]]  # see slots.Slots


@dataclass(frozen=True)
class Stamp:
    """What an index is an index of: `columns` describes the key's in full, and the history's."""

    table: str
    version: int
    columns: str


@dataclass(frozen=True)
class FileEntry:
    """A data file that is indexed; `vector` is the unique id of its deletion vector."""

    path: str
    vector: str | None
    deleted: BitMap
    extents: Extents


@dataclass(frozen=True)
class SavedIndex:
    """What a directory says."""

    stamp: Stamp
    exact: bool
    seeds: tuple[int, int]
    taken: int  # slots
    files: Sequence[FileEntry]
    tiers: Sequence[TierColumns]
    waiting: Sequence[TierColumns]

    def all_tiers(self) -> Sequence[TierColumns]:
        return [*self.tiers, *self.waiting]

    def places(self) -> frozenset[int]:
        return frozenset(place for tier in self.all_tiers() for place in tier[1].tolist())


class Claim:
    """A process's claim on the indexes of one pipeline, for as long as one of its tables needs it.

    One descriptor serves them all: a process may often have no more than 1,024. Safe in threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changing = threading.RLock()  # the collector may give back in between
        self._users = 0
        self._descriptor = -1

    def take(self) -> bool:
        """Whether no other process has it. Raises OSError: the file cannot be made."""
        with self._changing:
            if not self._users:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(self._descriptor)
                    return False
            self._users += 1
            return True

    def give_back(self) -> None:
        with self._changing:
            self._users -= 1
            if not self._users:
                os.close(self._descriptor)


class IndexFolder:
    """The folder of one table's index; another process's, if it was there first."""

    def __init__(self, path: Path, claim: Claim) -> None:
        self._path = path
        self._claim = claim
        self._claimed: weakref.finalize[[], IndexFolder] | None = None

    def claim(self) -> bool:
        """Whether the folder is ours. Raises OSError: it cannot be made."""
        if self._claimed is None:
            self._path.mkdir(parents=True, exist_ok=True)
            if not self._claim.take():
                return False
            self._claimed = weakref.finalize(self, self._claim.give_back)
        return True

    def release(self) -> None:
        """Let another process have it, once no other table of ours needs the claim."""
        if self._claimed is not None:
            self._claimed()
            self._claimed = None

    def new_leaves(self) -> Path:
        """Where another index may keep its leaves."""
        return self._path / f"{uuid.uuid4()}{_LEAVES}"

    def load(self, wanted: Stamp, memory: int) -> Loaded | None:
        """The saved index of this table and key, as of this version or an older one."""
        with suppress(OSError, ValueError, KeyError):  # damaged in whatever way: as if not there
            content = (self._path / _DIRECTORY).read_bytes()
            saved, leaves, checksums = _decoded(content)
            stamp = saved.stamp
            if (stamp.table, stamp.columns) != (wanted.table, wanted.columns):
                return None
            if stamp.version > wanted.version:
                return None
            pool = Pool(memory, self._path / leaves)
            places = saved.places()
            pool.restore(places)
            if not _are_whole(pool, saved.all_tiers(), checksums):
                return None
            pool.pin(places)
            return Loaded(saved, pool)
        return None

    def save(self, index: SavedIndex, pool: Pool, changed: Iterable[int]) -> None:
        """Make an index durable; its leaves are pinned by the caller, `changed` since the last time
        are those that the file may lack. Raises OSError.
        """
        assert pool.path is not None
        pool.write(changed)
        hit("index.leaves_written")
        _put(self._path / _DIRECTORY, _encoded(index, pool))
        hit("index.saved")
        for path in self._path.glob(f"*{_LEAVES}"):
            if path != pool.path:
                path.unlink()


@dataclass(frozen=True)
class Loaded:
    index: SavedIndex
    pool: Pool


def _put(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with suppress(FileNotFoundError):
        temporary.unlink()
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# -- the directory's form --------------------------------------------------------------------------


def _encoded(index: SavedIndex, pool: Pool) -> bytes:
    """Magic number, length and text of a JSON header, arrays, bitmaps, and a CRC-32 of it all."""
    assert pool.path is not None
    bitmaps = [entry.deleted.serialize() for entry in index.files]
    header = {
        "table": index.stamp.table,
        "version": index.stamp.version,
        "columns": index.stamp.columns,
        "exact": index.exact,
        "seeds": index.seeds,
        "taken": index.taken,
        "leaves": pool.path.name,
        "tiers": [len(tier[0]) for tier in index.all_tiers()],
        "waiting": len(index.waiting),
        "files": [
            (entry.path, entry.vector, entry.extents, len(bitmap))
            for entry, bitmap in zip(index.files, bitmaps, strict=True)
        ],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    arrays = [
        words.astype(np.uint64).tobytes()
        for tier in index.all_tiers()
        for words in (*tier, pool.checksums(tier[1]))
    ]
    content = b"".join([_MAGIC, len(text).to_bytes(8, "little"), text, *arrays, *bitmaps])
    return content + zlib.crc32(content).to_bytes(4, "little")


def _decoded(content: bytes) -> tuple[SavedIndex, str, Sequence[Words]]:
    """The index, the name of its leaves' file, and by tier their checksums. Raises ValueError."""
    body = content[:-4]
    if body[:8] != _MAGIC or zlib.crc32(body).to_bytes(4, "little") != content[-4:]:
        raise ValueError("not a directory, or a damaged one")
    at = 16 + int.from_bytes(body[8:16], "little")
    header: dict[str, Any] = json.loads(body[16:at])
    tiers, checksums = [], []
    for count in header["tiers"]:
        words = np.frombuffer(body, np.uint64, 4 * count, at).reshape(4, count)
        tiers.append((words[0], words[1].astype(np.int64), words[2].astype(np.int64)))
        checksums.append(words[3])
        at += words.nbytes
    files = []
    for path, vector, extents, size in header["files"]:
        deleted = BitMap.deserialize(body[at : at + size])
        files.append(FileEntry(path, vector, deleted, [tuple(extent) for extent in extents]))
        at += size
    stamp = Stamp(header["table"], header["version"], header["columns"])
    seeds = (header["seeds"][0], header["seeds"][1])
    settled = len(tiers) - header["waiting"]
    index = SavedIndex(
        stamp, header["exact"], seeds, header["taken"], files, tiers[:settled], tiers[settled:]
    )
    return index, header["leaves"], checksums


def _are_whole(pool: Pool, tiers: Sequence[TierColumns], checksums: Sequence[Words]) -> bool:
    return all(
        np.array_equal(pool.checksums(tier[1]), wanted)
        for tier, wanted in zip(tiers, checksums, strict=True)
    )
