"""`where:` and `expect:`: SQL that is true or not of one row, proven before the first row comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import pyarrow as pa

from headrace.config.problems import did_you_mean
from headrace.engine.sandbox import Sandbox
from headrace.errors import ConfigError, RuleError
from headrace.model import TableSchema

# What a condition cannot hold, by the class of the node in DuckDB's syntax tree.
_REFUSED: Final = {
    "SUBQUERY": "a subquery",
    "STAR": "a *",
    "POSITIONAL_REFERENCE": "a column by its position",
    "PARAMETER": "a parameter",
}
_CLAUSES: Final = ("modifiers", "where_clause", "group_expressions", "having", "qualify", "sample")
_CLOCKS: Final = frozenset(
    {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
)
_ABOUT_ONE_ROW: Final = "it is SQL that DuckDB takes in WHERE, over the columns of one row"


@dataclass(frozen=True)
class Condition:
    """`rule` is its name for people (`where`, `expect rule adult`); `columns` those it may read."""

    rule: str
    sql: str
    columns: frozenset[str]


def compile_condition(
    rule: str, sql: str, schema: TableSchema, sandbox: Sandbox, clock: bool = False
) -> Condition:
    """Prove that `sql` is one boolean expression over the columns of one row of `schema`.

    `clock` lets it ask for the time. Nothing else but the row may sway it: a row is judged again
    after a crash, and the answer has to be the same.

    Raises:
        ConfigError: it is not; with DuckDB's words.
    """
    where = f"{rule} of {schema.table}"
    tree = _parse(where, sql, sandbox)
    _refuse_what_is_not_of_the_row(where, tree, schema, sandbox, clock)
    read = {name for node in _nodes(tree) for name in node.get("column_names", ())}
    columns = _columns_named(where, read, schema)
    sample = _projection(schema.arrow().empty_table(), columns)
    try:
        kind = sandbox.bind_condition(sql, sample)
        _refuse_wrong_constants(sql, sample, sandbox)
    except duckdb.Error as error:
        raise ConfigError(
            f"{where}: {_first_words(error)}", hint=_hint_for(tree, schema), table=schema.table
        ) from error
    if kind != "BOOLEAN":
        raise ConfigError(
            f"{where}: it is {kind}, not true or false",
            hint="compare it with something, such as amount > 0",
            table=schema.table,
        )
    return Condition(rule, sql, columns)


def _refuse_wrong_constants(sql: str, sample: pa.Table, sandbox: Sandbox) -> None:
    """Raise duckdb.ConversionException for `id = 'x'`: it fails even where every value is null."""
    nulls = pa.table([pa.nulls(1, kind) for kind in sample.schema.types], schema=sample.schema)
    with suppress(duckdb.InvalidInputException, duckdb.OutOfRangeException):
        sandbox.select([f"({sql}\n)"], nulls)  # the others may be error() in a branch for nulls


def evaluate(
    where: Condition | None,
    expectations: Sequence[Condition],
    rows: pa.Table,
    schema: TableSchema,
    sandbox: Sandbox,
) -> list[pa.ChunkedArray]:
    """Booleans per row: whether `where` is true (never null), then each expectation's result.

    Expectations are null, and not even computed, for rows that `where` leaves out.

    Raises:
        RuleError: a rule cannot be computed for some row. Names the rule, never the value.
    """
    conditions = [*([where] if where else []), *expectations]
    if not conditions or not rows.num_rows:
        return [_all_true(rows)] * (1 + len(expectations))
    expressions = _expressions(where, expectations)
    columns = frozenset[str]().union(*(condition.columns for condition in conditions))
    read = _projection(rows, columns)
    found: list[pa.ChunkedArray] = []
    with suppress(duckdb.Error):  # its message holds the value, and so would our error's context
        found = sandbox.select(expressions, read)
    if not found:
        raise _cannot_compute(conditions, expressions, read, schema, sandbox)
    return found if where else [_all_true(rows), *found]


def _all_true(rows: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([pa.repeat(True, rows.num_rows)])


def _parse(where: str, sql: str, sandbox: Sandbox) -> dict[str, Any]:
    """The expression's node of DuckDB's syntax tree.

    Bare, it has to be whole in itself (not `a) OR (b`), and in brackets an expression (no alias).
    """
    for query in (f"SELECT {sql}\n", f"SELECT ({sql}\n)"):
        answer = sandbox.syntax_tree(query)
        if answer["error"]:
            raise ConfigError(f"{where}: {answer['error_message']}", hint=_ABOUT_ONE_ROW)
        if not _is_one_expression(answer["statements"]):
            raise ConfigError(f"{where}: it is more than one expression", hint=_ABOUT_ONE_ROW)
    tree: dict[str, Any] = answer["statements"][0]["node"]["select_list"][0]
    return tree


def _is_one_expression(statements: Sequence[dict[str, Any]]) -> bool:
    node = statements[0]["node"]
    return (
        len(statements) == 1
        and node["type"] == "SELECT_NODE"
        and node["from_table"]["type"] == "EMPTY"
        and len(node["select_list"]) == 1
        and not any(node[clause] for clause in _CLAUSES)
    )


def _refuse_what_is_not_of_the_row(
    where: str, tree: dict[str, Any], schema: TableSchema, sandbox: Sandbox, clock: bool
) -> None:
    volatile = sandbox.functions("VOLATILE")
    clocks = frozenset[str]() if clock else sandbox.functions("CONSISTENT_WITHIN_QUERY") | _CLOCKS
    for node in _nodes(tree):
        if (refused := _REFUSED.get(node.get("class", ""))) is not None:
            raise ConfigError(f"{where}: it holds {refused}", hint=_ABOUT_ONE_ROW)
        name = _called(node, schema)
        if name in volatile:
            raise ConfigError(
                f"{where}: {name}() gives another answer each time",
                hint="let the rule depend on nothing but the row",
            )
        if name in clocks:
            raise ConfigError(
                f"{where}: {name} changes with time, but rows do not leave by themselves",
                hint="compare with a constant or with another column; expect rules may use it",
            )


def _called(node: dict[str, Any], schema: TableSchema) -> str:
    """The function that a node calls; the SQL standard's clocks stand there like columns."""
    if node.get("class") == "FUNCTION":
        return str(node["function_name"]).lower()
    names = [str(name).lower() for name in node.get("column_names", ())]
    known = {name.lower() for name in schema.names}
    return names[0] if len(names) == 1 and names[0] in _CLOCKS - known else ""


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


