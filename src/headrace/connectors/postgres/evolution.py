"""How a table follows its source's schema: what is done, in words and in SQL, before it is done.

A column is known by its catalog number where it has one (a Delta table's column mapping, Postgres'
attnum), so that a renamed one keeps its values; else by its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from psycopg import sql

from headrace.connectors.postgres.compatibility import EXACT
from headrace.connectors.postgres.existing import column_type, holds
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.connectors.postgres.target_table import Target, TargetColumn
from headrace.errors import UnsupportedSchemaChangeError
from headrace.model import Column, Delivery, SchemaPolicy, TableId, TableSchema
from headrace.model.widening import is_widening


@dataclass(frozen=True)
class SchemaStep:
    """One change of a table: a sentence for a person, and the statements that make it."""

    sentence: str
    sql: tuple[str, ...]


def schema_steps(
    old: TableSchema, new: TableSchema, target: Target, delivery: Delivery
) -> list[SchemaStep]:
    """What makes a table that holds `old` hold `new`, in order; nothing where it does.

    Raises:
        UnsupportedSchemaChangeError: the table cannot follow, or the user does not want it to.
    """
    prior = _matched(old, new)
    _check_key(old, new, prior)
    if delivery.schema_policy is SchemaPolicy.EXTEND:
        _require_only_added(old, new, prior)
    steps = [
        *_drops(old, new, prior, target, delivery),
        *_renames(old, new, prior, target, delivery),
        *_retypes(new, prior, target, delivery),
        *_additions(new, prior, target, delivery),
    ]
    if steps and delivery.schema_policy is SchemaPolicy.FREEZE:
        done = "; ".join(step.sentence for step in steps)
        raise unsupported(new.table, f"schema: freeze forbids what the source did ({done})")
    return steps


def unsupported(table: TableId, why: str) -> UnsupportedSchemaChangeError:
    return UnsupportedSchemaChangeError(
        f"{table}: {why}",
        hint=f"headrace resync {table} builds the table anew, the old rows readable until then",
        table=str(table),
    )


def fitting_statements(
    new: TableSchema, empty: Target, delivery: Delivery, former: TableSchema | None = None
) -> Iterator[str]:
    """What makes an empty table hold `new`, whatever types its columns had.

    `former` is what its like held: columns of that which are gone go, where the user wants it. One
    that had the source's own type gets the one of now; another type was the user's choice, and
    stays where it holds every value.
    """
    known = {column.name: column for column in former.columns} if former else {}
    for gone in known.keys() - set(new.names) if delivery.drop_columns else ():
        if empty.column(gone) is not None:
            yield f"ALTER TABLE {qualified(new.table)} DROP COLUMN {quoted(gone)}"
    for column in new.columns:
        there = empty.column(column.name)
        kind, name = column_type(column, delivery), quoted(column.name)
        if there is None:
            yield f"ALTER TABLE {qualified(new.table)} ADD COLUMN {name} {kind}"
        elif not there.generated and not _suits(column, there, delivery, known.get(column.name)):
            change = f"ALTER COLUMN {name} DROP DEFAULT, ALTER COLUMN {name} TYPE {kind}"
            yield f"ALTER TABLE {qualified(new.table)} {change} USING NULL::{kind}"


def _suits(column: Column, there: TargetColumn, delivery: Delivery, former: Column | None) -> bool:
    """Whether an empty column may stay as it is."""
    was_own = former is not None and former.source_type == there.type
    if delivery.native_types and was_own and column.source_type != there.type:
        return False
    return holds(column, there, delivery).fits


# -- which column is which -------------------------------------------------------------------------


def _matched(old: TableSchema, new: TableSchema) -> Mapping[str, Column]:
    """The former self of each column of `new` that has one, by its new name."""
    numbered = {c.attnum: c for c in old.columns if c.attnum}
    named = {c.name: c for c in old.columns}
    found = {}
    for column in new.columns:
        former = numbered.get(column.attnum) if column.attnum else None
        if former is None and column.name in named:
            former = named[column.name]
            if column.attnum and former.attnum:
                raise unsupported(
                    new.table, f"column {column.name} was dropped and another one took its name"
                )
        if former is not None:
            found[column.name] = former
    return found


def _check_key(old: TableSchema, new: TableSchema, prior: Mapping[str, Column]) -> None:
    former = [prior[name].name if name in prior else name for name in new.key]
    if former != list(old.key):
        was = ", ".join(old.key) or "none"
        raise unsupported(new.table, f"its key was {was} and is now {', '.join(new.key) or 'none'}")


def _require_only_added(old: TableSchema, new: TableSchema, prior: Mapping[str, Column]) -> None:
    """As `engine.conform` joins rows of two schemas: what became of older rows nobody tells."""
    heirs = {prior[column.name].name: column for column in new.columns if column.name in prior}
    for column in old.columns:
        heir = heirs.get(column.name)
        if heir is None:
            raise unsupported(new.table, f"column {column.name} was dropped")
        if heir.name != column.name:
            raise unsupported(new.table, f"column {column.name} was renamed to {heir.name}")
        if column.type != heir.type or not _same_values(column.source_type, heir.source_type):
            change = f"from {column.source_type} to {heir.source_type}"
            raise unsupported(new.table, f"column {column.name} changed {change}")


_SAME_TEXTS: Final = ("text", "character varying")


def _same_values(old: str, new: str) -> bool:
    return old == new or (old.startswith(_SAME_TEXTS) and new.startswith(_SAME_TEXTS))


# -- the steps -------------------------------------------------------------------------------------


def _drops(
    old: TableSchema,
    new: TableSchema,
    prior: Mapping[str, Column],
    target: Target,
    delivery: Delivery,
) -> Iterator[SchemaStep]:
    kept = {column.name for column in prior.values()}
    for column in old.columns:
        there = target.column(column.name)
        if column.name in kept or there is None:
            continue
        if delivery.drop_columns:
            drop = f"DROP COLUMN {quoted(column.name)}"
            yield _step(new.table, f"drops column {column.name}", drop)
        else:
            yield _emptied(new.table, there)


def _emptied(table: TableId, column: TargetColumn) -> SchemaStep:
    """Kept, null from now on in old rows and new ones: stale values would look like current."""
    name = quoted(column.name)
    clear = f"UPDATE {qualified(table)} SET {name} = NULL WHERE {name} IS NOT NULL"  # noqa: S608
    actions = [f"ALTER COLUMN {name} DROP DEFAULT"] if column.has_default else []
    actions += [f"ALTER COLUMN {name} DROP NOT NULL"] if column.not_null else []
    alter = [f"ALTER TABLE {qualified(table)} {', '.join(actions)}"] if actions else []
    sentence = f"{table}: empties column {column.name}, which the source dropped"
    return SchemaStep(sentence, (*alter, clear))


def _renames(
    old: TableSchema,
    new: TableSchema,
    prior: Mapping[str, Column],
    target: Target,
    delivery: Delivery,
) -> Iterator[SchemaStep]:
    """Names may be handed on or go round: those in the way step aside first."""
    moves = {prior[c.name].name: c.name for c in new.columns if c.name in prior}
    moves = {a: b for a, b in moves.items() if a != b and target.column(a) is not None}
    dropped = set(old.names) - {c.name for c in prior.values()} if delivery.drop_columns else set()
    for name in moves.values():
        if name not in moves and name not in dropped and target.column(name) is not None:
            raise unsupported(
                new.table, f"another column {name} stands in the way of a renamed one"
            )
    aside = {a: f"headrace {n}" for n, a in enumerate(moves) if a in moves.values()}
    for a, there in aside.items():
        yield SchemaStep(f"{new.table}: column {a} steps aside", (_rename(new.table, a, there),))
    for a, b in moves.items():
        rename = _rename(new.table, aside.get(a, a), b)
        yield SchemaStep(f"{new.table}: renames column {a} to {b}", (rename,))


def _rename(table: TableId, one: str, other: str) -> str:
    return f"ALTER TABLE {qualified(table)} RENAME COLUMN {quoted(one)} TO {quoted(other)}"


def _retypes(
    new: TableSchema, prior: Mapping[str, Column], target: Target, delivery: Delivery
) -> Iterator[SchemaStep]:
    for column in new.columns:
        former = prior.get(column.name)
        there = target.column(former.name) if former is not None else None
        if former is None or there is None or there.generated:
            continue
        if _same_type(former, column, delivery):
            continue
        widens = is_widening(former.type, column.type) or _widens_text(former, column)
        if widens and _still_holds(former, column, there, delivery):
            continue
        if not widens or column.name in delivery.types:
            raise unsupported(
                new.table,
                f"column {column.name} was {former.type} and is {column.type}, "
                f"which {there.type} cannot follow",
            )
        kind = column_type(column, delivery)
        action = f"ALTER COLUMN {quoted(column.name)} TYPE {kind}"
        yield _step(new.table, f"widens column {column.name} to {kind}", action)


def _same_type(former: Column, column: Column, delivery: Delivery) -> bool:
    same_text = not delivery.native_types or former.source_type == column.source_type
    return former.type == column.type and same_text


def _still_holds(former: Column, column: Column, there: TargetColumn, delivery: Delivery) -> bool:
    """A column of another type may be wide enough; but where a wider one would be made, it is."""
    fitting = holds(column, there, delivery)
    return fitting.fits and (not fitting.why or bool(holds(former, there, delivery).why))


def _widens_text(former: Column, column: Column) -> bool:
    """Of Postgres' own text types, which differ in length; it raises where a text is too long."""
    texts = ("text", "character")
    return former.source_type.startswith(texts) and column.source_type.startswith(texts)


