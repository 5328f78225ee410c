"""How bytes that the protocol does not allow are reported, by the parser and by both decoders."""

from __future__ import annotations

from typing import Final

from headrace.errors import ProtocolError

LETTERS: Final = {
    ord("B"): "Begin",
    ord("M"): "Message",
    ord("C"): "Commit",
    ord("O"): "Origin",
    ord("R"): "Relation",
    ord("Y"): "Type",
    ord("I"): "Insert",
    ord("U"): "Update",
    ord("D"): "Delete",
    ord("T"): "Truncate",
    ord("S"): "Stream Start",
    ord("E"): "Stream Stop",
    ord("c"): "Stream Commit",
    ord("A"): "Stream Abort",
    ord("b"): "Begin Prepare",
    ord("P"): "Prepare",
    ord("K"): "Commit Prepared",
    ord("r"): "Rollback Prepared",
    ord("p"): "Stream Prepare",
}

_HINT: Final = (
    "run the pipeline again, it continues where it was; if this comes back, report it together "
    "with the server's version and anything between Headrace and the server (proxy, pooler)"
)


def malformed(kind: str, what: str, at: int) -> ProtocolError:
    """The error for a `kind` of message in which `what` is wrong at byte `at`, counted from 0."""
    return ProtocolError(f"malformed {kind}: {what} at byte {at}", hint=_HINT, byte=at)


def malformed_message(letter: int, what: str, at: int) -> ProtocolError:
    """As `malformed`, for the pgoutput message that starts with `letter`."""
    return malformed(f"{LETTERS.get(letter, 'unknown')} message", what, at)


def out_of_order(what: str) -> ProtocolError:
    """The error for a message that is well formed but may not stand where it does."""
    return ProtocolError(what, hint=_HINT)