def _columns_named(where: str, read: set[str], schema: TableSchema) -> frozenset[str]:
    """The columns among the names that a rule uses (which also may be fields or parameters)."""
    folded = {name.lower() for name in read}
    columns = [name for name in schema.names if name.lower() in folded]
    twins = {name.lower() for name in columns}
    if len(twins) != len(columns):
        raise ConfigError(
            f"{where}: {' and '.join(columns)}: names that differ by case only are one to DuckDB",
            hint="rename one of the columns at the source, or leave them out of the rule",
            table=schema.table,
        )
    return frozenset(columns)


def _projection(rows: pa.Table, columns: frozenset[str]) -> pa.Table:
    """Only what is read, so that the other columns may have types that DuckDB does not know."""
    if columns:
        return rows.select([name for name in rows.column_names if name in columns])
    return pa.table({"": pa.nulls(rows.num_rows, pa.bool_())})


def _expressions(where: Condition | None, expectations: Sequence[Condition]) -> list[str]:
    if where is None:
        return [f"({e.sql}\n)" for e in expectations]
    passes = f"({where.sql}\n)"
    judged = [f"CASE WHEN {passes} THEN ({e.sql}\n) END" for e in expectations]
    return [f"{passes} IS TRUE", *judged]


def _cannot_compute(
    conditions: Sequence[Condition],
    expressions: Sequence[str],
    rows: pa.Table,
    schema: TableSchema,
    sandbox: Sandbox,
) -> RuleError:
    """Name the rule and the kind of the failure; the value may be one that is masked."""
    kinds = (_kind_of_failure(expression, rows, sandbox) for expression in expressions)
    failures = ((c, kind) for c, kind in zip(conditions, kinds, strict=True) if kind)
    condition, kind = next(failures, (conditions[0], "with the other rules"))
    return RuleError(
        f"{condition.rule} of {schema.table} cannot be computed for every row ({kind}); "
        "nothing was applied",
        hint="make it null for such rows: TRY_CAST instead of CAST, TRY(…) around the rest",
        table=schema.table,
        rule=condition.rule,
    )


def _kind_of_failure(expression: str, rows: pa.Table, sandbox: Sandbox) -> str:
    try:
        sandbox.select([expression], rows)
    except duckdb.Error as error:
        return str(error).partition(":")[0]
    return ""


def _first_words(error: duckdb.Error) -> str:
    return str(error).partition("\n")[0].strip()


def _hint_for(tree: dict[str, Any], schema: TableSchema) -> str:
    known = {name.lower() for name in schema.names}
    for node in _nodes(tree):
        names = node.get("column_names", ())
        if names and not known.intersection(name.lower() for name in names):
            return did_you_mean(names[0], schema.names) or _ABOUT_ONE_ROW
    return _ABOUT_ONE_ROW
