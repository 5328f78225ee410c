"""A new generation of a table, built beside the live one in a schema that nobody else reads.

It is made like the live table, takes its rows without indexes, and then gets keys, indexes and
statistics. Rows pass through the triggers that shape them (BEFORE INSERT, FOR EACH ROW), as they
would in the live table; other triggers tell of changes, and a rebuild is none.

It is logged from the start: what is live must survive a crash of the server, and to load unlogged
and SET LOGGED before the indexes costs more than it saves (a million rows of four columns with two
indexes: 1.4 s and 161 MB of log, against 0.9 s and 113 MB).

Rows that only a whole table can show to be wrong (two under one unique key, a foreign key that
leads nowhere) are set aside in SQL, into tables of the same columns beside it, for the quarantine.

A crash leaves tables in WORK, each with a comment that says whose it is; `sweep` drops them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from headrace.connectors.postgres import records
from headrace.connectors.postgres.definition import (
    QUALIFIED_NAMES,
    Definition,
    Index,
    catalog_rows,
    read_definition,
)
from headrace.connectors.postgres.dependents import Dependents, ForeignKey, read_dependents
from headrace.connectors.postgres.identifiers import qualified, quoted, relation
from headrace.connectors.postgres.target_session import Connection, Cursor, only_row
from headrace.errors import DestinationUnavailableError, UnsuitableTableError, UnswappableError
from headrace.failpoints import hit
from headrace.model import TableId

WORK: Final = "headrace_work"
PREVIOUS: Final = "headrace_previous"

_SCHEMAS: Final = (
    f"CREATE SCHEMA IF NOT EXISTS {WORK}",
    f"COMMENT ON SCHEMA {WORK} IS 'Tables that Headrace is building; nobody else reads them'",
    f"CREATE SCHEMA IF NOT EXISTS {PREVIOUS}",
    f"COMMENT ON SCHEMA {PREVIOUS} IS 'Former generations of tables, for headrace undo'",
)
_SCHEMAS_MISSING: Final = (
    f"SELECT to_regnamespace('{WORK}') IS NULL OR to_regnamespace('{PREVIOUS}') IS NULL"
)

# LIKE takes the columns; what has a name of its own, or is faster later, is left out. 18 copies
# NOT NULL constraints with their names in any case.
_CREATE: Final = """
CREATE {persistence} TABLE {table} (LIKE {live} INCLUDING ALL EXCLUDING INDEXES
    EXCLUDING CONSTRAINTS EXCLUDING STATISTICS EXCLUDING COMMENTS) {method} {tablespace}
"""

# Index columns and expressions as text, to find rows that are equal under them.
_UNIQUE_TERMS: Final = """
SELECT ARRAY(SELECT pg_get_indexdef(x.indexrelid, n, true)
               FROM generate_series(1, x.indnkeyatts) n ORDER BY n),
       ARRAY(SELECT a.attname::text FROM unnest(x.indkey[0:x.indnkeyatts - 1]) AS n
               LEFT JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = n),
       pg_get_expr(x.indpred, x.indrelid),
       coalesce((to_jsonb(x) ->> 'indnullsnotdistinct')::boolean, false)
  FROM pg_index x WHERE x.indexrelid = $1::oid
"""

_LEFTOVERS: Final = """
SELECT c.relname, d.description
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_description d ON d.classoid = 'pg_class'::regclass AND d.objoid = c.oid AND d.objsubid = 0
 WHERE n.nspname = $1 AND c.relkind = 'r'
"""

# Sessions that look at the database as it was before now, and see no row of ours, or not all.
# A later transaction of the same session has another virtual id.
_SNAPSHOTS: Final = """
SELECT a.pid, l.virtualtransaction
  FROM pg_stat_activity a
  JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'virtualxid' AND l.granted
 WHERE a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid()
   AND a.datname = current_database()
   AND a.backend_type NOT IN ('autovacuum worker', 'walsender')
