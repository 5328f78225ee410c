"""Which tables a pipeline carries: its entries, globs included, against what the source has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from headrace.config.problems import Problem, config_error
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

    A glob that only excludes may match nothing.

    Raises:
        ConfigError: an entry matches nothing, or two tables would share one place.
    """
    selected: dict[TableId, SelectedTable] = {}
    problems: list[Problem] = []
    for number, entry in enumerate(settings.pipelines[pipeline].tables):
        matches = [table for table in found if _matches(entry, table)]
        if not matches and not (entry.exclude and entry.is_glob):
            problems.append(_matches_nothing(settings, pipeline, number, found))
        _refine(selected, entry, matches)
    problems += _shared_places(settings, pipeline, selected)
    if problems:
        raise config_error(settings.origin.file, problems)
    return [selected[table] for table in sorted(selected)]


def _matches(entry: TableEntry, table: TableId) -> bool:
    """Schema by schema and name by name: no wildcard reaches across the dot."""
    if entry.source == str(table):  # also a name that holds * ? or [
        return True
    schema, _, name = entry.source.partition(".")
    return entry.is_glob and fnmatchcase(table.schema, schema) and fnmatchcase(table.name, name)


def _refine(
    selected: dict[TableId, SelectedTable], entry: TableEntry, matches: Iterable[TableId]
) -> None:
    for table in matches:
        before = selected.pop(table, SelectedTable(table, table))
        if not entry.exclude:
            target = before.target if entry.name is None else TableId.parse(entry.name)
            selected[table] = replace(before, target=target, key=entry.key or before.key)


def _matches_nothing(
    settings: Settings, pipeline: str, number: int, found: Collection[TableId]
) -> Problem:
    source = settings.pipelines[pipeline].tables[number].source
    pattern = source.partition(".")[2]
    elsewhere = {f"{t.schema}.{pattern}" for t in found if fnmatchcase(t.name, pattern)}
    known = sorted({str(table) for table in found} | elsewhere)
    near = get_close_matches(source, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "check the schema, and that the role may see it"
    path = ("pipelines", pipeline, "tables", number, "source")
    return settings.origin.problem(path, f"{source} matches no table of the source", hint)


def _shared_places(
    settings: Settings, pipeline: str, selected: Mapping[TableId, SelectedTable]
) -> Iterator[Problem]:
    places: dict[TableId, TableId] = {}
    for source in sorted(selected):
        target = selected[source].target
        other = places.setdefault(target, source)
        if other != source:
            what = f"{other} and {source} would both become {target}"
            path = ("pipelines", pipeline, "tables", _naming_entry(settings, pipeline, target))
            yield settings.origin.problem(path, what, "give one of them another name:")


def _naming_entry(settings: Settings, pipeline: str, target: TableId) -> int:
    """The last entry that sends a table to `target`; there is one, since no two are born alike."""
    entries = settings.pipelines[pipeline].tables
    return max(number for number, entry in enumerate(entries) if entry.name == str(target))
