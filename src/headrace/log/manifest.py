"""Manifests: what a commit of the change log consists of, and their JSON. DESIGN.md §6.

The format has a version `major.minor`. A reader ignores fields that it does not know, which a newer
minor may add, and refuses a newer major.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from headrace.errors import LogCorruptError, LogError
from headrace.model import Lsn, TableId, TransactionEnd

FORMAT: Final = "1.1"  # 1.1: a snapshot event tells when it was taken

T = TypeVar("T")


@dataclass(frozen=True)
class LogFile:
    """A Parquet file of changes of one table and schema version, in position order.

    `ops` counts rows by operation (`i`, `u`, `d`, `t`), `bytes` is the file's size. A file that was
    written before its transaction's commit was known has no LSNs in it, and none here;
    `transaction` then gives them, and whoever commits the file sets it.
    """

    path: str
    table: TableId
    schema_version: int
    rows: int
    ops: Mapping[str, int]
    min_lsn: Lsn | None
    max_lsn: Lsn | None
    bytes: int
    transaction: TransactionEnd | None = None

    @property
    def last_lsn(self) -> Lsn | None:
        """Commit LSN of its newest change, once known."""
        return self.transaction.commit_lsn if self.transaction else self.max_lsn

    @property
    def first_lsn(self) -> Lsn | None:
        return self.transaction.commit_lsn if self.transaction else self.min_lsn


@dataclass(frozen=True)
class SnapshotFile:
    """A Parquet file of rows: exactly the columns of the table's schema version."""

    path: str
    rows: int
    bytes: int


@dataclass(frozen=True)
class SnapshotEvent:
    """A table's rows as of `lsn`, whole.

    `taken_at` is the source's clock when it was at `lsn`; None in a log of format 1.0.
    """

    table: TableId
    lsn: Lsn
    schema_version: int
    files: tuple[SnapshotFile, ...]
    state: str = "completed"
    taken_at: datetime | None = None


@dataclass(frozen=True)
class SchemaChange:
    """A schema version that the writer uses from this commit on."""

    table: TableId
    version: int


@dataclass(frozen=True)
class CommitDraft:
    """What is to become a commit: it reaches `to_lsn` from where the log stands.

    `commit_ts` is the newest commit time of the source's transactions in it; `stopped` names tables
    that the log follows no further, with the reason. None for `to_lsn` means: no further than now.
    """

    to_lsn: Lsn | None
    commit_ts: datetime | None = None
    files: Sequence[LogFile] = ()
    snapshots: Sequence[SnapshotEvent] = ()
    stopped: Sequence[tuple[TableId, str]] = ()


@dataclass(frozen=True)
class Manifest:
    """A commit of the change log: the source's transactions with `from_lsn` < LSN <= `to_lsn`.

    `writer` tells the writers of one log apart. `settled`: each data file that was begun under a
    commit number up to this one is named by a manifest up to here, or is gone; so a sweep needs to
    look at newer ones only. `written_at` is by the writer's clock and times retention.
    """

    commit: int
    log_id: str
    writer: str
    settled: int
    from_lsn: Lsn
    to_lsn: Lsn
    commit_ts: datetime | None
    written_at: datetime
    files: tuple[LogFile, ...] = ()
    schemas: tuple[SchemaChange, ...] = ()
    snapshots: tuple[SnapshotEvent, ...] = ()
    stopped: tuple[tuple[TableId, str], ...] = ()

    @property
    def truncates(self) -> tuple[TableId, ...]:
        """Tables that a transaction of this commit truncated; the files hold when exactly."""
        return tuple(dict.fromkeys(file.table for file in self.files if file.ops.get("t")))

    @property
    def paths(self) -> frozenset[str]:
        """All data files that it names."""
        chunks = (file.path for event in self.snapshots for file in event.files)
        return frozenset((*(file.path for file in self.files), *chunks))


