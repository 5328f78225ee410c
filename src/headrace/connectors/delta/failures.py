"""Errors of reading a Delta table, translated: whether it helps to try again, and what else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
from deltalake.exceptions import DeltaError
from deltalake.exceptions import TableNotFoundError as NoDeltaTableError

from headrace.errors import (
    DestinationError,
    LogError,
    LogUnavailableError,
    ObjectMissingError,
    SourceError,
    SourceUnavailableError,
)
from headrace.log.storage import told
from headrace.model import TableId


@contextlib.contextmanager
def source_errors(table: TableId | str) -> Iterator[None]:
    """Errors of storage, of Arrow and of deltalake become ours, naming the table.

    A file that is not there is transient: VACUUM or a rewrite may be at work, and the next look at
    the table finds another version, or what was lost.

    Raises:
        SourceUnavailableError: the storage does not answer, or a file vanished.
        SourceError: anything else.
    """
    try:
        yield
    except ObjectMissingError as error:
        raise SourceUnavailableError(
            f"{table}: {error.message}; it vanished while the table was read",
            hint="Headrace looks at the table again; do not VACUUM below its retention",
            table=str(table),
        ) from error
    except LogUnavailableError as error:
        raise SourceUnavailableError(
            f"{table}: {error.message}", hint=error.hint, table=str(table)
        ) from error
    except (LogError, DestinationError) as error:
        hint = error.hint or "check the location and the rights of this account there"
        raise SourceError(f"{table}: {error.message}", hint=hint, table=str(table)) from error
    except (DeltaError, NoDeltaTableError, pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(
            f"{table}: the table cannot be read: {plain(error)}",
            hint="see whether another reader of Delta can read it; if so, report this",
            table=str(table),
        ) from error


def plain(error: BaseException) -> str:
    """The first line of a foreign error, without secrets."""
    return told(error)
