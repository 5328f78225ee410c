"""Which tables a pipeline carries: its entries, globs included, against what the source has."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

from headrace.config.connections import DeltaConnection
from headrace.config.contradictions import (
    Contradiction,
    contradictions,
    contradictions_in_lake,
)
from headrace.config.entries import TableEntry
from headrace.config.problems import KeyPath, Problem, config_error
from headrace.config.refining import delivery_of, format_of, merged, rules_of, shape_of
from headrace.config.routes import Route
from headrace.config.settings import Settings
from headrace.model import Delivery, RowRules, Shape, TableFormat, TableId


@dataclass(frozen=True)
class SelectedTable:
    """A table of the source, its place at the destination, its key if the file names one, and how
    its rows get there. Columns of the key and of `read_as`, which says how their values are to be
    read where their own types do not hold them, are the source's."""

    source: TableId
    target: TableId
    key: tuple[str, ...] | None = None
    shape: Shape = field(default_factory=Shape)
    format: TableFormat = field(default_factory=TableFormat)
    delivery: Delivery = field(default_factory=Delivery)
    rules: RowRules = field(default_factory=RowRules)
    read_as: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refined:
    """What the file says of one table: all its entries as one, and their numbers."""

    entry: TableEntry
    numbers: tuple[int, ...]

    def add(self, number: int, entry: TableEntry) -> Refined:
        return Refined(merged(self.entry, entry), (*self.numbers, number))


def select_tables(
    settings: Settings, pipeline: str, found: Collection[TableId]
) -> list[SelectedTable]:
    """The pipeline's tables among those `found` at the source, by name; later entries refine.

    A glob that only excludes may match nothing.

    Raises:
        ConfigError: an entry matches nothing, two tables would share one place, or what the entries
            of one table come to contradicts itself.
    """
    entries = settings.pipelines[pipeline].tables
    problems = [
        _matches_nothing(settings, pipeline, number, found)
        for number, entry in enumerate(entries)
        if not (entry.exclude and entry.is_glob) and not any(_matches(entry, t) for t in found)
    ]
    refined = _refine(entries, found)
    selected = {t: _selected(settings, pipeline, t, refined[t].entry) for t in sorted(refined)}
    problems += _shared_places(settings, pipeline, selected)
    problems += _torn(settings, pipeline)
    problems += _contradictory(settings, pipeline, refined)
    if problems:
        raise config_error(settings.origin.file, problems)
    return list(selected.values())


def named_tables(settings: Settings, pipeline: str) -> list[TableId]:
    """The tables that the pipeline takes in by their names, and not by a glob."""
    entries = settings.pipelines[pipeline].tables
    return [TableId.parse(e.source) for e in entries if not (e.is_glob or e.exclude)]


def targets(settings: Settings, pipeline: str, sources: Collection[TableId]) -> set[TableId]:
    """Where the pipeline carries those of the tables `sources` that it selects."""
    refined = _refine(settings.pipelines[pipeline].tables, sources)
    return {_selected(settings, pipeline, t, refined[t].entry).target for t in refined}


def contradictory(settings: Settings) -> Iterator[Problem]:
    """What contradicts itself about tables that have an entry by name: no source need be asked."""
    for pipeline in settings.pipelines:
        entries = settings.pipelines[pipeline].tables
        named = [TableId.parse(entry.source) for entry in entries if not entry.is_glob]
        yield from _contradictory(settings, pipeline, _refine(entries, named))
        yield from _torn(settings, pipeline)


def _torn(settings: Settings, pipeline: str) -> Iterator[Problem]:
    """Tables that are to be in two places: the later entry would silently take the earlier's."""
    places: dict[str, str] = {}
    for number, entry in enumerate(settings.pipelines[pipeline].tables):
        place = entry.name
        if place and not entry.is_glob and places.setdefault(entry.source, place) != place:
            what = f"{entry.source} would be both {places[entry.source]} and {place}"
            hint = "a pipeline carries a table to one place: give the other a pipeline of its own"
            path = ("pipelines", pipeline, "tables", number)
            yield settings.origin.problem(path, what, hint)


