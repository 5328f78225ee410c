"""The statements by which one table takes another's name, members, rights and looks.

Pure: they are composed from definitions, and run as one script, so that the locks are held for one
round trip and not for one per statement. RENAME takes a bare name and SET SCHEMA a bare schema
(facts §3.1, bug 1).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from headrace.connectors.postgres.building import Name
from headrace.connectors.postgres.definition import Definition
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.model import TableId


def stored_names(definition: Definition, token: str) -> tuple[Name, ...]:
    """Names for the members of a table that moves away: unique, whatever else is stored."""
    schema = definition.table.schema
    return (
        *(Name("INDEX", schema, f"{token}_i{n}", x.name) for n, x in enumerate(definition.indexes)),
        *(
            Name("SEQUENCE", schema, f"{token}_q{n}", x.name)
            for n, x in enumerate(definition.identities)
        ),
        *(
            Name("STATISTICS", x.schema, f"{token}_s{n}", x.name)
            for n, x in enumerate(definition.statistics)
        ),
    )


def revoke(definition: Definition, granted: Collection[tuple[str, str, str]]) -> Iterator[str]:
    """Leave nobody but the owner a right, so that nobody reads it or is tied to it.

    `granted` is who has rights, as (kind, identity column, quoted role).
    """
    sequences = {item.column: item.name for item in definition.identities}
    for kind, identity, role in sorted(granted):
        if role != definition.owner:
            name = quoted(
                definition.table.schema, sequences[identity] if identity else definition.table.name
            )
            yield f"REVOKE ALL ON {kind} {name} FROM {role} CASCADE"


def move_away(table: TableId, names: Sequence[Name], to: TableId) -> Iterator[str]:
    """Rename a table's members and the table, and move it; indexes and sequences go with it."""
    for name in names:
        yield f"ALTER {name.kind} {quoted(name.schema, name.final)} RENAME TO {quoted(name.stored)}"
        if name.kind == "STATISTICS":
            stored = quoted(name.schema, name.stored)
            yield f"ALTER STATISTICS {stored} SET SCHEMA {quoted(to.schema)}"
    yield f"ALTER TABLE {qualified(table)} RENAME TO {quoted(to.name)}"
    yield f"ALTER TABLE {quoted(table.schema, to.name)} SET SCHEMA {quoted(to.schema)}"


def move_home(stored: TableId, names: Sequence[Name], table: TableId) -> Iterator[str]:
    """The reverse of `move_away`."""
    yield f"ALTER TABLE {qualified(stored)} SET SCHEMA {quoted(table.schema)}"
    yield f"ALTER TABLE {quoted(table.schema, stored.name)} RENAME TO {quoted(table.name)}"
    for name in names:
        if name.kind == "STATISTICS":
            away = quoted(stored.schema, name.stored)
            yield f"ALTER STATISTICS {away} SET SCHEMA {quoted(name.schema)}"
        yield f"ALTER {name.kind} {quoted(name.schema, name.stored)} RENAME TO {quoted(name.final)}"


def positions(definition: Definition, names: Sequence[Name], stored_in: str) -> Iterator[str]:
    """Identity sequences go on where those of the table that went away stand."""
    stored = {name.final: name.stored for name in names if name.kind == "SEQUENCE"}
    for item in definition.identities:
        now = quoted(definition.table.schema, item.name).replace("'", "''")
        before = quoted(stored_in, stored[item.name])
        yield (
            f"SELECT setval('{now}'::regclass, last_value, is_called) FROM {before}"  # noqa: S608
        )


def dress(definition: Definition, granted: Collection[tuple[str, str, str]]) -> Iterator[str]:
    """Owner and rights for a table that bears the name.

    `granted` is who has rights on it so far, by default privileges or from former times, as (kind,
    identity column, quoted role): they go, unless `definition` has them too.
    """
    yield f"ALTER TABLE {qualified(definition.table)} OWNER TO {definition.owner}"
    schema = definition.table.schema
    yield from _rights(definition, granted, "TABLE", "", definition.table)
    for item in definition.identities:
        sequence = TableId(schema, item.name)
        yield from _rights(definition, granted, "SEQUENCE", item.column, sequence)
        yield f"COMMENT ON SEQUENCE {qualified(sequence)} IS {item.comment}"
    for statistics in definition.statistics:
        name = quoted(statistics.schema, statistics.name)
        yield f"ALTER STATISTICS {name} OWNER TO {quoted(statistics.owner)}"
        yield f"COMMENT ON STATISTICS {name} IS {statistics.comment}"


def _rights(
    definition: Definition,
    granted: Collection[tuple[str, str, str]],
    kind: str,
    identity: str,
    name: TableId,
) -> Iterator[str]:
    owner, target = definition.owner, f"{kind} {qualified(name)}"
    grants = [g for g in definition.grants if (g.kind, g.identity) == (kind, identity)]
    strangers = {role for k, i, role in granted if (k, i) == (kind, identity)}
    whole = [grant for grant in grants if not grant.part]
    if whole or strangers:  # else both have what an owner has without any grant
        for role in sorted({*strangers, owner}):
            yield f"REVOKE ALL ON {target} FROM {role} CASCADE"
        if not whole:
            yield f"GRANT ALL ON {target} TO {owner}"
    for grant in grants:
        yield from grant.statements()