"""

# What no index can hold is found row by row in place: a value too long for it is among them.
_ROWS_TO_BLAME: Final = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.ProgrammingError,
    psycopg.errors.ProgramLimitExceeded,
)

Snapshots = frozenset[tuple[int, str]]
Connect = Callable[[], Connection]


@dataclass(frozen=True)
class Name:
    """A member of a table that has a name in a schema: how it is called for now, and finally."""

    kind: str  # INDEX, SEQUENCE or STATISTICS
    schema: str  # where it belongs
    stored: str
    final: str


@dataclass(frozen=True)
class Build:
    """A new generation of `live` under construction; `key` are the columns that identify rows."""

    live: TableId
    table: TableId
    definition: Definition
    dependents: Dependents
    key: tuple[str, ...]


@dataclass(frozen=True)
class SetAside:
    """Rows that were taken out of a build: a table with the same columns, and why."""

    table: TableId
    code: str  # duplicate_key, unique_violation or foreign_key_violation
    reason: str
    rows: int
    foreign_key: str = ""  # its name, where it is one that leads nowhere


@dataclass(frozen=True)
class Built:
    """A build that is ready to be swapped in. Whoever holds one of `snapshots` cannot see it."""

    build: Build
    names: tuple[Name, ...]
    set_aside: tuple[SetAside, ...]
    snapshots: Snapshots


def begin(connection: Connection, live: TableId, pipeline: str, key: Sequence[str]) -> Build:
    """Make an empty table like the live one; what a crash left of an earlier build of it goes.

    Raises:
        UnsuitableTableError: there is no such table.
        UnswappableError: the server refuses to make one like it.
    """
    token = f"t{secrets.token_hex(6)}"
    table = TableId(WORK, token)
    with connection.transaction(), connection.cursor() as cursor:
        _make_schemas(cursor)
        cursor.execute(QUALIFIED_NAMES)
        _drop_leftovers(cursor, lambda owner: owner.get("table") == [live.schema, live.name])
        definition = read_definition(cursor, live)
        if definition is None:
            raise UnsuitableTableError(
                f"{live} does not exist", hint=f"headrace resync {live}", table=str(live)
            )
        dependents = read_dependents(cursor, definition.oid)
        build = Build(live, table, definition, dependents, tuple(key))
        try:
            _create(cursor, build, pipeline)
        except psycopg.Error as error:
            raise unswappable(live, error) from error
    return build


def _make_schemas(cursor: Cursor) -> None:
    missing = cursor.execute(_SCHEMAS_MISSING.encode()).fetchone()
    records.ensure(cursor, *(_SCHEMAS if missing and missing[0] else ()))


def _create(cursor: Cursor, build: Build, pipeline: str) -> None:
    like = build.definition
    space = like.tablespace and sql.SQL("TABLESPACE {}").format(sql.Identifier(like.tablespace))
    method = like.access_method and sql.SQL("USING {}").format(sql.Identifier(like.access_method))
    cursor.execute(
        sql.SQL(_CREATE).format(
            persistence=sql.SQL("UNLOGGED" if like.persistence == "u" else ""),
            table=relation(build.table),
            live=relation(build.live),
            method=method or sql.SQL(""),
            tablespace=space or sql.SQL(""),
        )
    )
    mark(cursor, build.table, build.live, pipeline)
    for action in like.actions:
        _alter(cursor, "TABLE", build.table, action)
    for before, after in like.shaping:
        cursor.execute(f"{before} ON {qualified(build.table)} {after}".encode())
    made = read_definition(cursor, build.table)
    for old, new in zip(like.identities, made.identities if made else (), strict=True):
        if new.type != old.type:
            _alter(cursor, "SEQUENCE", TableId(WORK, new.name), f"AS {old.type}")


def mark(cursor: Cursor, table: TableId, live: TableId, pipeline: str) -> None:
    """Say in a table's comment that it is a build, whose and of what."""
    owner = json.dumps({"pipeline": pipeline, "table": [live.schema, live.name]})
    cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(relation(table), sql.Literal(owner)))


def sweep(connection: Connection, pipeline: str) -> int:
    """Drop what crashed builds of a pipeline left; how many tables. Nothing else is touched."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(QUALIFIED_NAMES)
        return _drop_leftovers(cursor, lambda owner: owner.get("pipeline") == pipeline)


def discard(connection: Connection, build: Build) -> None:
    """Drop a build that will not be swapped in; nothing happens if it is gone."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(QUALIFIED_NAMES)
        live = [build.live.schema, build.live.name]
        _drop_leftovers(cursor, lambda owner: owner.get("table") == live)


def _drop_leftovers(cursor: Cursor, ours: Callable[[dict[str, object]], bool]) -> int:
    found = [
        name
        for name, comment in catalog_rows(cursor, _LEFTOVERS, WORK)
        if comment.startswith("{") and ours(json.loads(comment))
    ]
    for name in found:
        cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(WORK, name)))
    return len(found)


# -- when the rows are in --------------------------------------------------------------------------


