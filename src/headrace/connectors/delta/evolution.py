"""How a Delta table follows its source's columns: what is to be done, in words, and the one commit
that does it.

PROTOCOL.md has two features for this that not all readers know (column mapping and type widening);
so a column that gets another name or a wider type is written anew, file by file. A column that went
stays in the table, and is null in new rows; or it goes from the schema, and its values stay behind
in files. They must never come up again under a new column of that name: files that have them are
then written anew too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.connectors.delta import actions
from headrace.connectors.delta.actions import Action
from headrace.connectors.delta.conversion import purged
from headrace.connectors.delta.files import open_parquet
from headrace.connectors.delta.live import LiveTable
from headrace.connectors.delta.rewriting import write_anew
from headrace.connectors.delta.rows import live_rows
from headrace.connectors.delta.schema import (
    ATTNUM,
    SOURCE_TYPE,
    delta_schema,
    keeping_fields,
    protocol_for,
    with_features_of,
)
from headrace.connectors.delta.state import TableState
from headrace.connectors.delta.types import same_in_parquet, stored_schema
from headrace.errors import UnsupportedSchemaChangeError
from headrace.failpoints import hit
from headrace.log.storage import Storage
from headrace.model import BEFORE, ORDINAL, UNCHANGED, Delivery, Metadata, SchemaPolicy, TableSchema
from headrace.model.widening import carries_over, is_widening

DROPPED: Final = "headrace.dropped"  # a field's metadata: the source has this column no more

# A table property: names, in lower case, whose values files may have and the table has not.
LEFT_BEHIND: Final = "headrace.left_behind"

# Columns that the user may choose to have no longer; a change of mode is another matter.
_OWN: Final = frozenset(metadata.column for metadata in Metadata)

Field = Mapping[str, Any]  # of a schemaString


@dataclass(frozen=True)
class Column:
    """A column of the table to be: `former` is what it was called, None for one that comes with
    `constant`, or null, in the rows that stand."""

    name: str
    type: pa.DataType
    former: str | None
    constant: pa.Scalar | None = None

    def stands_in(self, physical: pa.Schema) -> bool:
        """Whether a file reads right as it is."""
        if self.constant is not None:
            return False
        alike = [name for name in physical.names if name.lower() == self.name.lower()]
        if self.former not in physical.names:
            return not alike
        kind = physical.field(self.former).type
        return self.name == self.former and _reads_as(kind, self.type)


@dataclass(frozen=True)
class Evolution:
    """What makes a table hold another schema. `sentences` tell it; files are looked at if
    `touches_files`, and their rows count as changed for readers of the table's feed unless they
    only get a wider type.
    """

    sentences: tuple[str, ...]
    columns: tuple[Column, ...]
    schema_string: str
    protocol: Mapping[str, Any]  # that it needs
    left_behind: frozenset[str]
    touches_files: bool
    changes_rows: bool


def evolution(
    state: TableState, schema: TableSchema, delivery: Delivery, *, by_snapshot: bool = False
) -> Evolution | None:
    """How the table comes to hold `schema`; None if it does. What a snapshot brings may be another
    table of the source, which numbers its columns anew.

    Raises:
        UnsupportedSchemaChangeError: it cannot, or its user does not want it to.
        DestinationError: Delta cannot hold a column's type, or such names.
    """
    wanted = _with_own_fields_kept(state, schema)
    stands, new = _fields(state.metadata["schemaString"]), _fields(delta_schema(wanted))
    old = _comparable(stands, new) if by_snapshot else stands
    formers = _formers(old, new)
    _require_carried(state, wanted, formers, old)
    lost = [name for name in old if name not in formers.values()]
    _require_ours(schema, {name: stands[name] for name in lost})
    taken = {name.lower() for name in new}
    kept = [n for n in lost if not delivery.drop_columns and n.lower() not in taken]
    fields = [*new.values(), *(_dropped(old[name]) for name in kept)]
    if fields == [*old.values()]:
        return None
    columns = _columns(wanted, formers)
    sentences = tuple(_sentences(old, new, columns, lost, kept))
    if sentences and delivery.schema_policy is not SchemaPolicy.EVOLVE:
        raise _unwanted(schema, sentences, delivery)
    stored = state.columns
    behind = _left_behind(state) | {name.lower() for name in lost if name not in kept}
    filled = any(c.constant is not None for c in columns)
    moved = any(c.former not in (None, c.name) for c in columns)
    retyped = any(c.former and c.type != stored.field(c.former).type for c in columns)
    whole = (*columns, *(Column(name, stored.field(name).type, name) for name in kept))
    _require_partitions(state, schema, whole)
    return Evolution(
        sentences,
        whole,
        json.dumps({"type": "struct", "fields": fields}, separators=(",", ":")),
        protocol_for(wanted),
        frozenset(behind - taken),
        touches_files=filled or moved or retyped or bool(behind & taken),
        changes_rows=filled or moved or bool(taken & {name.lower() for name in lost}),
    )


def _require_partitions(state: TableState, schema: TableSchema, columns: Sequence[Column]) -> None:
    """The values that name a table's partitions stand in its log, and are not written anew."""
    stands = state.columns
    for name in state.partition_by:
        if Column(name, stands.field(name).type, name) not in columns:
            raise UnsupportedSchemaChangeError(
                f"{schema.table}: the column {name}, by which the table is partitioned, was "
                "renamed or dropped, or got another type",
                hint=f"headrace resync {schema.table}",
                column=name,
                table=str(schema.table),
            )


