"""What both decoders do alike with the rare messages, and how they refuse what they do not take."""

from __future__ import annotations

from typing import Final

from headrace.errors import ProtocolError
from headrace.model import Lsn
from headrace.pgoutput.malformed import LETTERS, malformed_message, out_of_order
from headrace.pgoutput.messages import PgoutputMessage, parse

# Messages that only come if START_REPLICATION asked for them.
_OPTIONS: Final = dict.fromkeys(b"bPKrp", "two_phase")


def parse_enabled(payload: bytes | memoryview, *, streamed: bool) -> PgoutputMessage:
    """Parse a message of a stream that runs without `two_phase`; `streamed` as in `parse`.

    Raises:
        ProtocolError: the message is malformed, or belongs to that option.
    """
    letter = payload[0] if len(payload) else 0
    option = _OPTIONS.get(letter)
    if option is not None:
        raise ProtocolError(
            f"the server sent a {LETTERS[letter]} message, but {option} is off",
            hint=f"start replication without the option {option}",
        )
    return parse(payload, streamed=streamed)


def unknown_relation(relation_id: int) -> ProtocolError:
    return out_of_order(
        f"the server sent a row of relation {relation_id} without a Relation message before it"
    )


def wrong_column_count(letter: int, found: int, expected: int, at: int) -> ProtocolError:
    return malformed_message(letter, f"{found} columns, the relation has {expected},", at)


def column_full(name: str, limit: int) -> ProtocolError:
    return ProtocolError(
        f"more than {limit} bytes of column {name!r} came before they were taken",
        hint="take what the decoder has gathered more often",
    )


def not_open(letter: int) -> ProtocolError:
    return out_of_order(f"the server sent a {LETTERS[letter]} message outside of a transaction")


def already_open(letter: int) -> ProtocolError:
    return out_of_order(f"the server sent a {LETTERS[letter]} message inside a transaction")


def unknown_stream(xid: int) -> ProtocolError:
    return out_of_order(
        f"the server went on with the streamed transaction {xid}, whose first block never came"
    )


def wrong_commit(expected: int, found: int) -> ProtocolError:
    return out_of_order(
        f"the server sent the commit at {Lsn(found)} for the transaction of {Lsn(expected)}"
    )


def unusable() -> ProtocolError:
    return ProtocolError(
        "this decoder met an error before and cannot go on",
        hint="make a new decoder and stream again from the last durable position",
    )
