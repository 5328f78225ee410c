"""The storage at a location: the one door to bytes outside memory, whose kind nobody asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from headrace.log.interface import Entry, FileGroup, Storage
from headrace.log.local import LocalStorage, local_path
from headrace.log.lock import Lock
from headrace.log.objects import RETRIES, ObjectStorage
from headrace.log.parquet import FileWriter
from headrace.log.probing import check_put_if_absent
from headrace.log.temporary import temporary_errors, temporary_file
from headrace.log.told import told

__all__ = [
    "Entry",
    "FileGroup",
    "FileWriter",
    "Lock",
    "Storage",
    "check_put_if_absent",
    "is_local",
    "open_storage",
    "temporary_errors",
    "temporary_file",
    "told",
    "with_retries",
]


def open_storage(location: str | Path, options: Mapping[str, str] | None = None) -> Storage:
    """The storage at a path, a file:// URL or an object store's URL (s3, gs, az, abfss, …).

    `options` are the object store's settings, in the names that Delta's `storage_options` have;
    without them it reads the usual environment variables.
    """
    path = local_path(str(location))
    if path is not None:
        return LocalStorage(path)
    return ObjectStorage(str(location), options or {})


def is_local(location: str | Path) -> bool:
    """Whether a location is on this machine's disks."""
    return local_path(str(location)) is not None


def with_retries(location: str, options: Mapping[str, str]) -> dict[str, str]:
    """`options` for other clients of a location: they give up when we do, unless told otherwise."""
    return dict(options) if is_local(location) else {**RETRIES, **options}
