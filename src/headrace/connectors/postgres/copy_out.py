"""A query's rows by COPY in binary, over a session that also runs other statements.

What libpq has received goes to the decoder by libpq's own functions, without a Python object per
row and without the GIL; where their addresses cannot be found, row by row through psycopg.
"""

from __future__ import annotations

import ctypes
import selectors
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import psycopg
from psycopg import pq

from headrace.errors import ProtocolError
from headrace.pgcopy import KERNEL, CopiedRows, Decoder, Wanted

# 8 MiB of COPY data per batch: large enough for the fixed costs, small enough for memory.
BATCH_BYTES: Final = 8 << 20

CANCEL_TIMEOUT: Final = 5.0

# PQgetCopyData in asynchronous mode, libpq documentation, "Functions for Receiving COPY Data".
_ENDED: Final = -1
_NOTHING_YET: Final = 0

_ROWS_AT_ONCE: Final = 1000  # of the slow way


def _addresses() -> tuple[int, int] | None:
    """Where PQgetCopyData and PQfreemem of the very libpq that psycopg calls are.

    They are found through psycopg's compiled module, which is linked to it; not on Windows, and not
    where psycopg runs in plain Python.
    """
    path = str(sys.modules[pq.PGconn.__module__].__file__)
    try:
        library = ctypes.CDLL(path)
        functions = (library.PQgetCopyData, library.PQfreemem)
    except (OSError, AttributeError):
        return None
    get, release = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
    return get, release


_LIBPQ: Final = _addresses() if KERNEL else None


def copy_out(
    session: psycopg.Connection[Any], query: str, columns: Sequence[Wanted]
) -> Iterator[CopiedRows]:
    """The rows of `query`, in batches of some BATCH_BYTES.

    A generator that is closed before its end cancels the query; should that fail, the session is
    closed.

    Raises:
        psycopg.Error: the server refused the query or a value, or the connection was lost.
        ProtocolError: what came was not what was asked for.
    """
    pg, decoder = session.pgconn, Decoder(columns)
    _begin(pg, query)
    over = False
    try:
        yield from _received(pg, decoder)
        over = True
        _finish(pg)
    finally:
        if not over:
            _abandon(session)
    if not decoder.ended:
        raise ProtocolError(
            "a COPY ended without its trailer", hint="run the pipeline again, and report this"
        )
    if decoder.rows:
        yield decoder.take()


def _begin(pg: pq.abc.PGconn, query: str) -> None:
    result = pg.exec_(f"COPY ({query}) TO STDOUT (FORMAT binary)".encode())
    if result.status != pq.ExecStatus.COPY_OUT:
        raise _server_error(pg, result)


def _received(pg: pq.abc.PGconn, decoder: Decoder) -> Iterator[CopiedRows]:
    """Full batches; what is left when the data ends stays in the decoder."""
    with selectors.DefaultSelector() as readable:
        readable.register(pg.socket, selectors.EVENT_READ)
        while (found := _pull(pg, decoder)) != _ENDED:
            if found > 0:
                yield decoder.take()
            elif found == _NOTHING_YET:
                readable.select()
                pg.consume_input()
            else:
                raise psycopg.OperationalError(pg.error_message.decode(errors="replace").strip())


def _pull(pg: pq.abc.PGconn, decoder: Decoder) -> int:
    """Decode what has been received; above 0 if a batch is full, else what PQgetCopyData told."""
    if _LIBPQ is not None:
        pointer = cast("Any", pg).pgconn_ptr  # documented; psycopg's Protocol leaves it out
        return int(decoder.pull(*_LIBPQ, pointer, BATCH_BYTES))
    while decoder.size < BATCH_BYTES:
        rows: list[memoryview] = []
        while len(rows) < _ROWS_AT_ONCE and (found := pg.get_copy_data(1))[0] > 0:
            rows.append(found[1])
        decoder.push(rows)
        if found[0] <= 0:
            return found[0]
    return 1


def _finish(pg: pq.abc.PGconn) -> None:
    """Take the results of a COPY whose data has ended; the session is free again."""
    failed = None
    while (result := pg.get_result()) is not None:
        if result.status != pq.ExecStatus.COMMAND_OK:
            failed = _server_error(pg, result)
    if failed is not None:
        raise failed


def _abandon(session: psycopg.Connection[Any]) -> None:
    """End a COPY before its end, whatever has become of the connection."""
    try:
        session.cancel_safe(timeout=CANCEL_TIMEOUT)
        while session.pgconn.get_copy_data(0)[0] > 0:
            continue
        while session.pgconn.get_result() is not None:
            continue
    except psycopg.Error:
        session.close()


def _server_error(pg: pq.abc.PGconn, result: pq.abc.PGresult) -> psycopg.Error:
    state = result.error_field(pq.DiagnosticField.SQLSTATE)
    message = (result.error_message or pg.error_message).decode(errors="replace").strip()
    if state is None:
        return psycopg.OperationalError(message)
    try:
        return psycopg.errors.lookup(state.decode())(message)
    except KeyError:
        return psycopg.DatabaseError(f"{message} [{state.decode()}]")
