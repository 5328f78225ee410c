"""Which version of a table's schema a Relation message means.

A Relation tells names, types and identity as of its transaction; the catalog, read now, adds what
the message lacks: attribute numbers (see `attribution`), the primary key under REPLICA IDENTITY
FULL, and the constant that rows older than an added column have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final, Self

import psycopg
import pyarrow as pa

from headrace.connectors.postgres.attribution import (
    AmbiguousColumnsError,
    KnownColumns,
    attribute_numbers,
)
from headrace.connectors.postgres.catalog import (
    MISSING,
    NO_WISHES,
    DescribedTable,
    ReadAs,
    TypeCatalog,
    composite_fields,
    read_table_schema,
)
from headrace.connectors.postgres.decoding import BoundSchema
from headrace.connectors.postgres.types import TypeMapping, mapping
from headrace.errors import UnsupportedSchemaChangeError
from headrace.model import Column, ReplicaIdentity, TableId, TableSchema
from headrace.model.widening import is_widening
from headrace.pgoutput import Relation
from headrace.pgoutput.messages import RelationColumn

Connection = psycopg.Connection[Any]

# Columns whose value in older rows nobody can tell: the default was computed row by row, by
# rewriting the table, which logical decoding does not show. A constant one is in attmissingval.
_COMPUTED_COLUMNS: Final = """
SELECT a.attname FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = %s AND a.attnum = ANY (%s) AND NOT a.attisdropped
   AND ((a.atthasdef AND ({missing}) IS NULL) OR a.attidentity <> '')
"""
COMPUTED_COLUMNS: Final = _COMPUTED_COLUMNS.format(missing=MISSING)

NUMBERS: Final = """
SELECT attnum, attname, attisdropped FROM pg_catalog.pg_attribute
 WHERE attrelid = %s AND attnum > 0
