"""Tables of random shapes, and values of their types that follow from whole numbers.

Every value is an SQL expression of a number, so that one statement fills a row or ten thousand, and
keys meet: the numbers of keys are few. What a table looks like by now is asked of the catalog, for
a server that died may or may not have kept its last change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Any

import psycopg
from psycopg import sql

# Of a whole number {g}, an expression of type integer, and a salt {s} from 1 to 9999.
VALUES = {
    "smallint": "((({g}) * 31 + {s}) % 1000)::smallint",
    "integer": "(({g}) * 7919 + {s}) % 100000",
    "bigint": "({g})::bigint * 1000003 * {s}",
    "numeric(5,2)": "((({g}) * 37 + {s}) % 100000)::numeric / 100",
    "numeric(12,3)": "((({g}) * 37 + {s}) % 100000)::numeric / 1000",
    "double precision": "(({g}) + {s})::float8 / 3",
    "boolean": "(({g}) + {s}) % 2 = 0",
    "date": "date '2000-01-01' + (({g}) + {s}) % 20000",
    "timestamp with time zone": "timestamptz '2000-01-01Z' + (({g}) % 99 * {s}) * interval '1 s'",
    "timestamp without time zone": "timestamp '2000-01-01' + (({g}) % 99 * {s}) * interval '1 s'",
    "text": "'t' || ({g}) || '.{s}'",
    "character varying(20)": "('t' || ({g}) || '.{s}')::varchar(20)",
    "bytea": "decode(md5(({g}) || '.{s}'), 'hex')",
    "uuid": "md5(({g}) || '.{s}')::uuid",
    "text[]": "array['a{s}', null, ({g})::text]",
    "integer[]": "array[{g}, null, {s}]",
}
WIDER = {
    "smallint": "integer",
    "integer": "bigint",
    "numeric(5,2)": "numeric(12,3)",
    "numeric(12,3)": "numeric(20,3)",
    "character varying(20)": "text",
}
VALUES["numeric(20,3)"] = VALUES["numeric(12,3)"]
KEYS = {
    "integer": "{g}",
    "bigint": "({g})::bigint",
    "text": "'k' || ({g})",
    "uuid": "md5(({g})::text)::uuid",
}
# Of 3,200 bytes: kept out of line, and so not sent by an update that leaves it alone.
LONG = "(select string_agg(md5((({g}) * 1000 + i) || '.{s}'), '') from generate_series(1, 100) i)"

# What comes behind `create table {t} (id {k}, code text, n integer, body text, …`, and follows it.
KINDS = {
    "plain": ", primary key (id))",
    "pair": ", primary key (code, id))",
    "whole": ", primary key (id)); alter table {t} replica identity full",
    "indexed": ", primary key (id)); alter table {t} alter code set not null, add unique (code);"
    " alter table {t} replica identity using index {i}",
    "parts": ", primary key (id)) partition by hash (id);"
    " create table {t0} partition of {t} for values with (modulus 2, remainder 0);"
    " create table {t1} partition of {t} for values with (modulus 2, remainder 1)",
    "bag": "); alter table {t} replica identity full",
}


class Temper(Enum):
    """What definitions a table suffers."""

    CALM = "calm"  # new columns, which every destination follows
    LIVELY = "lively"  # what Delta tables follow
    ROUGH = "rough"  # what stops a table, too: a resync brings it back, and its end is compared


@dataclass(frozen=True)
class Table:
    """A table of schema `public`."""

    name: str
    kind: str
    key_type: str
    extra: tuple[str, ...]
    temper: Temper

    @property
    def has_key(self) -> bool:
        return self.kind != "bag"

    @property
    def sql_name(self) -> str:
        return quoted("public", self.name)

    def create(self) -> str:
        """Statements that make it."""
        columns = [
            f"id {self.key_type}",
            "code text",
            "n integer",
            "body text",
            *(f'"E{i}" {kind}' for i, kind in enumerate(self.extra)),
        ]
        more = KINDS[self.kind].format(
            t=self.sql_name,
            i=quoted(f"{self.name}_code_key"),
            t0=quoted("public", f"{self.name}_0"),
            t1=quoted("public", f"{self.name}_1"),
        )
        storage = f"alter table {self.sql_name} alter body set storage external"
        return f"create table {self.sql_name} ({', '.join(columns)}{more}; {storage}"


@dataclass(frozen=True)
class Column:
    """`key` tells whether the primary key has it."""

    name: str
    type: str
    nullable: bool
    key: bool
    external: bool

    @property
    def sql_name(self) -> str:
        return quoted(self.name)


@dataclass(frozen=True)
class Shown:
    """A table as a session sees it now."""

    table: Table
    columns: tuple[Column, ...]

    @property
    def key(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.key)

    @property
    def values(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if not column.key)


def quoted(*names: str) -> str:
    return sql.Identifier(*names).as_string()


def value(column: Column, number: str, salt: int, *, long: bool = False) -> str:
    """An expression for a column of the row of a number; null in some rows where it may be."""
    if column.key:
        return KEYS.get(column.type, VALUES[column.type]).format(g=number, s=salt)
    if column.external:
        return LONG.format(g=number, s=salt) if long else f"'s' || ({number})"
    told = VALUES[column.type].format(g=number, s=salt)
    return f"case when ({number}) % 7 <> {salt % 7} then {told} end" if column.nullable else told


def draw_tables(chance: Random) -> list[Table]:
    """Three with a key, one of them calm, one without a key, and a rough one."""
    first, *more = chance.sample(("plain", "pair", "whole", "indexed", "parts"), 3)
    rough = chance.choice(("plain", "parts", "whole"))
    return [
        _draw(chance, first, f"{first}0", Temper.CALM),
        *(_draw(chance, kind, f"{kind}{n}", Temper.LIVELY) for n, kind in enumerate(more, 1)),
        _draw(chance, "bag", "bag", chance.choice((Temper.CALM, Temper.LIVELY))),
        _draw(chance, rough, "Rough", Temper.ROUGH),
    ]


def _draw(chance: Random, kind: str, name: str, temper: Temper) -> Table:
    keys = ("integer", "bigint", "text", "uuid") if kind in ("plain", "whole") else ("integer",)
    extra = tuple(chance.choices(sorted(VALUES), k=chance.randint(0, 3)))
    return Table(name, kind, chance.choice(keys), extra, temper)


_COLUMNS = """
select a.attname, format_type(a.atttypid, a.atttypmod), not a.attnotnull,
       exists (select from pg_index i where i.indrelid = a.attrelid and i.indisprimary
                and a.attnum = any(i.indkey)),
       a.attstorage = 'e' and a.atttypid = 'text'::regtype
  from pg_attribute a
 where a.attrelid = to_regclass(%s) and a.attnum > 0 and not a.attisdropped
 order by a.attnum
"""


def look(session: psycopg.Connection[Any], table: Table) -> Shown:
    """What the table looks like to a session."""
    found: Sequence[tuple[Any, ...]] = session.execute(_COLUMNS, [table.sql_name]).fetchall()
    return Shown(table, tuple(Column(*row) for row in found))