def finish(connect: Connect, build: Build, pipeline: str, connections: int) -> Built:
    """Build keys, indexes and statistics; set aside the rows that they rule out.

    Raises:
        UnswappableError: rows of other tables refer to rows that are not in the build, or an index
            cannot be built over its rows; the live table is to be changed in place instead.
    """
    with connect() as connection:
        aside = _Aside(connection, build, pipeline)
        numbered = [(index, f"{build.table.name}_i{n}") for n, index in enumerate(_indexes(build))]
        try:
            for index, name in numbered:
                if index.unique:
                    _build_unique(connection, build, index, name, aside)
            _set_orphans_aside(build, aside)
            _refuse_orphaned(connection, build)
            _build_indexes(connect, connection, build, numbered, connections)
            names = _complete(connection, build, numbered)
        except _ROWS_TO_BLAME as error:
            raise unswappable(build.live, error) from error
        hit("postgres.built")
        return Built(build, names, tuple(aside.found), snapshots(connection))


def _indexes(build: Build) -> tuple[Index, ...]:
    return build.definition.indexes


def _build_unique(
    connection: Connection, build: Build, index: Index, name: str, aside: _Aside
) -> None:
    try:
        build_index(connection, build, index, name)
    except psycopg.errors.UniqueViolation:
        aside.duplicates(index)
        build_index(connection, build, index, name)


def build_index(connection: Connection, build: Build, index: Index, name: str) -> None:
    """One CREATE INDEX; an empty default_tablespace is the database's own."""
    unique = "UNIQUE " if index.unique else ""
    with connection.transaction(), connection.cursor() as cursor:
        space = sql.Literal(index.tablespace or "")
        cursor.execute(sql.SQL("SET LOCAL default_tablespace TO {}").format(space))
        head = f"CREATE {unique}INDEX {quoted(name)} ON {quoted(WORK)}.{build.table.name}"
        cursor.execute(f"{head} {index.definition}".encode())


def _build_indexes(
    connect: Connect,
    connection: Connection,
    build: Build,
    numbered: Sequence[tuple[Index, str]],
    connections: int,
) -> None:
    """Those that no row can break, side by side: CREATE INDEX takes a lock that it shares.

    What the server has no connections left for is built on `connection`, one after another.
    """
    todo = [(index, name) for index, name in numbered if not index.unique]
    left: list[tuple[Index, str]] = []

    def build_one(item: tuple[Index, str]) -> None:
        try:
            more = connect()
        except DestinationUnavailableError:
            left.append(item)
            return
        with more:
            build_index(more, build, *item)

    with ThreadPoolExecutor(max(1, min(connections, len(todo))), "headrace-index") as pool:
        list(pool.map(build_one, todo))
    for item in left:
        build_index(connection, build, *item)


def _complete(
    connection: Connection, build: Build, numbered: Sequence[tuple[Index, str]]
) -> tuple[Name, ...]:
    like, live = build.definition, build.live
    names = [Name("INDEX", live.schema, stored, index.name) for index, stored in numbered]
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(QUALIFIED_NAMES)
        for index, stored in numbered:
            if index.constraint:
                action = f"ADD {index.constraint} USING INDEX {quoted(stored)} {index.deferral}"
                _alter(cursor, "TABLE", build.table, action)
            for action in index.settings:
                _alter(cursor, "INDEX", TableId(WORK, stored), action)
        for number, item in enumerate(like.statistics):
            stored = f"{build.table.name}_s{number}"
            names.append(Name("STATISTICS", item.schema, stored, item.name))
            cursor.execute(
                f"CREATE STATISTICS {WORK}.{stored} {item.definition} "
                f"FROM {WORK}.{build.table.name}".encode()
            )
            if item.target is not None:
                action = f"SET STATISTICS {item.target}"
                _alter(cursor, "STATISTICS", TableId(WORK, stored), action)
        made = read_definition(cursor, build.table)
    assert made is not None
    for old, new in zip(like.identities, made.identities, strict=True):
        names.append(Name("SEQUENCE", live.schema, new.name, old.name))
    connection.execute(sql.SQL("ANALYZE {}").format(relation(build.table)))
    return tuple(names)