"""


class CatalogSession:
    """What Relations that came together are looked up by: one session, opened at first need.

    A session of its own for each would be most of what 250 tables take that begin to change.
    """

    def __init__(self, connect: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._connect = connect
        self._open = ExitStack()
        self._connection: Connection | None = None
        self._types: TypeCatalog | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextmanager
    def use(self) -> Iterator[Connection]:
        """The session. An error inside ends it, and comes out as one of ours."""
        connection, self._connection = self._connection, None
        with self._open.pop_all() as ending:
            if connection is None:
                connection = ending.enter_context(self._connect())
                self._types = None
            yield connection
            self._open, self._connection = ending.pop_all(), connection

    def types(self, connection: Connection) -> TypeCatalog:
        """All types, read after the Relations have come."""
        if self._types is None:
            self._types = TypeCatalog.read(connection)
        return self._types


class SchemaRegistry:
    """All schema versions of a capture's tables; used by the stream and by snapshots together.

    `connect` opens a short catalog session. `known` holds the newest version of each table that the
    log has. Tables that nobody selected are not `wanted`; one that was given up is not, either,
    until a snapshot takes it up again. `read_as` says by table and column how values are read.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Connection]],
        publication: str,
        known: Mapping[TableId, TableSchema],
        selected: Collection[TableId],
        read_as: Mapping[TableId, ReadAs] | None = None,
    ) -> None:
        self._connect = connect
        self._read_as = read_as or {}
        self._publication = publication
        self._newest = dict(known)
        self._streamed: dict[TableId, TableSchema] = {}  # a snapshot's may be ahead of it
        self._wanted = set(selected)
        self._begun_anew: set[TableId] = set()  # followed again, and not yet read
        self._bound: dict[int, tuple[Relation, BoundSchema]] = {}  # by the relation's oid
        self._lock = threading.Lock()

    def wanted(self, table: TableId) -> bool:
        return table in self._wanted

    def give_up(self, table: TableId) -> None:
        """Skip this table's changes from now on; should it be followed again, it is read anew."""
        with self._lock:
            self._wanted.discard(table)
            stale = [oid for oid, (_, bound) in self._bound.items() if bound.schema.table == table]
            for oid in stale:
                del self._bound[oid]

    def take_up(self, table: TableId) -> None:
        """Follow a table, if it was given up, from a moment before a snapshot of it is opened: what
        commits after that must not be skipped, though `of_table` has not been asked yet."""
        with self._lock:
            if table not in self._wanted:
                self._streamed.pop(table, None)
                self._begun_anew.add(table)
                self._wanted.add(table)

    def catalog(self) -> CatalogSession:
        """For Relations that have come, and not for those that come later."""
        return CatalogSession(self._connect)

    def of_relation(self, relation: Relation, catalog: CatalogSession) -> BoundSchema:
        """The version that rows under this Relation message have.

        A message that tells the same as the one before still may mean other columns: one was
        dropped, and another one took its name. Of composite types no message tells at all: they
        are looked at each time, so that no row is read by other attributes than it has.

        Raises:
            UnsupportedSchemaChangeError: a column was added whose old rows' values nobody told, or
                nobody can tell which column has a name, or a composite type has other attributes.
        """
        with self._lock:
            latest = self._bound.get(relation.relation_id)
            if latest is not None:
                _require_composites(catalog, latest[1])
            if latest is not None and latest[0] is relation:
                return latest[1]
            with catalog.use() as connection:
                same = latest is not None and latest[0] == relation
                if latest is None or not (same and _stands(connection, relation, latest[1])):
                    types = catalog.types(connection)
                    latest = (relation, self._bind(connection, types, relation))
            self._bound[relation.relation_id] = (relation, latest[1])
            self._streamed[latest[1].schema.table] = latest[1].schema
            return latest[1]

    def provisional(self, relation: Relation, catalog: CatalogSession) -> BoundSchema | None:
        """The version that rows of a transaction in progress seem to have; None: nobody can tell.

        That is so where the table looks other than it last did. Nothing is concluded here:
        `of_relation` does, and may find something else, when the transaction has committed. The
        table itself is not asked for, since the transaction may hold a lock on it.
        """
        table = TableId(relation.namespace, relation.name)
        with self._lock:
            latest = self._bound.get(relation.relation_id)
            if latest is not None:
                return latest[1] if latest[0] == relation else None
            known = self._streamed.get(table) or self._newest.get(table)
            if known is None:
                return None
            with catalog.use() as connection:
                types = catalog.types(connection)
                return _as_known(types, relation, known, self._wishes(table))

    def of_table(self, connection: Connection, types: TypeCatalog, table: TableId) -> BoundSchema:
        """The version that the catalog shows in this session's snapshot."""
        with self._lock:
            live = read_table_schema(
                connection,
                types,
                table,
                publication=self._publication,
                read_as=self._wishes(table),
            )
            self._begun_anew.discard(table)
            versioned = self._versioned(live.schema, self._newest.get(table))
            return BoundSchema(versioned, live.mappings)

    def _wishes(self, table: TableId) -> ReadAs:
        return self._read_as.get(table, NO_WISHES)

    def _bind(self, connection: Connection, types: TypeCatalog, relation: Relation) -> BoundSchema:
        table = TableId(relation.namespace, relation.name)
        former = self._streamed.get(table)
        if former is None and table not in self._begun_anew:  # whose older rows are not kept
            former = self._newest.get(table)
        live = read_table_schema(
            connection,
            types,
            table,
            publication=self._publication,
            read_as=self._wishes(table),
            missing_ok=True,
        )
        known = _known_columns(connection, relation, former, live)
        schema, mappings = _describe(types, table, relation, live, known, self._wishes(table))
        if former is not None:
            added = [c.attnum for c in schema.columns if former.counterpart(c) is None]
            _refuse_computed(connection, relation, table, added)
        return BoundSchema(self._versioned(schema, former), mappings)

    def _versioned(self, schema: TableSchema, former: TableSchema | None) -> TableSchema:
        newest = self._newest.get(schema.table)
        if newest is not None and newest.same_shape(schema):
            return newest
        version = 1 if newest is None else newest.version + 1
        versioned = replace(schema, version=version, missing=_missing(schema, former))
        self._newest[schema.table] = versioned
        return versioned


