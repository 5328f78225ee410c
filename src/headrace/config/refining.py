"""What the entries that match a table come to, and what that asks of destination and rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from headrace.config.entries import ColumnSelection, MaskForm, MaskRule, TableEntry
from headrace.config.settings import AutoRefresh, Pipeline
from headrace.model.delivery import Delivery, OnDelete, SchemaPolicy
from headrace.model.lake import ChangeFeed, TableFormat
from headrace.model.refresh import RefreshCause, RefreshPolicy, Window
from headrace.model.rules import Expectation, Mask, MaskKind, OnBreach, RowRules
from headrace.model.shape import Metadata, Mode, Shape

# What only `mode: scd1` has a use for: the others keep every change, or every version, as a row.
ONE_ROW_PER_KEY: Final = ("on_delete", "newest_by")


def merged(before: TableEntry, after: TableEntry) -> TableEntry:
    """`before`, refined by a later entry: its values replace, what has keys is merged key by key.

    An entry that turns to `append` or `scd2` leaves behind what only one row per key has.
    """
    given = {name: getattr(after, name) for name in after.model_fields_set - {"source"}}
    if after.mode in ("append", "scd2"):
        given = {**dict.fromkeys(ONE_ROW_PER_KEY), **given}
    for name in ("mask", "expect"):
        given[name] = _joined(getattr(before, name), getattr(after, name))
    given["columns"] = _columns(before.columns, after.columns)
    return before.model_copy(update=given)


def _joined(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any] | None:
    return {**(before or {}), **(after or {})} or None


def _columns(
    before: ColumnSelection | None, after: ColumnSelection | None
) -> ColumnSelection | None:
    """Both; `include` and `exclude` replace each other."""
    if before is None or after is None:
        return after or before
    chosen = before if after.include is None and after.exclude is None else after
    return ColumnSelection.model_construct(
        include=chosen.include,
        exclude=chosen.exclude,
        rename=_joined(before.rename, after.rename),
        types=_joined(before.types, after.types),
        read_as=_joined(before.read_as, after.read_as),
    )


def delivery_of(pipeline: Pipeline, entry: TableEntry, *, native_types: bool) -> Delivery:
    """How a table is to be kept at the destination.

    A stream of changes tells what was added, but not what became of the rows that stand; a table
    that is built anew has the columns that its source has then.
    """
    return Delivery(
        on_delete=OnDelete(entry.on_delete or "delete"),
        types=(entry.columns and entry.columns.types) or {},
        native_types=native_types,
        rebuild_above=pipeline.rebuild_above,
        quarantine_rows=pipeline.quarantine.max_rows,
        take_over=bool(entry.take_over),
        schema_policy=(
            SchemaPolicy.EXTEND if native_types else SchemaPolicy(pipeline.schema_policy)
        ),
        drop_columns=native_types or pipeline.drop_columns,
    )


def shape_of(entry: TableEntry, *, keeps_deleted: bool) -> Shape:
    """What the table at the destination shows of its source; deleted rows, where it is not the
    destination that keeps them by itself."""
    metadata = tuple(Metadata(word) for word in entry.metadata or ())
    on_delete = OnDelete(entry.on_delete or "delete") if keeps_deleted else OnDelete.DELETE
    return Shape(Mode(entry.mode or "scd1"), metadata, entry.track or (), on_delete)


def format_of(pipeline: Pipeline, entry: TableEntry) -> TableFormat:
    """How a Delta table is to be laid out and written."""
    return TableFormat(
        deletion_vectors=pipeline.deletion_vectors,
        change_feed=ChangeFeed(pipeline.change_data_feed),
        cluster_by=entry.cluster_by or (),
        partition_by=entry.partition_by or (),
        index_memory=pipeline.index_memory,
    )


def refresh_policy(given: AutoRefresh | None) -> RefreshPolicy | None:
    """When a table is copied anew by itself; None: never."""
    if given is None:
        return None
    return RefreshPolicy(
        on=frozenset(RefreshCause(word) for word in given.on),
        min_interval=timedelta(seconds=given.min_interval),
        window=None if given.window is None else Window.parse(given.window),
    )


def rules_of(entry: TableEntry) -> RowRules:
    """What is done to each row on its way."""
    columns = entry.columns or ColumnSelection()
    return RowRules(
        include=columns.include,
        exclude=columns.exclude or (),
        rename=columns.rename or {},
        masks={column: _mask(form) for column, form in (entry.mask or {}).items()},
        where=entry.where,
        expectations=tuple(
            Expectation(name, rule.sql, OnBreach(rule.on_breach))
            for name, rule in (entry.expect or {}).items()
        ),
        newest_by=entry.newest_by,
    )


def _mask(form: MaskForm) -> Mask:
    if not isinstance(form, MaskRule):
        return Mask(MaskKind(form))
    if form.hmac is not None:
        return Mask(MaskKind.HMAC, key=form.hmac.get_secret_value())
    return Mask(MaskKind.TRUNCATE, length=form.truncate or 0)
