"""The quarantines of a project's Postgres destinations: looked at, tried again, emptied.

Tables are named as they are at the destination. A row's number is unique at its destination only,
so that a pipeline must be named where several destinations have one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from headrace import assembly
from headrace.config import Settings
from headrace.config.connections import PostgresConnection
from headrace.connectors.postgres.destination import PostgresDestination
from headrace.connectors.postgres.parked import ParkedRow
from headrace.connectors.postgres.replay import Replayed
from headrace.errors import ConfigError, HeadraceError
from headrace.model import TableId


def parked(
    settings: Settings,
    *,
    ids: Sequence[int] = (),
    table: TableId | None = None,
    pipeline: str | None = None,
) -> list[ParkedRow]:
    """Parked rows by pipeline and table, oldest first; without `ids` all of them.

    Raises:
        HeadraceError: several pipelines' destinations have a row of a number.
    """
    places = list(_places(settings, pipeline))
    found = [
        row
        for name, place in places
        for row in place.parked(ids=ids or None, table=table, pipeline=name)
    ]
    if ids and len({row.id for row in found}) < len(found):
        raise HeadraceError(
            "several pipelines have parked rows of these numbers",
            hint="name one: --pipeline " + " or ".join(sorted({row.pipeline for row in found})),
        )
    return found


def row(settings: Settings, number: int, pipeline: str | None = None) -> ParkedRow:
    """One parked row. Raises HeadraceError if there is none."""
    found = parked(settings, ids=[number], pipeline=pipeline)
    if not found:
        raise HeadraceError(
            f"no row in quarantine has the number {number}", hint="headrace quarantine list"
        )
    return found[0]


def retry(
    settings: Settings,
    ids: Sequence[int] = (),
    table: TableId | None = None,
    pipeline: str | None = None,
) -> Replayed:
    """Apply parked rows again; those that pass leave the quarantine."""
    rows = _asked_for(settings, ids, table, pipeline)
    applied, left = 0, {}
    for name, place in _places(settings, pipeline):
        delivery = {t.target: t.delivery for t in assembly.selected(settings, name)}
        mine = [row for row in rows if row.pipeline == name]
        for parked_table in dict.fromkeys(row.table for row in mine):
            if parked_table not in delivery:
                raise ConfigError(
                    f"the pipeline {name} no longer carries {parked_table}",
                    hint=f"headrace quarantine drop --table {parked_table}",
                )
            chosen = [row.id for row in mine if row.table == parked_table]
            done = place.table(parked_table, name, delivery[parked_table]).retry(chosen)
            applied += done.applied
            left.update(done.left)
    return Replayed(applied, left)


def drop(
    settings: Settings,
    ids: Sequence[int] = (),
    table: TableId | None = None,
    pipeline: str | None = None,
) -> int:
    """Forget parked rows for good; returns how many."""
    rows = _asked_for(settings, ids, table, pipeline)
    return sum(
        place.forget_parked([row.id for row in rows if row.pipeline == name])
        for name, place in _places(settings, pipeline)
    )


def _asked_for(
    settings: Settings, ids: Sequence[int], table: TableId | None, pipeline: str | None
) -> list[ParkedRow]:
    """The rows that were named; each number must be there."""
    rows = parked(settings, ids=ids, table=table, pipeline=pipeline)
    missing = sorted(set(ids) - {row.id for row in rows})
    if missing:
        raise HeadraceError(
            f"no row in quarantine has the number {', '.join(map(str, missing))}",
            hint="headrace quarantine list",
        )
    return rows


def _places(settings: Settings, pipeline: str | None) -> Iterator[tuple[str, PostgresDestination]]:
    """The pipelines that write to Postgres, each with its destination."""
    for name in settings.pipelines if pipeline is None else [pipeline]:
        connection = settings.destination(name)
        if isinstance(connection, PostgresConnection):
            with closing(PostgresDestination(connection)) as place:
                yield name, place