class _Aside:
    """Takes rows out of a build."""

    def __init__(self, connection: Connection, build: Build, pipeline: str) -> None:
        self._connection = connection
        self._build = build
        self._pipeline = pipeline
        self.found: list[SetAside] = []

    def duplicates(self, index: Index) -> None:
        """All rows that stand under one key of a unique index with another one."""
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(QUALIFIED_NAMES)
            found = catalog_rows(cursor, _UNIQUE_TERMS, index.oid)[0]
        terms, names, predicate, nulls_equal = found
        filled = [] if nulls_equal else [f"({term}) IS NOT NULL" for term in terms]
        where = " AND ".join([*([f"({predicate})"] if predicate else []), *filled]) or "true"
        by = ", ".join(f"({term})" for term in terms)
        doubled = (
            "SELECT place FROM (SELECT ctid AS place, count(*) OVER "  # noqa: S608
            f"(PARTITION BY {by}) AS n FROM {WORK}.{self._build.table.name} "
            f"WHERE {where}) counted WHERE n > 1"
        )
        is_key = set(names) == set(self._build.key) and predicate is None
        columns = ", ".join(terms)
        self._take(
            f"ctid IN ({doubled})",
            "duplicate_key" if is_key else "unique_violation",
            f"several rows of the source have the same {columns} "
            f"(unique index {index.name} of {self._build.live})",
        )

    def orphans(self, key: ForeignKey) -> int:
        """Rows whose foreign key leads nowhere; how many."""
        return self._take(
            orphans(key, self._build),
            "foreign_key_violation",
            f"no row of {key.parent} is what this row refers to (foreign key {key.name})",
            key.plain_name,
        )

    def _take(self, condition: str, code: str, reason: str, foreign_key: str = "") -> int:
        build = self._build
        aside = TableId(WORK, f"{build.table.name}_r{len(self.found)}")
        source, to = qualified(build.table), qualified(aside)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            exist = f"SELECT EXISTS (SELECT FROM {source} f WHERE {condition})"  # noqa: S608
            if cursor.execute(exist.encode()).fetchone() == (False,):
                return 0
            cursor.execute(f"CREATE TABLE {to} (LIKE {source})".encode())
            mark(cursor, aside, build.live, self._pipeline)
            take = f"""
                WITH taken AS (DELETE FROM {source} f WHERE {condition} RETURNING f.*)
                INSERT INTO {to} SELECT * FROM taken"""  # noqa: S608  # quoted, or the server's
            rows = cursor.execute(take.encode()).rowcount
        self.found.append(SetAside(aside, code, reason, rows, foreign_key))
        return rows


def orphans(key: ForeignKey, build: Build) -> str:
    """The condition on a referencing row f that the build lacks what it refers to."""
    parent = qualified(build.table) if key.inward else key.parent
    return f"{key.filled} AND NOT EXISTS (SELECT FROM {parent} p WHERE {key.match})"


def _set_orphans_aside(build: Build, aside: _Aside) -> None:
    """Taking one row out may orphan another, until nothing moves any more."""
    outward = [key for key in build.dependents.foreign_keys if key.outward and key.enforced]
    while sum(aside.orphans(key) for key in outward):
        pass


def _refuse_orphaned(connection: Connection, build: Build) -> None:
    for key in build.dependents.foreign_keys:
        if key.inward and not key.outward and key.valid:
            query = f"SELECT EXISTS (SELECT FROM {key.table} f WHERE {orphans(key, build)})"  # noqa: S608
            found = connection.execute(query.encode()).fetchone()
            if found and found[0]:
                raise UnswappableError(
                    f"{build.live} cannot be swapped: rows of {key.table} refer to rows that the "
                    f"source no longer has (foreign key {key.name})",
                    hint="its rows are changed in place instead, where ON DELETE decides",
                    table=str(build.live),
                )


def snapshots(connection: Connection) -> Snapshots:
    """The snapshots that sessions of this database hold now, each known by its transaction."""
    return frozenset(connection.execute(_SNAPSHOTS.encode()).fetchall())


def run_script(cursor: Cursor, statements: Iterable[str]) -> None:
    """Run statements in one round trip."""
    script = ";\n".join(statements)
    if script:
        cursor.execute(script.encode())


def table_oid(cursor: Cursor, table: TableId) -> int:
    """The oid of a table that is there."""
    found = cursor.execute("SELECT %s::regclass::oid::bigint", [qualified(table)])
    return int(only_row(found)[0])


def _alter(cursor: Cursor, kind: str, name: TableId, action: str) -> None:
    cursor.execute(f"ALTER {kind} {qualified(name)} {action}".encode())


def unswappable(live: TableId, error: psycopg.Error) -> UnswappableError:
    """What the server refused, as a reason to change the live table in place."""
    return UnswappableError(
        f"a new generation of {live} cannot be built: {str(error).strip()}",
        hint="its rows are changed in place instead",
        table=str(live),
    )
