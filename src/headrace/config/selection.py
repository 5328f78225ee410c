"""Which tables a pipeline carries: its entries, globs included, against what the source has."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from headrace.config.settings import Settings, TableEntry
from headrace.model import TableId


@dataclass(frozen=True)
class SelectedTable:
    """A table of the source, its place at the destination, and its key if the file names one."""

    source: TableId
    target: TableId
    key: tuple[str, ...] | None = None


def select_tables(
    settings: Settings, pipeline: str, found: Collection[TableId]
) -> list[SelectedTable]:
    """The pipeline's tables among those `found` at the source, by name; later entries refine.

    Raises:
        ConfigError: an entry matches nothing, or two tables would share one place.
    """
    selected: dict[TableId, SelectedTable] = {}
    for number, entry in enumerate(settings.pipelines[pipeline].tables):
        matches = [table for table in sorted(found) if _matches(entry, table)]
        if not matches:
            raise _nothing(settings, pipeline, number, entry, found)
        for table in matches:
            if entry.exclude:
                selected.pop(table, None)
            else:
                selected[table] = _refined(selected.get(table, SelectedTable(table, table)), entry)
    _refuse_shared_places(settings, pipeline, list(selected.values()))
    return [selected[table] for table in sorted(selected)]


def _matches(entry: TableEntry, table: TableId) -> bool:
    return fnmatchcase(str(table), entry.source) if entry.is_glob else str(table) == entry.source


def _refined(table: SelectedTable, entry: TableEntry) -> SelectedTable:
    target = table.target if entry.name is None else TableId.parse(entry.name)
    return replace(table, target=target, key=entry.key or table.key)


def _nothing(
    settings: Settings,
    pipeline: str,
    number: int,
    entry: TableEntry,
    found: Collection[TableId],
) -> Exception:
    near = difflib.get_close_matches(entry.source, [str(t) for t in found], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "check the schema, and that the role may see it"
    return settings.origin.error(
        ("pipelines", pipeline, "tables", number, "source"),
        f"{entry.source!r} matches no table of the source",
        hint,
    )


def _refuse_shared_places(
    settings: Settings, pipeline: str, tables: Sequence[SelectedTable]
) -> None:
    places: dict[TableId, TableId] = {}
    for table in tables:
        other = places.setdefault(table.target, table.source)
        if other != table.source:
            raise settings.origin.error(
                ("pipelines", pipeline, "tables"),
                f"{other} and {table.source} would both become {table.target}",
                "give one of them another name:",
            )