def evolve(
    live: LiveTable, schema: TableSchema, delivery: Delivery, *, by_snapshot: bool = False
) -> None:
    """Make the table hold `schema`, in one commit; see `evolution`.

    Raises:
        UnsupportedSchemaChangeError, DestinationError: as `evolution` does.
        DestinationConflictError: other writers commit faster than we can follow.
    """
    found = evolution(live.known(), schema, delivery, by_snapshot=by_snapshot)
    if found is not None and found.touches_files and found.changes_rows:
        live.revise(partial(purged, live.storage))

    def plan(state: TableState) -> list[Action]:
        found = evolution(state, schema, delivery, by_snapshot=by_snapshot)
        if found is None:
            return []
        if found.touches_files or not schema.key:
            live.forget_index()
        return _commit(live.storage, state, found)

    live.revise(plan)


def _commit(storage: Storage, state: TableState, plan: Evolution) -> list[Action]:
    """The commit that carries the evolution out; a batch of rows is in memory at a time.

    Raises:
        LogError: a file cannot be read or written.
        DestinationError: a value does not fit its column.
    """
    schema = pa.schema([pa.field(column.name, column.type) for column in plan.columns])
    left = {LEFT_BEHIND: json.dumps(sorted(plan.left_behind), ensure_ascii=False)}
    known = {k: v for k, v in state.configuration.items() if k != LEFT_BEHIND}
    configuration = {**known, **(left if plan.left_behind else {})}
    protocol = with_features_of(state.protocol, plan.protocol)
    told = "; ".join(plan.sentences)
    files = _rewritten(storage, state, plan, schema) if plan.touches_files else ()
    return [
        actions.commit_info("CHANGE COLUMNS", parameters={"changes": told}),
        *([] if protocol is None else [{"protocol": protocol}]),
        {
            "metaData": {
                **state.metadata,
                "schemaString": plan.schema_string,
                "configuration": configuration,
            }
        },
        *files,
    ]


# -- which column is which -------------------------------------------------------------------------


def _with_own_fields_kept(state: TableState, schema: TableSchema) -> TableSchema:
    """The schema; structs of our own have the fields that the table's have beyond them. In those of
    the source a field that is gone may have been renamed, which nobody tells."""
    kept = keeping_fields(state.metadata["schemaString"], schema)
    pairs = zip(schema.columns, kept.columns, strict=True)
    return replace(schema, columns=tuple(c if c.attnum else joined for c, joined in pairs))


def _fields(schema_string: str) -> dict[str, Field]:
    return {field["name"]: field for field in json.loads(schema_string)["fields"]}


def _numbered_anew(old: Mapping[str, Field], new: Mapping[str, Field]) -> bool:
    """Whether numbers cannot be compared: a name that stayed has a number that was another's, as
    where the source's table was dropped and created, or restored, in the meantime."""
    was = {name: field["metadata"].get(ATTNUM) for name, field in old.items()}
    now = {name: field["metadata"].get(ATTNUM) for name, field in new.items()}
    newest = max((number for number in was.values() if number), default=0)
    both = ((was[name], now[name]) for name in was.keys() & now.keys())
    return any(a and b and a != b and b <= newest for a, b in both)


