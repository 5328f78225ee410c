"""Which versions of a pipeline's tables stand at one LSN of their source, for them to be joined.

Each table's own log tells which LSN a version holds; what a run records beside its change log tells
of tables that did not change how far they are known not to have. Without that record (another
machine, a lost state folder) a table is known only up to its last commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace import assembly
from headrace.config import Settings, targets
from headrace.config.connections import DeltaConnection
from headrace.connectors.delta.destination import DeltaDestination
from headrace.connectors.delta.timeline import Timeline
from headrace.errors import ConfigError, NoVersionError
from headrace.model import Lsn, Reached, TableId


@dataclass(frozen=True)
class TableMoment:
    """One table; `version` holds what the source held at the moment's LSN.

    `lsn` is the one that the version came with, `reached` how far the table is by now.
    """

    table: TableId
    version: int
    lsn: Lsn
    reached: Lsn


@dataclass(frozen=True)
class Moment:
    """The tables of a pipeline as they stood together at `lsn` of their source."""

    pipeline: str
    lsn: Lsn
    tables: tuple[TableMoment, ...]


def has_versions(settings: Settings, pipeline: str) -> bool:
    """Whether a pipeline's tables can be read as they were."""
    return isinstance(settings.destination(pipeline), DeltaConnection)


def moment(settings: Settings, pipeline: str, at: Lsn | None = None) -> Moment | None:
    """The newest LSN, not after `at`, that every loaded table has a version of; None before a load.

    Raises:
        NoVersionError: there is none, as far back as the tables' logs tell.
    """
    place = _lake(settings, pipeline)
    positions = _positions(settings)  # before the tables are looked at: they go on meanwhile
    carried = positions.tables(pipeline)
    timelines = [
        timeline
        for timeline in (
            place.timeline(name, positions)
            for name in _candidates(settings, pipeline, place, carried)
        )
        if timeline and timeline.pipeline == pipeline
        if carried is None or timeline.source in carried
    ]
    if not timelines:
        return None
    lsn = min(timeline.reached for timeline in timelines)
    lsn = common(timelines, lsn if at is None else min(lsn, at))
    tables = (
        TableMoment(t.name, t.version_at(lsn), t.span(lsn).first, t.reached) for t in timelines
    )
    return Moment(pipeline, lsn, tuple(tables))


def _candidates(
    settings: Settings, pipeline: str, place: DeltaDestination, carried: frozenset[str] | None
) -> Sequence[TableId]:
    """The tables that may be the pipeline's: a catalog has others' too, and lends credentials for
    each that is looked at, or refuses them."""
    names = place.tables()
    if place.catalog is None or carried is None:
        return names
    mine = targets(settings, pipeline, [TableId.parse(source) for source in carried])
    return [name for name in names if name in mine]


def common(timelines: Sequence[Timeline], lsn: Lsn) -> Lsn:
    """The newest LSN up to `lsn` at which each table has a version.

    Raises:
        NoVersionError: there is none, as far back as the tables' logs tell.
    """
    while True:
        lower = min([lsn, *(timeline.span(lsn).last for timeline in timelines)])
        if lower == lsn:
            return lsn
        lsn = lower


def query(settings: Settings, pipeline: str, sql: str, lsn: Lsn) -> pa.Table:
    """SQL over tables as they stood at one LSN of their source; `pipeline` leads to their place.

    Raises:
        NoVersionError: a table has no version that stands there.
        DestinationError: the query is wrong, or a table cannot be read.
    """
    positions = _positions(settings)
    place = _lake(settings, pipeline)
    logs: dict[str, TableId] = {}

    def version_at(name: TableId) -> int:
        timeline = place.timeline(name, positions)
        if timeline is None or timeline.log_id is None:
            raise NoVersionError(
                f"{name} is no table that Headrace brought from a source with LSNs",
                hint="join it with a query of today's tables, without an LSN",
                table=str(name),
            )
        logs.setdefault(timeline.log_id, name)
        if len(logs) > 1:
            raise NoVersionError(
                f"{' and '.join(map(str, logs.values()))} come from different change logs: an LSN "
                "of the one says nothing of the other",
                hint="query the tables of one source at a time",
                table=str(name),
            )
        return timeline.version_at(lsn)

    return place.query(sql, version_at)


def _lake(settings: Settings, pipeline: str) -> DeltaDestination:
    place = assembly.destination(settings, pipeline)
    if not isinstance(place, DeltaDestination):
        raise ConfigError(
            f"the tables of {pipeline} have no versions: its destination is no Delta location",
            hint="in Postgres a transaction of isolation repeatable read sees one moment",
        )
    return place


@dataclass(frozen=True)
class _Positions:
    """What every pipeline noted last of how far its tables are the source's."""

    noted: Mapping[str, Mapping[str, Any]]  # by pipeline

    def tables(self, pipeline: str) -> frozenset[str] | None:
        """The source tables that its last run carried; None if nothing is noted of it."""
        known = self.noted.get(pipeline)
        return None if known is None else frozenset(known["tables"])

    def __call__(self, pipeline: str, table: str) -> Reached | None:
        record = self.noted.get(pipeline, {})
        known = record.get("tables", {}).get(table, {})
        if known.get("applied") is None or known.get("reached") is None:
            return None
        return Reached(record["log_id"], known["applied"], Lsn.parse(known["reached"]))


def _positions(settings: Settings) -> _Positions:
    return _Positions(dict(_noted(settings)))


def _noted(settings: Settings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for capture in settings.captures():
        reader = assembly.open_reader(settings, capture)
        for pipeline in capture.pipelines if reader else ():
            noted = reader.position(pipeline) if reader else None
            if noted is not None:
                yield pipeline, noted
