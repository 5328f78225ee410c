"""Every pgoutput message of protocol versions 1 to 4 as a frozen value, and the parser for them.

PostgreSQL documentation, "Logical Replication Message Formats": classes and fields bear its names
and stand in its order. `xid` is None where a message bears none: outside stream blocks. Timestamps
are microseconds since 1970-01-01 UTC.

This is the readable reading of the protocol; the kernel reads the hot messages a second time in C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from headrace.model import Lsn, ReplicaIdentity
from headrace.pgoutput.malformed import malformed_message
from headrace.pgoutput.wire import Cursor

NULL: Final = ord("n")
UNCHANGED: Final = ord("u")  # a TOASTed value that the server did not send because it is the same
TEXT: Final = ord("t")
BINARY: Final = ord("b")

KEY: Final = ord("K")  # the old tuple holds the replica identity's columns only
OLD: Final = ord("O")  # the old tuple is the whole row (REPLICA IDENTITY FULL)
NEW: Final = ord("N")


@dataclass(frozen=True, slots=True)
class Begin:
    final_lsn: Lsn  # start of the commit record, as Commit.commit_lsn
    commit_ts: int
    xid: int


@dataclass(frozen=True, slots=True)
class Message:
    """A logical decoding message (pg_logical_emit_message)."""

    xid: int | None
    transactional: bool
    lsn: Lsn
    prefix: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_ts: int


@dataclass(frozen=True, slots=True)
class Origin:
    commit_lsn: Lsn  # on the origin server
    name: str


@dataclass(frozen=True, slots=True)
class RelationColumn:
    is_key: bool
    name: str
    type_oid: int
    type_modifier: int


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as the next rows of it are laid out; equal whatever transaction told it."""

    xid: int | None = field(compare=False)
    relation_id: int
    namespace: str
    name: str
    replica_identity: ReplicaIdentity
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class Type:
    xid: int | None
    type_oid: int
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class TupleData:
    """One row: per column its kind (`n`, `u`, `t` or `b`) and its value, None for `n` and `u`."""

    kinds: bytes
    values: tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class Insert:
    xid: int | None
    relation_id: int
    new: TupleData


@dataclass(frozen=True, slots=True)
class Update:
    """`old_kind` is KEY or OLD, or 0 with `old` None: the replica identity did not change."""

    xid: int | None
    relation_id: int
    old_kind: int
    old: TupleData | None
    new: TupleData


@dataclass(frozen=True, slots=True)
class Delete:
    xid: int | None
    relation_id: int
    old_kind: int
    old: TupleData


@dataclass(frozen=True, slots=True)
class Truncate:
    xid: int | None
    cascade: bool
    restart_identity: bool
    relation_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StreamStart:
    xid: int
    first_segment: bool


@dataclass(frozen=True, slots=True)
class StreamStop:
    pass


@dataclass(frozen=True, slots=True)
class StreamCommit:
    xid: int
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_ts: int


@dataclass(frozen=True, slots=True)
class StreamAbort:
    """`abort_lsn` and `abort_ts` are there only under streaming 'parallel' (version 4)."""

    xid: int
    subtransaction_xid: int
    abort_lsn: Lsn | None
    abort_ts: int | None


@dataclass(frozen=True, slots=True)
class BeginPrepare:
    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_ts: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class Prepare:
    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_ts: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class CommitPrepared:
    commit_lsn: Lsn
    end_lsn: Lsn
    commit_ts: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class RollbackPrepared:
    prepare_end_lsn: Lsn
    rollback_end_lsn: Lsn
    prepare_ts: int
    rollback_ts: int
    xid: int
    gid: str


@dataclass(frozen=True, slots=True)
class StreamPrepare:
    prepare_lsn: Lsn
    end_lsn: Lsn
    prepare_ts: int
    xid: int
    gid: str


PgoutputMessage = (
    Begin
    | Message
    | Commit
    | Origin
    | Relation
    | Type
    | Insert
    | Update
    | Delete
    | Truncate
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
    | BeginPrepare
    | Prepare
    | CommitPrepared
    | RollbackPrepared
    | StreamPrepare
)


