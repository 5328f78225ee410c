"""A Postgres table against the version of its Delta table that it stands at.

The source is read pinned at the checkpoint's version and goes through the rules that its changes
go through (`where`, `expect`, masks); the destination is read as of one moment, with its checkpoint
and its quarantine. So both ends may move on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa

from headrace.connectors.delta.source import DeltaSourceTable
from headrace.connectors.postgres.reading import Reading
from headrace.connectors.postgres.replaceable_table import ReplaceableTable
from headrace.engine.compare import ReadRows
from headrace.engine.pinned import pinned_rows
from headrace.engine.sync_table import transform_of
from headrace.errors import HeadraceError, VerificationImpossibleError
from headrace.model import Checkpoint, Delivery, Mode, RowRules, TableSchema, TableVersion
from headrace.model.feed import tables
from headrace.verify.appended import appended_rows
from headrace.verify.held import compare_held
from headrace.verify.outcome import TableVerification

# Rows that the rules refuse are kept in memory until all are read. A run stops at the table's
# budget; here they are only compared with what is parked.
REFUSED_ROWS: Final = 1_000_000

_UNTOLD: Final = datetime.fromtimestamp(0, UTC)  # nothing of it reaches the rows


@dataclass(frozen=True)
class SyncedPair:
    """One table of a pipeline at both ends, and how its rows get from one to the other."""

    pipeline: str
    source: DeltaSourceTable
    destination: ReplaceableTable
    rules: RowRules
    delivery: Delivery
    mode: Mode


def verify_synced(pair: SyncedPair) -> TableVerification:
    """Compare one table; whatever keeps it from being compared is its `problem`."""
    unknown = TableVerification(pair.pipeline, pair.source.name, None, 0, 0, 0)
    try:
        with pair.destination.reading() as reading:
            return _compared(pair, reading, unknown)
    except VerificationImpossibleError as error:
        return replace(unknown, problem=error)
    except HeadraceError as error:
        return replace(unknown, problem=_impossible(pair, error.message, error.hint))


def _compared(pair: SyncedPair, reading: Reading, unknown: TableVerification) -> TableVerification:
    at = _standing(pair, reading)
    schema, wanted = _wanted(pair, reading, at)
    found = compare_held(reading, schema, wanted, pair.delivery)
    return replace(
        unknown,
        rows=found.rows,
        missing=found.missing,
        extra=found.extra,
        samples=found.samples,
        version=at.commit,
        quarantined=found.quarantined,
    )


def _standing(pair: SyncedPair, reading: Reading) -> Checkpoint:
    """The version that the table stands at.

    Raises:
        VerificationImpossibleError: there is nothing that it should equal.
    """
    record = reading.record
    if record is None or record.at is None or record.pipeline != pair.pipeline:
        raise _impossible(pair, "it never took anything of this pipeline", "headrace run")
    if record.held:
        raise _impossible(pair, record.held, f"headrace resync {pair.destination.name}")
    log_id = pair.source.header(record.at.commit).log_id
    if log_id != record.at.log_id:
        why = f"it holds rows of the Delta table {record.at.log_id}, which {log_id} has replaced"
        raise _impossible(pair, why, "headrace run")
    return record.at


def _wanted(pair: SyncedPair, reading: Reading, at: Checkpoint) -> tuple[TableSchema, ReadRows]:
    """What the table must hold, as its schema there has it."""
    if pair.mode is Mode.APPEND:
        assert reading.record is not None
        loaded = reading.record.loaded
        return appended_rows(pair.source, pair.destination.name, pair.rules, loaded, at)
    schema = replace(pair.source.schema(at.commit), table=pair.destination.name)
    transform = transform_of(schema, pair.rules, pair.mode, REFUSED_ROWS)
    parts, refused = pinned_rows(
        schema,
        pair.source.rows(at.commit),
        TableVersion(at.log_id, at.commit, _UNTOLD),
        transform,
        newest_by=pair.rules.newest_by,
        quarantine_rows=REFUSED_ROWS,
    )

    def read() -> Iterator[pa.Table]:
        """Refused rows too: they are to be in the quarantine, unless somebody dropped them."""
        yield from tables(parts)
        yield from (rejected.rows for rejected in refused())

    return transform.schema, read


def _impossible(pair: SyncedPair, why: str, hint: str) -> VerificationImpossibleError:
    name = str(pair.destination.name)
    told = why if name in why or str(pair.source.name) in why else f"{name}: {why}"
    return VerificationImpossibleError(f"not compared: {told}", hint=hint, table=name)