def _as_known(
    types: TypeCatalog, relation: Relation, known: TableSchema, read_as: ReadAs
) -> BoundSchema | None:
    """`known`, if a Relation tells of the same columns, identity and key."""
    looks = [(c.name, types.format(c.type_oid, c.type_modifier)) for c in relation.columns]
    if looks != [(c.name, c.source_type) for c in known.columns]:
        return None
    identity = ReplicaIdentity(relation.replica_identity)
    flagged = {column.name for column in relation.columns if column.is_key}
    if identity is not known.identity or not flagged.issuperset(known.key):
        return None
    pairs = [
        _column(types, told, column.attnum, None, read_as.get(told.name, ""))
        for told, column in zip(relation.columns, known.columns, strict=True)
    ]
    if any(
        found.type != column.type for (found, _), column in zip(pairs, known.columns, strict=True)
    ):
        return None
    return BoundSchema(known, tuple(mapped for _, mapped in pairs))


def _require_composites(catalog: CatalogSession, bound: BoundSchema) -> None:
    """ALTER TYPE … ATTRIBUTE rewrites no row: the same text means something else from then on."""
    held = [(at, each) for at, mapped in enumerate(bound.mappings) for each in mapped.composites]
    if not held:
        return
    with catalog.use() as connection:
        for at, composite in held:
            if tuple(composite_fields(connection, composite.relation)) != composite.fields:
                table = bound.schema.table
                raise UnsupportedSchemaChangeError(
                    f"{table}: column {bound.schema.names[at]!r}: its composite type was altered, "
                    "and Postgres does not tell which rows came before and which after",
                    hint=f"headrace resync {table}",
                )


def _stands(connection: Connection, relation: Relation, bound: BoundSchema) -> bool:
    """Whether the names still are those of the columns that they were."""
    rows = connection.execute(NUMBERS, (relation.relation_id,)).fetchall()
    numbers = {name: number for number, name, dropped in rows if not dropped}
    return all(numbers.get(column.name) == column.attnum for column in bound.schema.columns)


def _refuse_computed(
    connection: Connection, relation: Relation, table: TableId, added: Sequence[int]
) -> None:
    found = connection.execute(COMPUTED_COLUMNS, (relation.relation_id, [*added])).fetchone()
    if found is not None:
        raise UnsupportedSchemaChangeError(
            f"{table}: column {found[0]!r} was added with a default that may differ "
            "from row to row; the stream does not tell what older rows have",
            hint=f"headrace resync {table}",
        )


def _missing(schema: TableSchema, former: TableSchema | None) -> dict[str, pa.Scalar]:
    """The constants that rows older than a column have, under the columns' names of now."""
    if former is None:
        return {}
    found = {}
    for column in schema.columns:
        before = former.counterpart(column)
        value = (schema if before is None else former).missing.get((before or column).name)
        if value is not None and value.type != column.type:
            value = value.cast(column.type) if is_widening(value.type, column.type) else None
        if value is not None:
            found[column.name] = value
    return found


def _known_columns(
    connection: Connection,
    relation: Relation,
    former: TableSchema | None,
    live: DescribedTable | None,
) -> KnownColumns:
    rows = connection.execute(NUMBERS, (relation.relation_id,)).fetchall()
    dropped = [number for number, _, is_dropped in rows if is_dropped]
    return KnownColumns(_looks(former), _looks(live.schema if live else None), dropped)


def _looks(schema: TableSchema | None) -> dict[int, tuple[str, str]]:
    columns = schema.columns if schema is not None else ()
    return {c.attnum: (c.name, c.source_type) for c in columns if c.attnum}


