"""Which columns reach the destination, under what names, and which of them are masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from headrace.config.problems import did_you_mean
from headrace.engine.masking import JOINABLE, masked, masked_type
from headrace.engine.sandbox import Sandbox
from headrace.errors import ConfigError
from headrace.model import FEED_COLUMNS, Column, Mask, MaskKind, RowRules, TableSchema

_FEED: Final = frozenset(field.name for field in FEED_COLUMNS)


@dataclass(frozen=True)
class OutputColumns:
    """From rows with `source`'s columns to rows with `schema`'s.

    `names` maps each chosen column of the source to its name at the destination, in order.
    """

    source: TableSchema
    schema: TableSchema
    names: Mapping[str, str]
    masks: Mapping[str, Mask]
    sandbox: Sandbox

    @property
    def is_identity(self) -> bool:
        """Rows need not be touched."""
        return self.schema == self.source and not self.masks

    def rows(self, rows: pa.Table) -> pa.Table:
        return self._of(rows, tuple(self.names))

    def keys(self, rows: pa.Table) -> pa.Table:
        return self._of(rows, self.source.key)

    def _of(self, rows: pa.Table, columns: Iterable[str]) -> pa.Table:
        values = {self.names[c]: self._values(c, rows.column(c)) for c in columns}
        return pa.table(list(values.values()), names=list(values))

    def _values(self, column: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
        mask = self.masks.get(column)
        return masked(values, mask, self.sandbox) if mask else values


def output_columns(rules: RowRules, schema: TableSchema, sandbox: Sandbox) -> OutputColumns:
    """What `rules` make of the columns of `schema`.

    Raises:
        ConfigError: a rule names a column that there is not, drops or spoils a key column, gives
            two columns one name, or masks what cannot be masked.
    """
    _refuse_unknown(rules, schema)
    chosen = [column for column in schema.columns if _is_chosen(column.name, rules)]
    names = {c.name: rules.rename.get(c.name, c.name) for c in chosen}
    masks = {name: mask for name, mask in rules.masks.items() if name in names}
    if not names:
        raise ConfigError(f"columns of {schema.table}: none is left", hint="exclude fewer columns")
    _refuse_lost_keys(rules, schema, names)
    _refuse_twins(schema, names)
    columns = tuple(_output_column(c, names[c.name], masks.get(c.name), schema) for c in chosen)
    output = replace(schema, columns=columns, key=tuple(names[c] for c in schema.key), missing={})
    found = OutputColumns(schema, output, names, masks, sandbox)
    return replace(found, schema=replace(output, missing=_missing(found)))


def _is_chosen(name: str, rules: RowRules) -> bool:
    if name in _FEED:
        return True
    return name not in rules.exclude and (rules.include is None or name in rules.include)


def _output_column(column: Column, name: str, mask: Mask | None, schema: TableSchema) -> Column:
    if mask is None:
        return replace(column, name=name)
    if column.name in schema.key and mask.kind not in JOINABLE:
        raise ConfigError(
            f"mask of {schema.table}: {mask.kind.value} would make different keys equal: "
            f"{column.name} is part of the key",
            hint="use sha256 or hmac for key columns",
            table=schema.table,
        )
    kind = masked_type(mask, column.type, f"mask of {schema.table}: {column.name}")
    native = column.source_type if mask.kind is MaskKind.NULL else "text"
    return replace(column, name=name, type=kind, source_type=native)


def _missing(columns: OutputColumns) -> dict[str, pa.Scalar]:
    """What rows older than a column have in it, under the column's mask."""
    found = {}
    for name, scalar in columns.source.missing.items():
        if name in columns.names:
            values = pa.chunked_array([pa.array([scalar.as_py()], scalar.type)])
            found[columns.names[name]] = columns._values(name, values)[0]
    return found


def _refuse_unknown(rules: RowRules, schema: TableSchema) -> None:
    named: tuple[tuple[str, Iterable[str]], ...] = (
        ("columns", (*(rules.include or ()), *rules.exclude)),
        ("rename", rules.rename),
        ("mask", rules.masks),
        ("newest_by", (rules.newest_by,) if rules.newest_by else ()),
    )
    for rule, columns in named:
        for column in columns:
            if column not in schema.names:
                raise ConfigError(
                    f"{rule} of {schema.table}: there is no column {column}",
                    hint=did_you_mean(column, schema.names),
                    table=schema.table,
                )


def _refuse_lost_keys(rules: RowRules, schema: TableSchema, names: Mapping[str, str]) -> None:
    for column in schema.key:
        if column not in names:
            how = "exclude names it" if column in rules.exclude else "include leaves it out"
            raise ConfigError(
                f"columns of {schema.table}: {column} is part of the key, but {how}",
                hint="a key column has to reach the destination; mask it with sha256 or hmac "
                "if its values must not be seen",
                table=schema.table,
            )


def _refuse_twins(schema: TableSchema, names: Mapping[str, str]) -> None:
    taken: dict[str, str] = {}
    for column, name in names.items():
        if name in taken:
            raise ConfigError(
                f"rename of {schema.table}: {taken[name]} and {column} would both be {name}",
                hint="choose another name, or exclude one of the columns",
                table=schema.table,
            )
        taken[name] = column
