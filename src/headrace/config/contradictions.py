"""What the entries of one table, refined, say against each other; pure.

Judged are tables between Delta and Postgres, either way: for others the keys in question are
refused as such.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from headrace.config.entries import ColumnSelection, MaskRule, TableEntry
from headrace.config.problems import did_you_mean
from headrace.config.refining import ONE_ROW_PER_KEY
from headrace.model.delivery import DELETED_AT
from headrace.model.feed import FEED_COLUMNS

# Masks that make different keys alike.
_BLURRING: Final = "which would make rows of different keys one"


@dataclass(frozen=True)
class Contradiction:
    """`keys` lead from the entry to what is wrong, as in the file."""

    keys: tuple[str, ...]
    what: str
    hint: str


def contradictions_in_lake(entry: TableEntry) -> Iterator[Contradiction]:
    """What a table from Postgres cannot be in Delta."""
    mode = entry.mode or "scd1"
    if entry.track is not None and mode != "scd2":
        what = f"track has no meaning with mode {mode}, which makes no versions"
        yield Contradiction(("track",), what, "remove track, or set mode: scd2")
    if entry.on_delete is not None and mode != "scd1":
        what = f"on_delete has no meaning with mode {mode}, which keeps what was deleted"
        yield Contradiction(("on_delete",), what, "remove on_delete, or set mode: scd1")
    if entry.key is not None and mode == "append":
        what = "key has no meaning with mode append, which keeps every change as a row"
        yield Contradiction(("key",), what, "remove key, or set mode: scd1")


def contradictions(entry: TableEntry) -> Iterator[Contradiction]:
    """Everything about a table from Delta that cannot be done, or would lose rows."""
    columns = entry.columns or ColumnSelection()
    if entry.mode == "append":
        yield from _of_append(entry)
    elif entry.key is None:
        what = f"{entry.source} needs a key: a Delta table declares none"
        hint = "add key: [id] with the columns that identify a row, or mode: append"
        yield Contradiction((), what, hint)
    yield from _of_key(entry, columns)
    yield from _of_names(entry, columns)


def _of_append(entry: TableEntry) -> Iterator[Contradiction]:
    for name in ONE_ROW_PER_KEY:
        if getattr(entry, name) is not None:
            what = f"{name} has no meaning with mode append, which keeps every change as a row"
            yield Contradiction((name,), what, f"remove {name}, or set mode: scd1")


def _of_key(entry: TableEntry, columns: ColumnSelection) -> Iterator[Contradiction]:
    for column in entry.key or ():
        chosen = columns.include is None or column in columns.include
        if not chosen or column in (columns.exclude or ()):
            which = "include" if columns.include is not None else "exclude"
            what = f"{column} is part of the key, but columns leave it out"
            yield Contradiction(("columns", which), what, f"let {column} in, or choose another key")
        mask = (entry.mask or {}).get(column)
        if mask in ("redact", "null") or (isinstance(mask, MaskRule) and mask.truncate):
            what = f"{column} is part of the key, and the mask shortens it, {_BLURRING}"
            yield Contradiction(("mask", column), what, 'mask it by sha256 or {hmac: "${KEY}"}')


def _of_names(entry: TableEntry, columns: ColumnSelection) -> Iterator[Contradiction]:
    """Column names at the destination, as far as the file tells them."""
    rename = columns.rename or {}
    kept = [name for name in columns.include or () if name not in rename]
    for name, times in Counter([*rename.values(), *kept]).items():
        if times > 1:
            yield Contradiction(
                ("columns", "rename"), f"{times} columns would be {name}", "rename one of them"
            )
        if name in _own_columns(entry):
            what = f"{name} is a column that Headrace adds to {entry.source}"
            yield Contradiction(("columns", "rename"), what, f"give the column {name} another name")
    yield from _of_types(columns, rename, kept)


def _own_columns(entry: TableEntry) -> tuple[str, ...]:
    if entry.mode == "append":
        return tuple(field.name for field in FEED_COLUMNS)
    return (DELETED_AT,) if entry.on_delete == "mark" else ()


def _of_types(
    columns: ColumnSelection, rename: dict[str, str], kept: list[str]
) -> Iterator[Contradiction]:
    known = {*rename.values(), *kept}
    for name in columns.types or ():
        if name in known:
            continue
        if name in rename:
            what = f"{name} is called {rename[name]} at the destination"
            yield Contradiction(("columns", "types", name), what, f"write {rename[name]}:")
        elif columns.include is not None or name in (columns.exclude or ()):
            what = f"{name} does not reach the destination"
            yield Contradiction(("columns", "types", name), what, did_you_mean(name, known))