def _additions(
    new: TableSchema, prior: Mapping[str, Column], target: Target, delivery: Delivery
) -> Iterator[SchemaStep]:
    for column in new.columns:
        if column.name in prior:
            continue
        there = target.column(column.name)
        if there is None:
            yield _added(new, column, delivery)
        elif holds(column, there, delivery) != EXACT:
            raise unsupported(
                new.table,
                f"column {column.name} came, but one of your own has its name, a {there.type}",
            )


def _added(new: TableSchema, column: Column, delivery: Delivery) -> SchemaStep:
    kind, name = column_type(column, delivery), quoted(column.name)
    add = f"ADD COLUMN {name} {kind}"
    constant = new.missing.get(column.name)
    if constant is None or constant.as_py() is None:
        return _step(new.table, f"adds column {column.name} {kind}", add)
    value = sql.Literal(_literal(constant)).as_string(None)
    return _step(
        new.table,
        f"adds column {column.name} {kind}, {value} in the rows that stand",
        f"{add} DEFAULT {value}",
        f"ALTER COLUMN {name} DROP DEFAULT",
    )


def _literal(constant: pa.Scalar) -> Any:
    """As text where Postgres reads it back exactly, without psycopg's own casts."""
    value = constant.as_py()
    return value if isinstance(value, (bytes, list, bool)) else str(value)


# -- their words -----------------------------------------------------------------------------------


def _step(table: TableId, what: str, *actions: str) -> SchemaStep:
    statements = tuple(f"ALTER TABLE {qualified(table)} {action}" for action in actions)
    return SchemaStep(f"{table}: {what}", statements)
