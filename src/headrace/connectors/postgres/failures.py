"""Errors of replication commands and streams, translated: what the server said, and what to do.

The SQLSTATEs and texts were measured on 13 to 18; the same state means different things by place.
"""

from __future__ import annotations

from psycopg import pq

from headrace.errors import (
    DecodingError,
    HeadraceError,
    SlotLostError,
    SlotRefusedError,
    SourceError,
    SourceUnavailableError,
)

SLOT_ACTIVE = "55006"
UNDEFINED_OBJECT = "42704"
NOT_IN_STATE = "55000"
TOO_MANY = "53400"
INSUFFICIENT_PRIVILEGE = "42501"
INTERNAL_ERROR = "XX000"
ADMIN_SHUTDOWN = frozenset({"57P01", "57P02", "57P03"})

# Where the decoder does not know the catalog as it was (see `slot_start`; a slot that somebody else
# created may have begun so): "could not map filenumber …" (filenode before 16), "unexpected
# duplicate for tablespace …".
LOST_ITS_WAY = ("could not map file", "unexpected duplicate for tablespace")

REBUILD = (
    "headrace destroy, then headrace run writes what differs; auto_refresh: {on: [log_lost]} does "
    "it by itself"
)


def stream_error(result: pq.abc.PGresult | None, fallback: bytes) -> HeadraceError:
    """Why a stream ended: a shutdown or a killed backend is transient, a lost slot is not."""
    if result is None or result.status != pq.ExecStatus.FATAL_ERROR:
        return SourceUnavailableError(
            "the server ended the replication stream: it is shutting down",
            hint="Headrace reconnects when the server is back",
        )
    return command_error(result, fallback)


def command_error(result: pq.abc.PGresult, fallback: bytes) -> HeadraceError:
    """The error that a replication command's result holds."""
    state = _field(result, pq.DiagnosticField.SQLSTATE)
    message = _field(result, pq.DiagnosticField.MESSAGE_PRIMARY) or fallback.decode(
        errors="replace"
    )
    detail = _field(result, pq.DiagnosticField.MESSAGE_DETAIL)
    text = f"{message} ({detail})" if detail else message
    return _classify(state, text.strip())


def _classify(state: str, text: str) -> HeadraceError:
    if not state:
        return SourceUnavailableError(
            f"the connection was lost: {text}", hint="Headrace reconnects by itself"
        )
    if state in ADMIN_SHUTDOWN:
        return SourceUnavailableError(
            f"the server closed the replication connection: {text}",
            hint="Headrace reconnects; if it keeps happening, look at the slot: headrace status",
        )
    if state == SLOT_ACTIVE:
        return SourceUnavailableError(
            text, hint="stop the other consumer, or give this pipeline a slot of its own (slot:)"
        )
    if state == UNDEFINED_OBJECT and "publication" in text:
        return SourceError(
            f"{text}: it is missing, or was created after the slot, which never sees it",
            hint=f"headrace check --fix creates it; then {REBUILD}",
        )
    if state == UNDEFINED_OBJECT or (state == NOT_IN_STATE and "slot" in text):
        return SlotLostError(f"{text}: changes since then cannot be read", hint=REBUILD)
    if state == TOO_MANY:
        return SlotRefusedError(
            text,
            hint="drop a slot that nobody uses (SELECT slot_name FROM pg_replication_slots WHERE "
            "NOT active), or ALTER SYSTEM SET max_replication_slots to a larger number, and "
            "restart the server",
        )
    if state == INSUFFICIENT_PRIVILEGE:
        return SlotRefusedError(
            text, hint="ALTER ROLE <role> REPLICATION, or what your provider has instead"
        )
    if state == INTERNAL_ERROR and text.startswith(LOST_ITS_WAY):
        return DecodingError(
            f"the server failed to decode its WAL: {text}",
            hint="Headrace has it decode no transactions in progress any more",
        )
    return SourceError(f"{text} [{state}]", hint="headrace check names what the source lacks")


def _field(result: pq.abc.PGresult, field: pq.DiagnosticField) -> str:
    return (result.error_field(field) or b"").decode(errors="replace")
