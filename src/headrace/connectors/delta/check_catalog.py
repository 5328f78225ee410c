"""What a Unity Catalog lets us do with the tables that a pipeline is to write there.

Looked at before a run: nothing is registered, and what is written to try a store is taken away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.connectors.delta.registered import Registered
from headrace.connectors.delta.unity import Registration
from headrace.errors import DestinationUnavailableError, HeadraceError
from headrace.log.storage import check_put_if_absent
from headrace.model import TableId
from headrace.model.finding import Finding, Severity

_SCHEMA: Final = "catalog-schema"
_TABLE: Final = "catalog-table"
_COMMITS: Final = "destination-commits"


@dataclass(frozen=True)
class CatalogCheck:
    """What was found of the catalog, and of each table by its name there."""

    place: Sequence[Finding]
    tables: Mapping[TableId, Sequence[Finding]]


def check_catalog(lake: Registered, names: Sequence[TableId]) -> CatalogCheck:
    """Whether the schemas are there, and the tables are or can be.

    Raises:
        DestinationUnavailableError: the catalog does not answer for now.
    """
    found = [_of_schema(lake, schema) for schema in sorted({name.schema for name in names})]
    if any(finding.severity is Severity.BLOCKER for finding in found):
        return CatalogCheck(found, dict.fromkeys(names, ()))
    tables: dict[TableId, Finding] = {}
    standing: list[TableId] = []
    for name in names:
        try:
            known = lake.registration(name)
            tables[name] = _table(lake, name, known)
        except HeadraceError as error:
            tables[name] = _blocker(_TABLE, error, lake.catalog.full_name(name))
        else:
            standing += [name] if known else []
    told = {name: (finding,) for name, finding in tables.items()}
    return CatalogCheck([*found, *_of_store(lake, standing)], told)


def _of_schema(lake: Registered, schema: str) -> Finding:
    full = f"{lake.catalog.name}.{schema}"
    try:
        lake.require_schema(schema)
    except HeadraceError as error:
        return _blocker(_SCHEMA, error, full)
    return Finding(Severity.OK, _SCHEMA, f"Unity Catalog has the schema {full}", (full,))


def _table(lake: Registered, name: TableId, known: Registration | None) -> Finding:
    full = lake.catalog.full_name(name)
    told = f"{full} lies at {known.url}" if known else ""
    told = told or f"{full} will be registered as an external table at {lake.url_of_new(name)}"
    return Finding(Severity.OK, _TABLE, told, (full,))


def _of_store(lake: Registered, standing: Sequence[TableId]) -> Iterator[Finding]:
    """Whether the credentials that are lent are good for commits, tried with the first table."""
    if not standing:
        what = "not tried yet whether only one writer can make a commit: the catalog lends "
        what += "credentials for tables that it has; the first copy tries it"
        yield Finding(Severity.WARNING, _COMMITS, what, (lake.catalog.name,))
        return
    full = lake.catalog.full_name(standing[0])
    try:
        check_put_if_absent(lake.writing(standing[0]).storage)
    except HeadraceError as error:
        yield _blocker(_COMMITS, error, full)
    else:
        yield Finding(Severity.OK, _COMMITS, "only one writer can make a commit", (full,))


def _blocker(name: str, error: HeadraceError, full: str) -> Finding:
    """What time may cure is raised instead: it is no reason not to begin."""
    if error.transient:
        raise DestinationUnavailableError(error.message, hint=error.hint) from error
    return Finding(Severity.BLOCKER, name, error.message, (full,), fix=error.hint)
