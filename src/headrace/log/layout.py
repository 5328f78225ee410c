"""Where each file of a change log is, and names that every file system can hold. DESIGN.md §6."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from headrace.model import Lsn, TableId

_PLAIN: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
_LONGEST: Final = 200  # bytes of a folder's name; file systems allow 255
_STAGED: Final = re.compile(r"(\d{20})-\d+\.parquet$")
_MANIFEST: Final = re.compile(r"/(\d{20})\.json$")


def safe_name(name: str) -> str:
    """Percent-encode all but small letters, digits, `_` and `-`: on a disk that ignores case,
    `Orders` and `orders` stay two, and a dot or a slash in a name divides nothing."""
    return "".join(chr(b) if b in _PLAIN else f"%{b:02X}" for b in name.encode())


def table_folder(table: TableId) -> str:
    """`schema.name`, each encoded."""
    return _bounded(f"{safe_name(table.schema)}.{safe_name(table.name)}")


def _bounded(name: str) -> str:
    """The name; where that is too long for a file system, cut and hashed."""
    if len(name) <= _LONGEST:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return f"{name[: _LONGEST - 33]}~{digest}"


def staged_under(path: str) -> int | None:
    """The commit number in a data file's name: the next commit when the file was begun."""
    found = _STAGED.search(path)
    return int(found[1]) if found else None


def manifest_number(path: str) -> int | None:
    """The commit number of a manifest's path, None for any other file."""
    found = _MANIFEST.search(path)
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Layout:
    """The paths of one capture's change log, relative to the state's storage."""

    capture: str

    @property
    def root(self) -> str:
        return f"log/{_bounded(safe_name(self.capture))}"

    @property
    def identity(self) -> str:
        return f"{self.root}/log.json"

    @property
    def lock(self) -> str:
        return f"{self.root}/writer.lock"

    @property
    def floor(self) -> str:
        return f"{self.root}/floor.json"

    @property
    def commits(self) -> str:
        return f"{self.root}/commits"

    @property
    def data(self) -> tuple[str, str]:
        return f"{self.root}/changes", f"{self.root}/snapshots"

    @property
    def schemas(self) -> str:
        return f"{self.root}/schemas"

    @property
    def unfinished(self) -> str:
        return f"{self.root}/unfinished"

    @property
    def readers(self) -> str:
        return f"{self.root}/readers"

    @property
    def covered(self) -> str:
        return f"{self.root}/covered.json"

    @property
    def source(self) -> str:
        return f"{self.root}/source.json"

    @property
    def anew(self) -> str:
        return f"{self.root}/anew.json"

    def proofs(self, pipeline: str) -> str:
        return f"{self.root}/verified/{_bounded(safe_name(pipeline))}.json"

    @property
    def requests(self) -> str:
        return f"{self.root}/requests"

    def manifest(self, commit: int) -> str:
        return f"{self.commits}/{commit:020d}.json"

    def changes(self, table: TableId, commit: int, number: int) -> str:
        return f"{self.root}/changes/{table_folder(table)}/{commit:020d}-{number}.parquet"

    def chunk(self, table: TableId, lsn: Lsn, chunk: int, commit: int, number: int) -> str:
        """`commit` and `number` make the name unique: two snapshots may have one LSN."""
        folder = f"{self.root}/snapshots/{table_folder(table)}/{int(lsn):016X}"
        return f"{folder}/{chunk:06d}-{commit:020d}-{number}.parquet"

    def unfinished_copy(self, table: TableId) -> str:
        return f"{self.unfinished}/{table_folder(table)}.json"

    def schema(self, table: TableId, version: int) -> str:
        return f"{self.schemas}/{table_folder(table)}/{version}.json"

    def reader(self, name: str) -> str:
        return f"{self.readers}/{_bounded(safe_name(name))}.json"
