"""Statements drawn by chance for a table as it looks now; data first, then definitions.

Each draw uses up its own source of chance only, so that what one statement meets at the server has
no influence on the statements that follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from random_tables import VALUES, WIDER, Column, Shown, Temper, quoted, value

NUMBERS = 40  # of keys: few, so that they are used again
FREE = -7777  # a number that only swaps use
Statements = list[str]


def insert(chance: Random, shown: Shown) -> Statements:
    """A few rows, which may be there already."""
    first = chance.randint(1, NUMBERS)
    return [_insert(chance, shown, first, first + chance.randint(0, 4), long=True)]


def insert_many(chance: Random, shown: Shown) -> Statements:
    """More than the server keeps in memory for a transaction."""
    first = chance.choice((1000, 2000, 3000))
    return [_insert(chance, shown, first, first + chance.randint(300, 1200), long=False)]


def _insert(chance: Random, shown: Shown, first: int, last: int, *, long: bool) -> str:
    salt = _salt(chance)
    names = ", ".join(column.sql_name for column in shown.columns)
    values = ", ".join(value(column, "g", salt, long=long) for column in shown.columns)
    conflict = chance.choice((" on conflict do nothing", " on conflict do nothing", ""))
    return (
        f"insert into {shown.table.sql_name} ({names})"
        f" select {values} from generate_series({first}, {last}) g{conflict}"
    )


def update(chance: Random, shown: Shown) -> Statements:
    """Of one column: what is out of line in others is not sent."""
    column = chance.choice(shown.values)
    return [_set(chance, shown, column) + _where(chance, shown)]


def update_all(chance: Random, shown: Shown) -> Statements:
    column = chance.choice([c for c in shown.values if not c.external] or shown.values)
    return [_set(chance, shown, column)]


def _set(chance: Random, shown: Shown, column: Column) -> str:
    salt, number = _salt(chance), str(chance.randint(1, 999))
    said = value(column, number, salt, long=True)
    if column.name == "code" and not column.nullable:
        said = f"code || 'x{salt}'"  # it is unique
    return f"update {shown.table.sql_name} set {column.sql_name} = {said}"


def move(chance: Random, shown: Shown) -> Statements:
    """A row gets another key, of a row that is there or of none."""
    a, b = chance.randint(1, NUMBERS), chance.randint(1, NUMBERS + 10)
    return [_move(shown, a, b)] if shown.key else update(chance, shown)


def swap(chance: Random, shown: Shown) -> Statements:
    a, b = chance.sample(range(1, NUMBERS), 2)
    steps = ((a, FREE), (b, a), (FREE, b))
    return [_move(shown, *step) for step in steps] if shown.key else update(chance, shown)


def mirror_keys(chance: Random, shown: Shown) -> Statements:
    """Many keys move at once; some onto others, which the server refuses."""
    numbers = [column for column in shown.key if column.type in ("integer", "bigint")]
    if not numbers:
        return move(chance, shown)
    name, first = numbers[0].sql_name, chance.randint(1, NUMBERS)
    return [
        f"update {shown.table.sql_name} set {name} = -{name}"
        f" where {name} between {first} and {first + 20}"
    ]


def _move(shown: Shown, a: int, b: int) -> str:
    moved = ", ".join(f"{c.sql_name} = {_key(c, b)}" for c in shown.key)
    return f"update {shown.table.sql_name} set {moved} where {_is(shown, a)}"


def delete(chance: Random, shown: Shown) -> Statements:
    return [f"delete from {shown.table.sql_name}" + _where(chance, shown)]


def replace(chance: Random, shown: Shown) -> Statements:
    """A row goes and one of its key comes: one row at the destination, or one version."""
    number = chance.randint(1, NUMBERS)
    gone = f"delete from {shown.table.sql_name}"
    where = f" where {_is(shown, number)}" if shown.key else _where(chance, shown)
    return [gone + where, _insert(chance, shown, number, number, long=True)]


def truncate(chance: Random, shown: Shown) -> Statements:
    return [f"truncate {shown.table.sql_name}{chance.choice(('', ' restart identity'))}"]


def _where(chance: Random, shown: Shown) -> str:
    if not shown.key:
        some = f"select ctid from {shown.table.sql_name} order by ctid"
        return f" where ctid = any(array({some} limit {chance.choice((1, 3, 50))}))"
    return f" where {_is(shown, chance.randint(1, NUMBERS))}"


def _is(shown: Shown, number: int) -> str:
    return " and ".join(f"{column.sql_name} = {_key(column, number)}" for column in shown.key)


def _key(column: Column, number: int) -> str:
    return value(column, f"({number})", 1)


def _salt(chance: Random) -> int:
    return chance.randint(1, 9999)


# -- definitions -----------------------------------------------------------------------------------


def add(chance: Random, shown: Shown) -> Statements:
    """Without a value for the rows that stand, or with a constant."""
    name, kind = f"X{chance.randrange(1 << 40)}", chance.choice(sorted(VALUES))
    constant = VALUES[kind].format(g=chance.randint(1, 99), s=_salt(chance))
    suffix, said = chance.choice(
        (
            ("", "null"),
            (f" default ({constant})", constant),
            (f" not null default ({constant})", constant),
        )
    )
    return [
        f"alter table {shown.table.sql_name} add {quoted(name)} {kind}{suffix}",
        _noted("add", shown, name, "", f"to_jsonb(({said})::{kind})"),
    ]


def drop(chance: Random, shown: Shown) -> Statements:
    choice = [column for column in shown.values if column.name != "code"]
    if len(choice) < 2:
        return add(chance, shown)
    name = chance.choice(choice).name
    return [
        f"alter table {shown.table.sql_name} drop {quoted(name)}",
        _noted("drop", shown, name),
    ]


def rename(chance: Random, shown: Shown) -> Statements:
    """Columns of the key too; never to a name that was there before."""
    name = chance.choice([c.name for c in shown.columns if c.name != "code"])
    became = f"R{chance.randrange(1 << 40)}"
    return [
        f"alter table {shown.table.sql_name} rename {quoted(name)} to {quoted(became)}",
        _noted("rename", shown, name, became),
    ]


def widen(chance: Random, shown: Shown) -> Statements:
    choice = [c for c in shown.values if c.type in WIDER]
    if not choice:
        return rename(chance, shown)
    column = chance.choice(choice)
    return [
        f"alter table {shown.table.sql_name} alter {column.sql_name} type {WIDER[column.type]}",
        _noted("widen", shown, column.name),
    ]


def identify(chance: Random, shown: Shown) -> Statements:
    """Another replica identity; that of partitions would not follow their root's."""
    if shown.table.kind not in ("plain", "pair", "whole"):
        return add(chance, shown)
    kind = chance.choice(("full", "default"))
    return [
        f"alter table {shown.table.sql_name} replica identity {kind}",
        _noted("identify", shown),
    ]