def encode(manifest: Manifest) -> bytes:
    """A manifest as JSON."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "commit": manifest.commit,
        "log_id": manifest.log_id,
        "writer": manifest.writer,
        "settled": manifest.settled,
        "from_lsn": str(manifest.from_lsn),
        "to_lsn": str(manifest.to_lsn),
        "commit_ts": _time(manifest.commit_ts),
        "written_at": _time(manifest.written_at),
        "files": [_encode_file(file) for file in manifest.files],
        "schemas": [{**_encode_table(s.table), "version": s.version} for s in manifest.schemas],
        "snapshots": [_encode_snapshot(event) for event in manifest.snapshots],
        "stopped": [{**_encode_table(table), "reason": why} for table, why in manifest.stopped],
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def decode(data: bytes, where: str) -> Manifest:
    """Read a manifest; `where` names it in errors.

    Raises:
        LogCorruptError: it is not a manifest, or part of one.
        LogError: it is of a newer format than this version reads.
    """
    return parse_document(data, where, _decode)


def parse_document(data: bytes, where: str, build: Callable[[dict[str, Any]], T]) -> T:
    """Read one of the log's JSON documents, after a check of its format's version."""
    try:
        content = json.loads(data)
        major = int(str(content.get("format", FORMAT)).partition(".")[0])
        if major <= int(FORMAT.partition(".")[0]):
            return build(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LogCorruptError(
            f"{where} is damaged: {error!r}",
            hint="restore it from a backup, or move the log away and resync: headrace resync",
            path=where,
        ) from error
    raise LogError(
        f"{where} has format {content['format']}; this version reads up to {FORMAT}",
        hint="upgrade Headrace: pip install -U headrace",
        path=where,
    )


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="microseconds")


def _parse_time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _required_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _encode_table(table: TableId) -> dict[str, Any]:
    return {"schema": table.schema, "table": table.name}


def _decode_table(data: Mapping[str, Any]) -> TableId:
    return TableId(data["schema"], data["table"])


def _encode_file(file: LogFile) -> dict[str, Any]:
    end = file.transaction
    known = {
        **_encode_table(file.table),
        "path": file.path,
        "schema_version": file.schema_version,
        "rows": file.rows,
        "ops": dict(file.ops),
        "bytes": file.bytes,
    }
    if end is None:
        return {**known, "min_lsn": str(file.min_lsn), "max_lsn": str(file.max_lsn)}
    transaction = {"lsn": str(end.commit_lsn), "ts": _time(end.commit_ts), "xid": end.xid}
    return {**known, "transaction": transaction}


def _decode_file(data: Mapping[str, Any]) -> LogFile:
    end = data.get("transaction")
    return LogFile(
        path=data["path"],
        table=_decode_table(data),
        schema_version=data["schema_version"],
        rows=data["rows"],
        ops=data["ops"],
        min_lsn=None if end else Lsn.parse(data["min_lsn"]),
        max_lsn=None if end else Lsn.parse(data["max_lsn"]),
        bytes=data["bytes"],
        transaction=end
        and TransactionEnd(Lsn.parse(end["lsn"]), _required_time(end["ts"]), end["xid"]),
    )


def _encode_snapshot(event: SnapshotEvent) -> dict[str, Any]:
    return {
        **_encode_table(event.table),
        "state": event.state,
        "lsn": str(event.lsn),
        "schema_version": event.schema_version,
        "taken_at": _time(event.taken_at),
        "files": [{"path": f.path, "rows": f.rows, "bytes": f.bytes} for f in event.files],
    }


def _decode_snapshot(data: Mapping[str, Any]) -> SnapshotEvent:
    files = tuple(SnapshotFile(f["path"], f["rows"], f["bytes"]) for f in data["files"])
    return SnapshotEvent(
        table=_decode_table(data),
        lsn=Lsn.parse(data["lsn"]),
        schema_version=data["schema_version"],
        files=files,
        state=data["state"],
        taken_at=_parse_time(data.get("taken_at")),
    )


def _decode(data: Mapping[str, Any]) -> Manifest:
    return Manifest(
        commit=data["commit"],
        log_id=data["log_id"],
        writer=data["writer"],
        settled=data["settled"],
        from_lsn=Lsn.parse(data["from_lsn"]),
        to_lsn=Lsn.parse(data["to_lsn"]),
        commit_ts=_parse_time(data["commit_ts"]),
        written_at=_required_time(data["written_at"]),
        files=tuple(_decode_file(file) for file in data["files"]),
        schemas=tuple(SchemaChange(_decode_table(s), s["version"]) for s in data["schemas"]),
        snapshots=tuple(_decode_snapshot(event) for event in data["snapshots"]),
        stopped=tuple((_decode_table(s), s["reason"]) for s in data["stopped"]),
    )