def _describe(
    types: TypeCatalog,
    table: TableId,
    relation: Relation,
    live: DescribedTable | None,
    known: KnownColumns,
    read_as: ReadAs,
) -> tuple[TableSchema, tuple[TypeMapping, ...]]:
    """A Relation's schema: from the catalog as far as it still is the same, else by itself."""
    looks = [(c.name, types.format(c.type_oid, c.type_modifier)) for c in relation.columns]
    try:
        numbers = attribute_numbers(looks, known)
    except AmbiguousColumnsError as error:
        names = ", ".join(name for name, _ in looks if (name, _) not in known.former.values())
        raise _ambiguous(table, names) from error
    if numbers is None:
        numbers = tuple(_number_by_name(known, look) for look in looks)
    pairs = [
        _column(types, column, number, live, read_as.get(column.name, ""))
        for column, number in zip(relation.columns, numbers, strict=True)
    ]
    columns = tuple(column for column, _ in pairs)
    identity = ReplicaIdentity(relation.replica_identity)
    key = _key(relation, identity, _live_key(live, columns))
    return TableSchema(table, 0, columns, key, identity, _constants(live, columns)), tuple(
        m for _, m in pairs
    )


def _number_by_name(known: KnownColumns, look: tuple[str, str]) -> int:
    return next((n for n, c in {**known.former, **known.live}.items() if c == look), 0)


def _ambiguous(table: TableId, names: str) -> UnsupportedSchemaChangeError:
    about = f" ({names})" if names else ""
    return UnsupportedSchemaChangeError(
        f"{table}: columns{about} were dropped and added anew or renamed, and Postgres does not "
        "tell which of them the changes since then are about",
        hint=f"headrace resync {table}",
    )


def _live_key(live: DescribedTable | None, columns: Sequence[Column]) -> tuple[str, ...]:
    """The catalog's key by the names that its columns had."""
    if live is None:
        return ()
    now = {column.name: column.attnum for column in live.schema.columns}
    then = {column.attnum: column.name for column in columns}
    return tuple(then.get(now[name], name) for name in live.schema.key if name in now)


def _constants(live: DescribedTable | None, columns: Sequence[Column]) -> dict[str, pa.Scalar]:
    """What rows older than a column have, by the names that the columns had."""
    if live is None:
        return {}
    named = {column.attnum: column.name for column in live.schema.columns}
    missing = live.schema.missing
    return {
        column.name: missing[named[column.attnum]]
        for column in columns
        if named.get(column.attnum) in missing
    }


def _column(
    types: TypeCatalog,
    column: RelationColumn,
    number: int,
    live: DescribedTable | None,
    read_as: str,
) -> tuple[Column, TypeMapping]:
    for index, same in enumerate(live.columns if live is not None else ()):
        if same.attnum == number and (same.type_oid, same.typmod) == (
            column.type_oid,
            column.type_modifier,
        ):
            assert live is not None
            found = replace(live.schema.columns[index], name=column.name)
            return found, live.mappings[index]
    mapped = mapping(column.type_oid, column.type_modifier, types, read_as=read_as)
    source_type = types.format(column.type_oid, column.type_modifier)
    return Column(column.name, mapped.arrow, source_type, number), mapped


def _key(relation: Relation, identity: ReplicaIdentity, live: tuple[str, ...]) -> tuple[str, ...]:
    """The catalog's key, in its order, where the stream's old rows have it; else the stream's.

    Under NOTHING there are no old rows, as the server refuses what would need them.
    """
    if identity is ReplicaIdentity.NOTHING:
        return live
    full = identity is ReplicaIdentity.FULL  # which flags every column
    sent = {column.name for column in relation.columns if full or column.is_key}
    if live and sent.issuperset(live):
        return live
    return () if full else tuple(c.name for c in relation.columns if c.is_key)
