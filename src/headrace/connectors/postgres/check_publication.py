"""Preflight of the publication: there, with every table, every operation, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from headrace.connectors.postgres.check_server import Role
from headrace.connectors.postgres.check_tables import Table, names, shown
from headrace.connectors.postgres.identifiers import qualified, quoted
from headrace.connectors.postgres.published import without_waiting
from headrace.model import TableId
from headrace.model.finding import Finding, Severity

CREATED_BY_US: Final = "created by headrace"  # the comment by which destroy knows its own

SEND_GENERATED: Final = "publish_generated_columns = stored"

OPERATIONS: Final = ("insert", "update", "delete", "truncate")

# age() counts transactions since the row was written last: by CREATE or ALTER PUBLICATION.
PUBLICATION: Final = """
SELECT p.pubname::text AS name, pg_catalog.age(p.xmin) AS age,
       pg_catalog.to_jsonb(p) ? 'pubgencols' AS may_send_generated,
       pg_catalog.pg_has_role(p.pubowner, 'USAGE') AS owned,
       p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot AS via_root
  FROM pg_catalog.pg_publication p
 WHERE p.pubname = %s
"""

# The tables under whose names changes are sent, be they named, of a schema, or all; as JSON,
# because rowfilter and attnames came with 15. `identity` says of columns left out that some are
# needed to tell old rows: the server then refuses updates and deletes. Generated columns are listed
# but not sent before 18, and stored ones are sent on demand from then on.
PUBLISHED: Final = """
SELECT t.schemaname::text AS schema, t.tablename::text AS name,
       coalesce(pg_catalog.to_jsonb(t) ->> 'rowfilter', '') AS row_filter,
       left_out.columns AS left_out, left_out.identity AS identity_left_out,
       generated.columns AS generated, generated.stored AS generated_stored,
       generated.identity AS identity_generated
  FROM pg_catalog.pg_publication_tables t
  JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
  LEFT JOIN pg_catalog.pg_index i
    ON i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
   AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END
 CROSS JOIN LATERAL (
       SELECT coalesce(pg_catalog.array_agg(a.attname::text ORDER BY a.attnum), '{}') AS columns,
              coalesce(pg_catalog.bool_or(c.relreplident = 'f'
                                          OR a.attnum = ANY (i.indkey::int2[])), false) AS identity
         FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
          AND NOT pg_catalog.jsonb_exists(pg_catalog.to_jsonb(t) -> 'attnames', a.attname)
       ) AS left_out
 CROSS JOIN LATERAL (
       SELECT coalesce(pg_catalog.array_agg(a.attname::text ORDER BY a.attnum), '{}') AS columns,
              coalesce(pg_catalog.bool_or(a.attgenerated = 's'), false) AS stored,
              coalesce(pg_catalog.bool_or(a.attgenerated = 's'
                                          AND (c.relreplident = 'f'
                                               OR a.attnum = ANY (i.indkey::int2[]))),
                       false) AS identity
         FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> ''
          AND (pg_catalog.current_setting('server_version_num')::int < 180000
               OR NOT pg_catalog.jsonb_exists(pg_catalog.to_jsonb(t) -> 'attnames', a.attname))
       ) AS generated
 WHERE t.pubname = %s
 ORDER BY 1, 2
"""

# The tables that the publication names itself: a partitioned one without publish_via_partition_root
# is such, though changes are sent under its partitions' names.
MEMBERS: Final = """
SELECT n.nspname::text, c.relname::text
  FROM pg_catalog.pg_publication p
  JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid
  JOIN pg_catalog.pg_class c ON c.oid = r.prrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE p.pubname = %s
