"""Files without a name for what memory does not hold: changes of a large transaction, for a while.

They are in the folder for temporary files (TMPDIR) and go with the process. Nothing in them is
durable, nor needs to be.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from headrace.errors import LogFullError


def temporary_file() -> IO[bytes]:
    """A new file. Raises LogFullError: there is no room."""
    with temporary_errors():
        return tempfile.TemporaryFile(prefix="headrace-")


@contextmanager
def temporary_errors() -> Iterator[None]:
    """Turn the operating system's errors with such a file into LogFullError."""
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise LogFullError(
            f"changes of a large transaction cannot be kept in {folder}: {error.strerror or error}",
            hint="free some space there, or set TMPDIR to a folder with room for the transaction",
            path=folder,
        ) from error