def _comparable(old: Mapping[str, Field], new: Mapping[str, Field]) -> Mapping[str, Field]:
    """The old fields, without their numbers where those mean nothing to the new ones."""
    if not _numbered_anew(old, new):
        return old
    return {name: _without_number(field) for name, field in old.items()}


def former_names(state: TableState, schema: TableSchema) -> dict[str, str]:
    """What each column that a snapshot of `schema` brings is called in the table; those that it
    has not are left out."""
    old = _fields(state.metadata["schemaString"])
    new = _fields(delta_schema(schema))
    return _formers(_comparable(old, new), new)


def _without_number(field: Field) -> Field:
    metadata = {k: v for k, v in field["metadata"].items() if k != ATTNUM}
    return {**field, "metadata": metadata}


def _formers(old: Mapping[str, Field], new: Mapping[str, Field]) -> dict[str, str]:
    """What each column that was there before was called, by its name now: known by its number
    where both have one, else by its name."""
    numbered = {f["metadata"][ATTNUM]: name for name, f in old.items() if ATTNUM in f["metadata"]}
    found = {}
    for name, field in new.items():
        number = field["metadata"].get(ATTNUM)
        former = numbered.get(number) if number else None
        if former is None and name in old and not (number and ATTNUM in old[name]["metadata"]):
            former = name
        if former is not None:
            found[name] = former
    return found


def _require_ours(schema: TableSchema, lost: Mapping[str, Field]) -> None:
    """A column that never was the source's is another writer's; its values are not ours to lose."""
    for name, field in lost.items():
        if not {ATTNUM, DROPPED} & field["metadata"].keys() and name not in _OWN:
            raise UnsupportedSchemaChangeError(
                f"{schema.table}: column {name} is not the source's; another writer added it, and "
                "nothing tells what it shall hold in the rows that come",
                hint=f"drop it; or headrace resync {schema.table} copies the table anew without it",
                column=name,
                table=str(schema.table),
            )


def _require_carried(
    state: TableState, schema: TableSchema, formers: Mapping[str, str], old: Mapping[str, Field]
) -> None:
    stands = state.columns
    stored = stored_schema(schema.arrow())
    for column in schema.columns:
        former = formers.get(column.name)
        if former is None:
            continue
        before, now = stands.field(former).type, stored.field(column.name).type
        said = old[former]["metadata"].get(SOURCE_TYPE) or column.source_type
        fits = carries_over(before, said, now, column.source_type)
        if not fits and not (pa.types.is_struct(before) and _gains_fields(before, now)):
            raise UnsupportedSchemaChangeError(
                f"{schema.table}: column {former} changed its type from {said} ({before}) to "
                f"{column.source_type} ({now}), which does not hold the values that stand",
                hint=f"headrace resync {schema.table} copies the table anew, the old rows readable "
                "until then",
                column=former,
                table=str(schema.table),
            )


def _reads_as(physical: pa.DataType, stored: pa.DataType) -> bool:
    """Whether a column in a file needs no rewriting: a struct that got more fields is read with
    nulls in them."""
    if not (pa.types.is_struct(physical) and pa.types.is_struct(stored)):
        return same_in_parquet(physical, stored)
    fields = {field.name: field.type for field in stored}
    return all(f.name in fields and _reads_as(f.type, fields[f.name]) for f in physical)


def _gains_fields(before: pa.DataType, now: pa.DataType) -> bool:
    """Whether a struct only got more fields, which are null in the rows that stand, or wider
    ones, as that of old rows does with the source's columns (mode append)."""
    if not (pa.types.is_struct(before) and pa.types.is_struct(now)):
        return bool(before == now) or is_widening(before, now)
    fields = {field.name: field.type for field in now}
    return all(f.name in fields and _gains_fields(f.type, fields[f.name]) for f in before)


def _dropped(field: Field) -> Field:
    return {**field, "metadata": {**field["metadata"], DROPPED: True}}


def _left_behind(state: TableState) -> frozenset[str]:
    return frozenset(json.loads(state.configuration.get(LEFT_BEHIND, "[]")))