"""


@dataclass(frozen=True)
class _PublicationRow:
    name: str
    age: int
    may_send_generated: bool
    owned: bool
    pubinsert: bool
    pubupdate: bool
    pubdelete: bool
    pubtruncate: bool
    via_root: bool


@dataclass(frozen=True)
class PublishedTable:
    """A row of PUBLISHED; `left_out` are the columns that are not sent, `generated` those of them
    that the server computes, and `identity_…` says that the replica identity has some."""

    schema: str
    name: str
    row_filter: str
    left_out: Sequence[str]
    identity_left_out: bool
    generated: Sequence[str]
    generated_stored: bool
    identity_generated: bool

    @property
    def table(self) -> TableId:
        return TableId(self.schema, self.name)


@dataclass(frozen=True)
class Publication:
    """A publication. `age` in transactions since its row was written; `owned`: we may alter it.

    `tables` are what changes are sent as, `members` what was named when it was made. From 18 on it
    `may_send_generated` columns, if they are stored.
    """

    name: str
    age: int
    may_send_generated: bool
    owned: bool
    operations: frozenset[str]
    via_root: bool
    tables: tuple[PublishedTable, ...]
    members: frozenset[TableId]


def read_publication(session: psycopg.Connection[Any], name: str) -> Publication | None:
    with session.cursor(row_factory=class_row(_PublicationRow)) as cursor:
        row = cursor.execute(PUBLICATION, (name,)).fetchone()
    if row is None:
        return None
    with session.cursor(row_factory=class_row(PublishedTable)) as published:
        query = without_waiting(PUBLISHED, session.info.server_version)
        tables = tuple(published.execute(query, (name,)))
    flags = (row.pubinsert, row.pubupdate, row.pubdelete, row.pubtruncate)
    return Publication(
        name,
        row.age,
        row.may_send_generated,
        row.owned,
        frozenset(operation for operation, on in zip(OPERATIONS, flags, strict=True) if on),
        row.via_root,
        tables,
        frozenset(TableId(*member) for member in session.execute(MEMBERS, (name,))),
    )


# -- findings --------------------------------------------------------------------------------------


def publication_findings(
    name: str, publication: Publication | None, tables: Sequence[Table], role: Role
) -> list[Finding]:
    """What the publication lacks; `tables` may hold some that cannot be published at all."""
    publishable = [table for table in tables if table.publishable]
    if publication is None:
        return [_absent(name, publishable, role)]
    found = [
        *_operations(publication),
        *_root(publication, publishable),
        *_partitions(publication, publishable),
        *_unpublished(publication, publishable, role),
        *_restrictions(publication, publishable),
        *_generated(publication, publishable),
    ]
    whole = f"publication {name!r} sends every table and operation"
    return found or [Finding(Severity.OK, "publication", whole, (name,))]


def _absent(name: str, tables: Sequence[Table], role: Role) -> Finding:
    """CREATE PUBLICATION asks for CREATE on the database and for ownership of each table."""
    foreign = names(table.table for table in tables if not table.owned)
    safe = role.may_create and not foreign
    lacking = [
        *([] if role.may_create else [f"CREATE on database {role.database}"]),
        *([f"ownership of {', '.join(foreign)}"] if foreign else []),
    ]
    return Finding(
        Severity.BLOCKER,
        "publication-missing",
        f"publication {name!r} does not exist",
        (name,),
        f"role {role.quoted} lacks {' and '.join(lacking)}" if lacking else "",
        "headrace check --fix creates it" if safe else "have an administrator run this SQL",
        (_create(name, tables), _comment(name)),
        safe,
    )


def _create(name: str, tables: Sequence[Table]) -> str:
    listed = f" FOR TABLE {_listed(tables)}" if tables else ""
    generated = f", {SEND_GENERATED}" if any(table.generates for table in tables) else ""
    options = f"publish_via_partition_root = true{generated}"
    return f"CREATE PUBLICATION {quoted(name)}{listed} WITH ({options})"


def _comment(name: str) -> str:
    comment = sql.Literal(CREATED_BY_US).as_string(None)
    return f"COMMENT ON PUBLICATION {quoted(name)} IS {comment}"


def _operations(publication: Publication) -> list[Finding]:
    missing = [each for each in OPERATIONS if each not in publication.operations]
    if not missing:
        return []
    alter = _alter(publication, f"SET (publish = '{', '.join(OPERATIONS)}')")
    return [
        Finding(
            Severity.BLOCKER,
            "publication-operations",
            f"publication {publication.name!r} does not send {', '.join(missing)}: "
            "the destination would go astray",
            (publication.name,),
            f"publish = '{', '.join(each for each in OPERATIONS if each not in missing)}'",
            f"as owner of the publication: {alter}",
            (alter,),
        )
    ]


def _root(publication: Publication, tables: Sequence[Table]) -> list[Finding]:
    partitioned = names(table.table for table in tables if table.partitioned)
    if publication.via_root or not partitioned:
        return []
    alter = _alter(publication, "SET (publish_via_partition_root = true)")
    return [
        Finding(
            Severity.BLOCKER,
            "publication-root",
            f"publication {publication.name!r} sends changes of {shown(partitioned)} under "
            "the names of their partitions",
            partitioned,
            "publish_via_partition_root = false",
            f"as owner of the publication: {alter}",
            (alter,),
        )
    ]


def _partitions(publication: Publication, tables: Sequence[Table]) -> list[Finding]:
    """Partitions wanted by themselves, whose changes come under a table they are part of."""
    published = {each.table for each in publication.tables}
    under = [table for table in tables if table.ancestors & published]
    if not under:
        return []
    return [
        Finding(
            Severity.BLOCKER,
            "publication-partition",
            f"publication {publication.name!r} sends changes of these partitions under the names "
            "of the tables they are part of",
            names(table.table for table in under),
            "; ".join(
                f"{table.table}: part of {', '.join(sorted(names(table.ancestors & published)))}"
                for table in under
            ),
            "name the partitioned table under tables: in headrace.yaml instead",
        )
    ]


def _unpublished(publication: Publication, tables: Sequence[Table], role: Role) -> list[Finding]:
    published = {each.table for each in publication.tables}
    known = published | publication.members
    missing = [
        table
        for table in tables
        if table.table not in known
        and not (table.ancestors & published)
        and not (table.partitioned and published.intersection(table.leaves))
    ]
    found = []
    for safe in (True, False):
        group = [table for table in missing if (publication.owned and table.owned) is safe]
        if group:
            found.append(_unpublished_finding(publication, group, role, safe=safe))
    return found


def _unpublished_finding(
    publication: Publication, tables: Sequence[Table], role: Role, *, safe: bool
) -> Finding:
    concerned = names(table.table for table in tables)
    return Finding(
        Severity.BLOCKER,
        "publication-tables",
        f"publication {publication.name!r} does not send {shown(concerned)}",
        concerned,
        "" if safe else f"role {role.quoted} does not own both the publication and these tables",
        "headrace check --fix adds them" if safe else "have an administrator run this SQL",
        (_alter(publication, f"ADD TABLE {_listed(tables)}"),),
        safe,
    )


def _restrictions(publication: Publication, tables: Sequence[Table]) -> list[Finding]:
    """Rows and columns that the publication keeps back, which may well be what is wanted."""
    wanted = {table.table for table in tables}
    published = [each for each in publication.tables if each.table in wanted]
    filtered = [each for each in published if each.row_filter]
    narrowed = [each for each in published if each.left_out]
    found = _identity_left_out(publication, [each for each in narrowed if each.identity_left_out])
    if filtered:
        rows = "; ".join(f"{each.table}: WHERE {each.row_filter}" for each in filtered)
        found.append(_restriction(publication, "publication-row-filter", "rows", filtered, rows))
    if narrowed:
        columns = "; ".join(f"{each.table}: not {', '.join(each.left_out)}" for each in narrowed)
        found.append(
            _restriction(publication, "publication-column-list", "columns", narrowed, columns)
        )
    return found


def _identity_left_out(publication: Publication, tables: Sequence[PublishedTable]) -> list[Finding]:
    if not tables:
        return []
    concerned = names(each.table for each in tables)
    return [
        Finding(
            Severity.BLOCKER,
            "publication-identity",
            f"updates and deletes of {shown(concerned)} fail at the source: their column lists in "
            f"publication {publication.name!r} leave columns of the replica identity out",
            concerned,
            "; ".join(f"{each.table}: not {', '.join(each.left_out)}" for each in tables),
            "take the tables out of the publication and add them whole",
            _whole(publication, tables),
        )
    ]


def _whole(publication: Publication, tables: Sequence[PublishedTable]) -> tuple[str, ...]:
    return tuple(
        _alter(publication, f"{action} TABLE {qualified(each.table)}")
        for each in tables
        for action in ("DROP", "ADD")
    )


def _restriction(
    publication: Publication,
    name: str,
    what: str,
    tables: Sequence[PublishedTable],
    evidence: str,
) -> Finding:
    concerned = names(each.table for each in tables)
    return Finding(
        Severity.WARNING,
        name,
        f"publication {publication.name!r} keeps {what} of {shown(concerned)} back",
        concerned,
        evidence,
        "nothing, if that is meant; else take the tables out of the publication and add them whole",
        _whole(publication, tables),
    )


def _generated(publication: Publication, tables: Sequence[Table]) -> list[Finding]:
    """Columns that the server computes and does not send: a table is carried without them."""
    wanted = {table.table for table in tables}
    lacking = [each for each in publication.tables if each.table in wanted and each.generated]
    curable = [each for each in lacking if each.generated_stored and not each.left_out]
    alter: tuple[str, ...] = (_alter(publication, f"SET ({SEND_GENERATED})"),)
    if not publication.may_send_generated:
        curable, alter = [], ()
    found = _identity_generated(
        publication, [each for each in curable if each.identity_generated], alter
    )
    if lacking:
        concerned = names(each.table for each in lacking)
        found.append(
            Finding(
                Severity.WARNING,
                "publication-generated",
                f"generated columns of {shown(concerned)} are not sent and not carried",
                concerned,
                _generated_columns(lacking),
                "to have the stored ones too, as owner of the publication, run the SQL, then "
                "headrace resync of these tables"
                if curable
                else "nothing, if they are not missed; Postgres sends stored ones from 18 on and "
                "virtual ones never: compute them where the tables are read",
                alter if curable else (),
            )
        )
    return found


def _identity_generated(
    publication: Publication, tables: Sequence[PublishedTable], alter: tuple[str, ...]
) -> list[Finding]:
    if not tables:
        return []
    concerned = names(each.table for each in tables)
    return [
        Finding(
            Severity.BLOCKER,
            "publication-identity",
            f"updates and deletes of {shown(concerned)} fail at the source: publication "
            f"{publication.name!r} does not send the generated columns of their replica identity",
            concerned,
            _generated_columns(tables),
            f"as owner of the publication: {alter[0]}",
            alter,
        )
    ]


def _generated_columns(tables: Sequence[PublishedTable]) -> str:
    return "; ".join(f"{each.table}: {', '.join(each.generated)}" for each in tables)


def _alter(publication: Publication, change: str) -> str:
    return f"ALTER PUBLICATION {quoted(publication.name)} {change}"


def _listed(tables: Sequence[Table]) -> str:
    return ", ".join(qualified(table.table) for table in tables)
