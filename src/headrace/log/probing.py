"""Whether a store keeps the promise that every commit rests on: that only one of two writers who
put the same new object succeeds (S3: `If-None-Match: *`)."""

from __future__ import annotations

import uuid

from headrace.errors import LogError, ObjectExistsError
from headrace.log.interface import Storage


def check_put_if_absent(storage: Storage) -> None:
    """Put one new object twice: the second put must be refused. Leaves nothing behind.

    Raises:
        LogError: it was not, or the store cannot be written to.
    """
    probe = f".headrace-{uuid.uuid4()}"
    try:
        storage.put(probe, b"first", create=True)
        storage.put(probe, b"second", create=True)
    except ObjectExistsError:
        return
    finally:
        storage.delete([probe])
    raise LogError(
        f"the store of {storage.url} ignores If-None-Match: it overwrites what must be put only "
        "where nothing is, so that two writers would destroy each other's commits",
        hint="use a store with conditional writes (Amazon S3, Azure, Google Cloud Storage, R2, "
        "SeaweedFS, a current MinIO or Ceph), or upgrade this one",
        path=storage.url,
    )