def _noted(kind: str, shown: Shown, name: str = "", became: str = "", value: str = "null") -> str:
    return (
        "insert into audit.ddl (kind, relation, name, became, value)"
        f" values ('{kind}', '{shown.table.name}', '{name}', '{became}', {value})"
    )


# -- what stops a table ----------------------------------------------------------------------------


def recreate(chance: Random, shown: Shown) -> Statements:
    return [
        f"drop table {shown.table.sql_name}",
        shown.table.create(),
        _noted("recreate", shown),
    ]


def add_volatile(chance: Random, shown: Shown) -> Statements:
    name = quoted(f"X{chance.randrange(1 << 40)}")
    return [
        f"alter table {shown.table.sql_name} add {name} double precision default random()",
        _noted("volatile", shown),
    ]


def retype(chance: Random, shown: Shown) -> Statements:
    choice = [c for c in shown.values if c.type == "integer"]
    if not choice:
        return add_volatile(chance, shown)
    name = chance.choice(choice).sql_name
    return [
        f"alter table {shown.table.sql_name} alter {name} type text using {name}::text",
        _noted("retype", shown),
    ]


def truncate_part(chance: Random, shown: Shown) -> Statements:
    if shown.table.kind != "parts":
        return recreate(chance, shown)
    return [
        f"truncate {quoted('public', shown.table.name + '_0')}",
        _noted("truncate part", shown),
    ]


# -- drawing ---------------------------------------------------------------------------------------

Draw = Callable[[Random, Shown], Statements]
CHANGES: dict[Draw, float] = {
    insert: 8,
    update: 8,
    move: 4,
    swap: 2,
    mirror_keys: 2,
    delete: 3,
    replace: 2,
    update_all: 1,
    insert_many: 1,
    truncate: 0.3,
}
LARGE: dict[Draw, float] = {insert_many: 3, update_all: 3, mirror_keys: 1}
FOLLOWED: dict[Draw, float] = {add: 3, drop: 2, rename: 2, widen: 2, identify: 1}
STOPS: dict[Draw, float] = {recreate: 1, add_volatile: 1, retype: 1, truncate_part: 1}
DEFINITIONS: dict[Temper, dict[Draw, float]] = {
    Temper.CALM: {add: 1},
    Temper.LIVELY: FOLLOWED,
    Temper.ROUGH: {**FOLLOWED, **STOPS},
}


def draw(chance: Random, weights: dict[Draw, float], shown: Shown) -> Statements:
    """Statements of a kind that is drawn by weight."""
    (kind,) = chance.choices(list(weights), list(weights.values()))
    return kind(chance, shown)


def last_row(shown: Shown) -> str:
    """A row that tells the stream of the columns that the table has in the end."""
    names = ", ".join(column.sql_name for column in shown.columns)
    values = ", ".join(value(column, "90001", 5, long=True) for column in shown.columns)
    return f"insert into {shown.table.sql_name} ({names}) select {values}"