def parse(payload: bytes | memoryview, *, streamed: bool = False) -> PgoutputMessage:
    """Read one whole pgoutput message.

    Args:
        payload: the message, its type byte first.
        streamed: it stands between Stream Start and Stream Stop, where data messages bear an xid.

    Raises:
        ProtocolError: the message is not what the protocol allows; says what, and at which byte.
    """
    view = memoryview(payload)
    if not view:
        raise malformed_message(0, "no type byte", 0)
    cursor = Cursor(view, 1, partial(malformed_message, view[0]))
    reader = _READERS.get(view[0])
    if reader is None:
        raise cursor.fail(f"type {view[0]:#04x}", 0)
    message = reader(cursor, streamed)
    cursor.end()
    return message


def _xid(cursor: Cursor, streamed: bool) -> int | None:
    return cursor.uint32("xid") if streamed else None


def _begin(cursor: Cursor, _streamed: bool) -> Begin:
    return Begin(
        cursor.lsn("final LSN"), cursor.timestamp("commit timestamp"), cursor.uint32("xid")
    )


def _message(cursor: Cursor, streamed: bool) -> Message:
    xid, flags = _xid(cursor, streamed), cursor.byte("flags")
    lsn, prefix = cursor.lsn("message LSN"), cursor.string("prefix")
    content = bytes(cursor.raw(cursor.int32("length of the content"), "content"))
    return Message(xid, bool(flags & 1), lsn, prefix, content)


def _commit(cursor: Cursor, _streamed: bool) -> Commit:
    cursor.zero_flags()
    return Commit(
        cursor.lsn("commit LSN"), cursor.lsn("end LSN"), cursor.timestamp("commit timestamp")
    )


def _origin(cursor: Cursor, _streamed: bool) -> Origin:
    return Origin(cursor.lsn("commit LSN"), cursor.string("origin's name"))


def _relation(cursor: Cursor, streamed: bool) -> Relation:
    xid, relation_id = _xid(cursor, streamed), cursor.uint32("relation's OID")
    namespace = cursor.string("namespace") or "pg_catalog"  # which is sent as the empty string
    name = cursor.string("relation's name")
    identity = _replica_identity(cursor)
    columns = tuple(_relation_column(cursor) for _ in range(_count(cursor, cursor.int16)))
    return Relation(xid, relation_id, namespace, name, identity, columns)


def _replica_identity(cursor: Cursor) -> ReplicaIdentity:
    letter = chr(cursor.byte("replica identity"))
    if letter not in _REPLICA_IDENTITIES:
        raise cursor.fail(f"replica identity {letter!r}", cursor.at - 1)
    return ReplicaIdentity(letter)


_REPLICA_IDENTITIES: Final = frozenset(identity.value for identity in ReplicaIdentity)


def _relation_column(cursor: Cursor) -> RelationColumn:
    flags, name = cursor.byte("column flags"), cursor.string("column's name")
    type_oid, modifier = cursor.uint32("type's OID"), cursor.int32("type modifier")
    return RelationColumn(bool(flags & 1), name, type_oid, modifier)


def _count(cursor: Cursor, read: Callable[[str], int]) -> int:
    start, count = cursor.at, read("count")
    if count < 0:
        raise cursor.fail(f"count of {count}", start)
    return count


def _type(cursor: Cursor, streamed: bool) -> Type:
    xid, type_oid = _xid(cursor, streamed), cursor.uint32("type's OID")
    return Type(xid, type_oid, cursor.string("namespace") or "pg_catalog", cursor.string("name"))


def _tuple(cursor: Cursor) -> TupleData:
    columns = [_value(cursor) for _ in range(_count(cursor, cursor.int16))]
    return TupleData(bytes(kind for kind, _ in columns), tuple(value for _, value in columns))


def _value(cursor: Cursor) -> tuple[int, bytes | None]:
    kind = cursor.byte("column kind")
    if kind in (TEXT, BINARY):
        return kind, bytes(cursor.raw(cursor.int32("length of a value"), "value"))
    if kind not in (NULL, UNCHANGED):
        raise cursor.fail(f"column kind {kind:#04x}", cursor.at - 1)
    return kind, None


def _tuple_kind(cursor: Cursor, *allowed: int) -> int:
    kind = cursor.byte("tuple kind")
    if kind not in allowed:
        raise cursor.fail(f"tuple kind {kind:#04x}", cursor.at - 1)
    return kind


def _insert(cursor: Cursor, streamed: bool) -> Insert:
    xid, relation_id = _xid(cursor, streamed), cursor.uint32("relation's OID")
    _tuple_kind(cursor, NEW)
    return Insert(xid, relation_id, _tuple(cursor))


