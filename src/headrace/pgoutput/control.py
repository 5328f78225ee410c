"""How both decoders refuse what they do not take."""

from __future__ import annotations

from headrace.errors import ProtocolError
from headrace.model import Lsn
from headrace.pgoutput.malformed import LETTERS, malformed_message, out_of_order


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


def wrong_prepare(expected: int, found: int) -> ProtocolError:
    return out_of_order(f"the server prepared transaction {found} inside of {expected}")


def unusable() -> ProtocolError:
    return ProtocolError(
        "this decoder met an error before and cannot go on",
        hint="make a new decoder and stream again from the last durable position",
    )