def _columns(schema: TableSchema, formers: Mapping[str, str]) -> tuple[Column, ...]:
    """Only the source's own columns have constants: ours tell of changes that nobody knows."""
    stored = stored_schema(schema.arrow())
    constants = {c.name: schema.missing.get(c.name) for c in schema.columns if c.attnum}
    return tuple(
        Column(
            name,
            stored.field(name).type,
            formers.get(name),
            None if name in formers else constants.get(name),
        )
        for name in schema.names
    )


# -- their words -----------------------------------------------------------------------------------


def _sentences(
    old: Mapping[str, Field],
    new: Mapping[str, Field],
    columns: Sequence[Column],
    lost: Sequence[str],
    kept: Sequence[str],
) -> Iterator[str]:
    for name in lost:
        if name not in kept:
            yield f"drops column {name}"
        elif DROPPED not in old[name]["metadata"]:
            yield f"keeps column {name}, which the source dropped, null in new rows"
    for column in columns:
        kind = _type_text(new[column.name])
        if column.former is None:
            given = "" if column.constant is None else ", with a value in the rows that stand"
            yield f"adds column {column.name} {kind}{given}"
            continue
        if column.former != column.name:
            yield f"renames column {column.former} to {column.name}"
        if old[column.former]["type"] != new[column.name]["type"]:
            yield f"widens column {column.name} from {_type_text(old[column.former])} to {kind}"


def _type_text(field: Field) -> str:
    kind = field["type"]
    return kind if isinstance(kind, str) else str(kind["type"])


def _unwanted(
    schema: TableSchema, sentences: Sequence[str], delivery: Delivery
) -> UnsupportedSchemaChangeError:
    policy = delivery.schema_policy.value
    return UnsupportedSchemaChangeError(
        f"{schema.table}: its columns changed, and schema is {policy}: a table that evolves "
        + "; ".join(sentences),
        hint=f"headrace resync {schema.table} takes the columns as they are now; "
        "schema: evolve follows such changes",
        table=str(schema.table),
    )


# -- files -----------------------------------------------------------------------------------------


def _rewritten(
    storage: Storage, state: TableState, plan: Evolution, schema: pa.Schema
) -> Iterator[Action]:
    """The files that do not read right as they are are taken away, and their rows come back."""
    stands = state.columns
    names = [c.former for c in plan.columns if c.former is not None] or stands.names[:1]
    reading = pa.schema([stands.field(name) for name in names])
    for file in state.files.values():
        with open_parquet(storage, file["path"]) as parquet:
            physical = parquet.schema_arrow
        if all(column.stands_in(physical) for column in plan.columns):
            continue
        rows = (_as_planned(part, plan, schema) for part in live_rows(storage, file, reading))
        yield actions.remove(file, data_change=plan.changes_rows)
        values = file.get("partitionValues") or {}
        yield from write_anew(storage, rows, schema, values, data_change=plan.changes_rows)
        hit("delta.columns_rewritten")


def _as_planned(rows: pa.Table, plan: Evolution, schema: pa.Schema) -> pa.Table:
    made = pa.table([_values(rows, column) for column in plan.columns], schema=schema)
    renamed = {c.former: c.name for c in plan.columns if c.former and c.former != c.name}
    if not renamed or not {BEFORE, ORDINAL, UNCHANGED} <= set(schema.names):
        return made
    place = schema.get_field_index(UNCHANGED)
    lists = made.column(place).combine_chunks()
    return made.set_column(place, schema.field(place), _with_names(lists, renamed))


def _with_names(lists: pa.ListArray, renamed: Mapping[str, str]) -> pa.ListArray:
    """Lists of columns whose values were not sent (mode append), by the names they have now."""
    known = pa.array(list(renamed))
    names = lists.flatten()
    now = pa.array(list(renamed.values())).take(pc.index_in(names, known))
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    values = pc.coalesce(now, names)
    return pa.ListArray.from_arrays(offsets, values, type=lists.type, mask=lists.is_null())


def _values(rows: pa.Table, column: Column) -> pa.ChunkedArray:
    if column.former is not None:
        return rows.column(column.former).cast(column.type)
    if column.constant is None:
        return pa.chunked_array([pa.nulls(rows.num_rows, column.type)])
    return pa.chunked_array([pa.repeat(column.constant.cast(column.type), rows.num_rows)])