def _update(cursor: Cursor, streamed: bool) -> Update:
    xid, relation_id = _xid(cursor, streamed), cursor.uint32("relation's OID")
    kind = _tuple_kind(cursor, KEY, OLD, NEW)
    if kind == NEW:
        return Update(xid, relation_id, 0, None, _tuple(cursor))
    old = _tuple(cursor)
    _tuple_kind(cursor, NEW)
    return Update(xid, relation_id, kind, old, _tuple(cursor))


def _delete(cursor: Cursor, streamed: bool) -> Delete:
    xid, relation_id = _xid(cursor, streamed), cursor.uint32("relation's OID")
    return Delete(xid, relation_id, _tuple_kind(cursor, KEY, OLD), _tuple(cursor))


def _truncate(cursor: Cursor, streamed: bool) -> Truncate:
    xid, count = _xid(cursor, streamed), _count(cursor, cursor.int32)
    flags = cursor.byte("flags")
    relations = tuple(cursor.uint32("relation's OID") for _ in range(count))
    return Truncate(xid, bool(flags & 1), bool(flags & 2), relations)


def _stream_start(cursor: Cursor, _streamed: bool) -> StreamStart:
    return StreamStart(cursor.uint32("xid"), bool(cursor.byte("first segment flag")))


def _stream_stop(_cursor: Cursor, _streamed: bool) -> StreamStop:
    return StreamStop()


def _stream_commit(cursor: Cursor, _streamed: bool) -> StreamCommit:
    xid = cursor.uint32("xid")
    cursor.zero_flags()
    commit_lsn, end_lsn = cursor.lsn("commit LSN"), cursor.lsn("end LSN")
    return StreamCommit(xid, commit_lsn, end_lsn, cursor.timestamp("commit timestamp"))


def _stream_abort(cursor: Cursor, _streamed: bool) -> StreamAbort:
    xid, subtransaction = cursor.uint32("xid"), cursor.uint32("subtransaction's xid")
    if not cursor.remaining:
        return StreamAbort(xid, subtransaction, None, None)
    abort_lsn, abort_ts = cursor.lsn("abort LSN"), cursor.timestamp("abort timestamp")
    return StreamAbort(xid, subtransaction, abort_lsn, abort_ts)


def _prepared(cursor: Cursor) -> tuple[Lsn, Lsn, int, int, str]:
    return (
        cursor.lsn("LSN"),
        cursor.lsn("end LSN"),
        cursor.timestamp("timestamp"),
        cursor.uint32("xid"),
        cursor.string("gid"),
    )


def _begin_prepare(cursor: Cursor, _streamed: bool) -> BeginPrepare:
    return BeginPrepare(*_prepared(cursor))


def _prepare(cursor: Cursor, _streamed: bool) -> Prepare:
    cursor.zero_flags()
    return Prepare(*_prepared(cursor))


def _commit_prepared(cursor: Cursor, _streamed: bool) -> CommitPrepared:
    cursor.zero_flags()
    return CommitPrepared(*_prepared(cursor))


def _rollback_prepared(cursor: Cursor, _streamed: bool) -> RollbackPrepared:
    cursor.zero_flags()
    return RollbackPrepared(
        cursor.lsn("end LSN of the prepare"),
        cursor.lsn("end LSN of the rollback"),
        cursor.timestamp("prepare timestamp"),
        cursor.timestamp("rollback timestamp"),
        cursor.uint32("xid"),
        cursor.string("gid"),
    )


def _stream_prepare(cursor: Cursor, _streamed: bool) -> StreamPrepare:
    cursor.zero_flags()
    return StreamPrepare(*_prepared(cursor))


_READERS: Final[dict[int, Callable[[Cursor, bool], PgoutputMessage]]] = {
    ord("B"): _begin,
    ord("M"): _message,
    ord("C"): _commit,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("Y"): _type,
    ord("I"): _insert,
    ord("U"): _update,
    ord("D"): _delete,
    ord("T"): _truncate,
    ord("S"): _stream_start,
    ord("E"): _stream_stop,
    ord("c"): _stream_commit,
    ord("A"): _stream_abort,
    ord("b"): _begin_prepare,
    ord("P"): _prepare,
    ord("K"): _commit_prepared,
    ord("r"): _rollback_prepared,
    ord("p"): _stream_prepare,
}