def _contradictory(
    settings: Settings, pipeline: str, refined: Mapping[TableId, Refined]
) -> Iterator[Problem]:
    judge = _JUDGES.get(settings.route(pipeline), _nothing)
    for table in refined.values():
        for found in judge(table.entry):
            paths: list[KeyPath] = [
                ("pipelines", pipeline, "tables", number, *found.keys) for number in table.numbers
            ]
            saying = [path for path in paths if settings.origin.holds(path)]
            yield settings.origin.problem([*paths, *saying][-1], found.what, found.hint)


def _nothing(_: TableEntry) -> Iterator[Contradiction]:
    return iter(())


_JUDGES: Final[Mapping[Route | None, Callable[[TableEntry], Iterator[Contradiction]]]] = {
    Route.SYNC: contradictions,
    Route.CAPTURE: contradictions_in_lake,
}


def _matches(entry: TableEntry, table: TableId) -> bool:
    """Schema by schema and name by name: no wildcard reaches across the dot."""
    if entry.source == str(table):  # also a name that holds * ? or [
        return True
    schema, _, name = entry.source.partition(".")
    return entry.is_glob and fnmatchcase(table.schema, schema) and fnmatchcase(table.name, name)


def _refine(entries: Sequence[TableEntry], found: Collection[TableId]) -> dict[TableId, Refined]:
    """What the entries come to for each table that they select."""
    refined: dict[TableId, Refined] = {}
    for number, entry in enumerate(entries):
        for table in found:
            if not _matches(entry, table):
                continue
            before = refined.pop(table, Refined(TableEntry(source=str(table)), ()))
            if not entry.exclude:
                refined[table] = before.add(number, entry)
    return refined


def _selected(
    settings: Settings, pipeline: str, table: TableId, entry: TableEntry
) -> SelectedTable:
    leads = settings.route(pipeline)
    return SelectedTable(
        source=table,
        target=_target(settings, pipeline, table)
        if entry.name is None
        else TableId.parse(entry.name),
        key=entry.key,
        shape=shape_of(entry, keeps_deleted=leads is Route.CAPTURE),
        format=format_of(settings.pipelines[pipeline], entry),
        delivery=delivery_of(
            settings.pipelines[pipeline], entry, native_types=leads is Route.TRANSFER
        ),
        rules=rules_of(entry),
        read_as=(entry.columns and entry.columns.read_as) or {},
    )


def _target(settings: Settings, pipeline: str, table: TableId) -> TableId:
    """The place of a table that is given no name: its own, or the one schema that there is."""
    destination = settings.destination(pipeline)
    schema = destination.only_schema if isinstance(destination, DeltaConnection) else None
    return TableId(schema or table.schema, table.name)


def _matches_nothing(
    settings: Settings, pipeline: str, number: int, found: Collection[TableId]
) -> Problem:
    source = settings.pipelines[pipeline].tables[number].source
    pattern = source.partition(".")[2]
    elsewhere = {f"{t.schema}.{pattern}" for t in found if fnmatchcase(t.name, pattern)}
    known = sorted({str(table) for table in found} | elsewhere)
    near = get_close_matches(source, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else _where_to_look(settings, pipeline)
    path = ("pipelines", pipeline, "tables", number, "source")
    return settings.origin.problem(path, f"{source} matches no table of the source", hint)


def _where_to_look(settings: Settings, pipeline: str) -> str:
    source = settings.source(pipeline)
    if isinstance(source, DeltaConnection):
        return f"check that {source.location}/<schema>/<table>/_delta_log is there"
    return "check the schema, and that the role may see it"


def _shared_places(
    settings: Settings, pipeline: str, selected: Mapping[TableId, SelectedTable]
) -> Iterator[Problem]:
    places: dict[TableId, TableId] = {}
    for source in sorted(selected):
        target = selected[source].target
        other = places.setdefault(target, source)
        if other != source:
            what = f"{other} and {source} would both become {target}"
            path: KeyPath = ("pipelines", pipeline, "tables")
            path += _naming_entry(settings, pipeline, target)
            yield settings.origin.problem(path, what, "give one of them another name:")


def _naming_entry(settings: Settings, pipeline: str, target: TableId) -> KeyPath:
    """The last entry that sends a table to `target`; none where its name does, in one schema."""
    entries = settings.pipelines[pipeline].tables
    return tuple(n for n, entry in enumerate(entries) if entry.name == str(target))[-1:]
