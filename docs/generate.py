"""Writes the pages that follow from the code and the reports: `python -m docs.generate`.

With `--check` it writes nothing, and fails with a diff where a page is not what it would write.
"""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import typer.main
from docs.types_page import types_page

from headrace import errors
from headrace.cli import app
from headrace.config import json_schema
from headrace.errors import HeadraceError
from headrace.failpoints import FAILPOINTS

ROOT: Final = Path(__file__).parents[1]
REFERENCE: Final = ROOT / "docs" / "reference"
README: Final = ROOT / "README.md"
UPKEEP: Final = ROOT / "docs" / "explanation" / "upkeep.md"
REPORTS: Final = ROOT / "benchmarks" / "reports"
BEGIN: Final = "<!-- figures -->\n"
END: Final = "<!-- /figures -->\n"

EXIT_CODES: Final = {
    0: "done",
    1: "failed",
    2: "wrong use or configuration",
    3: "a check found a blocker",
    4: "a verification found a difference",
    130: "interrupted, after a clean stop",
}
_MODELS: Final = {
    "Settings": "The file",
    "PostgresConnection": "A connection of type postgres",
    "DeltaConnection": "A connection of type delta",
    "Pipeline": "A pipeline",
    "Quarantine": "quarantine of a pipeline",
    "Throttle": "throttle of a pipeline",
    "AutoRefresh": "auto_refresh of a pipeline",
    "VerifySchedule": "verify of a pipeline",
    "TableEntry": "An entry of tables",
    "ColumnSelection": "columns of an entry",
    "MaskRule": "A mask with a parameter",
    "ExpectationEntry": "A rule under expect of an entry",
}


def main() -> int:
    """Write every page, or with `--check` print how they differ; the exit code."""
    stale = {path: text for path, text in generated().items() if _current(path) != text}
    for path, text in stale.items():
        if "--check" in sys.argv[1:]:
            print(_diff(path, text))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
    return int("--check" in sys.argv[1:] and bool(stale))


def generated() -> dict[Path, str]:
    """Every page that is generated, or has a generated part, as it must be."""
    reference = {REFERENCE / name: page() for name, page in PAGES.items()}
    return {
        **reference,
        README: with_figures(README.read_text("utf-8")),
        UPKEEP: with_curve(UPKEEP.read_text("utf-8")),
    }


def _current(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def _diff(path: Path, text: str) -> str:
    name = path.relative_to(ROOT).as_posix()
    now, then = _current(path).splitlines(), text.splitlines()
    return "\n".join(difflib.unified_diff(now, then, name, "make docs", lineterm=""))


# -- the command line ------------------------------------------------------------------------------


def cli_page() -> str:
    """Every command with its arguments and options, in the order of `headrace --help`."""
    command: Any = typer.main.get_command(app)
    codes = _table(("exit code", "meaning"), EXIT_CODES.items())
    parts = [
        "# Command line",
        f"{command.help} `headrace --version` prints the version, and whether the compiled decoder "
        "is in use; `headrace --install-completion` completes commands in your shell.",
        "With `--json` a command prints one JSON object a line; an error is an object with `error` "
        "and `hint`. Without it errors and hints go to stderr. `headrace run` stops cleanly at "
        "Ctrl-C or SIGTERM, and at once at the second.",
        codes,
        *(_command(name, sub) for name, sub in _commands(command)),
    ]
    return _joined(parts)


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, those inside of others included."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join(
        ["headrace", name, *(["[OPTIONS]"] if options else []), *(p.metavar for p in arguments)]
    )
    rows = [(f"`{p.metavar}`", p.help) for p in arguments]
    rows += [(f"`{_option(p)}`", _with_default(p)) for p in options]
    parts = [f"## headrace {name}", command.help, f"```\n{usage}\n```"]
    return "\n\n".join([*parts, _table(("", ""), rows)] if rows else parts)


def _option(option: Any) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def _with_default(option: Any) -> str:
    default = option.default
    return f"{option.help} Default: `{default}`." if default and not option.is_flag else option.help


# -- headrace.yaml ---------------------------------------------------------------------------------


def config_page() -> str:
    """Every key that headrace.yaml may hold, from its JSON Schema."""
    schema = json_schema()
    definitions = {**schema["$defs"], "Settings": schema}
    parts = [
        "# headrace.yaml",
        "`${NAME}` in any value reads the environment; `$${` stands for a literal `${`. Relative "
        "paths are relative to the file. `headrace schema` prints the JSON Schema behind this "
        "page, from which editors complete the file; `headrace init` writes a file to start from.",
        *(_keys(_MODELS[name], _properties(definitions[name])) for name in _MODELS),
    ]
    return _joined(parts)


def _properties(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keys of an object, also of one that a bare text may stand for."""
    for choice in (definition, *definition.get("anyOf", ())):
        if "properties" in choice:
            required = set(choice.get("required", ()))
            return {k: {**v, "required": k in required} for k, v in choice["properties"].items()}
    raise LookupError(f"no properties in {definition}")


def _keys(title: str, properties: Mapping[str, Any]) -> str:
    rows = [
        (f"`{key}`", _type(value), _default(value), value.get("description", ""))
        for key, value in properties.items()
    ]
    return f"## {title}\n\n{_table(('key', 'value', 'default', 'meaning'), rows)}"


def _type(value: Mapping[str, Any]) -> str:
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    choices = [_type(c) for c in value.get("anyOf", ()) if c.get("type") != "null"]
    if choices:
        return " or ".join(dict.fromkeys(choices))
    match value.get("type"):
        case "array":
            return "list"
        case "object" | None:
            return "keys"
        case "string":
            return "text"
        case "integer":
            return "number"
        case kind:
            return str(kind)


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if value["required"]:
        return "required"
    return "" if default in (None, {}, False) else f"`{default}`"


# -- errors and failpoints -------------------------------------------------------------------------


def errors_page() -> str:
    """Every exception, as the tree it is, with its exit code."""
    rows = [
        (
            f"{'&nbsp;&nbsp;' * depth}`{kind.__name__}`",
            kind.exit_code,
            "yes" if kind.transient else "",
            _first_paragraph(kind),
        )
        for depth, kind in _tree(HeadraceError, 0)
    ]
    parts = [
        "# Errors",
        "All descend from `headrace.errors.HeadraceError`, carry a `hint` (a command or SQL where "
        "there is one) and pickle. A transient one is tried again by itself, with growing pauses.",
        _table(("error", "exit code", "transient", "meaning"), rows),
    ]
    return _joined(parts)


def _tree(kind: type[HeadraceError], depth: int) -> Iterator[tuple[int, type[HeadraceError]]]:
    yield depth, kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child, depth + 1)


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def failpoints_page() -> str:
    """Every failpoint, and how to arm one."""
    parts = [
        "# Failpoints",
        "Places where tests make the process die or an operation fail. "
        "`HEADRACE_FAILPOINT=log.manifest_put=kill@3` has the third pass through that place send "
        "SIGKILL to the process; `log.file_written=enospc@1-5` has passes 1 to 5 raise ENOSPC.",
        _table(("failpoint", "what is so when it is passed"), _code_keys(FAILPOINTS)),
    ]
    return _joined(parts)


def _code_keys(rows: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"`{key}`", value) for key, value in rows.items()]


# -- the figures of the README ---------------------------------------------------------------------

Report = Mapping[str, Any]


class Figure(NamedTuple):
    """A row; `ratio` is how many times as fast as the peer, empty where there is none."""

    what: str
    headrace: str
    peer: str = ""
    ratio: str = ""


def with_figures(page: str, folder: Path = REPORTS) -> str:
    """The README with the table of all reports between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    return _between_marks(page, figures(_reports(folder)))


def with_curve(page: str, folder: Path = REPORTS) -> str:
    """The page on upkeep, with what an hour of commits came to between its marks."""
    report = _reports(folder).get("upkeep")
    return _between_marks(page, "" if report is None else f"{_curve(report)}\n")


def _between_marks(page: str, text: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page lacks {BEGIN.strip()} or {END.strip()}")
    return f"{before}{BEGIN}{text}{END}{after}"


def _curve(report: Report) -> str:
    """What stands after each interval of commits; without upkeep, where it was cut off."""
    columns = ("commits", "files", "MiB", "apply, p50", "apply, p99", "read: DuckDB", "deltalake")
    without = report["without_upkeep_after_300"]
    rows = [_stretch(str(at.get("commits", 0)), at) for at in report["curve"]]
    rows.append(_stretch(f"{without['commits']}, without upkeep", without))
    return f"{_table(columns, rows)}\n\n{_provenance([report])}"


def _stretch(commits: str, at: Mapping[str, Any]) -> tuple[str, ...]:
    timed = ("apply_p50_ms", "apply_p99_ms", "read_duckdb_ms", "read_deltalake_ms")
    times = (f"{at[name]:.0f} ms" if name in at else "" for name in timed)
    return (commits, str(at["files"]), f"{at['table_mib']:.0f}", *times)


def figures(reports: Mapping[str, Report]) -> str:
    """The table of all reports, and where and when they were made."""
    rows = [row for name in _ROWS if name in reports for row in _ROWS[name](reports[name])]
    if not rows:
        return ""
    table = _table(("what", "Headrace", "peer or limit", "ratio"), rows)
    used = [reports[name] for name in _ROWS if name in reports]
    return f"{table}\n\n{_provenance(used)}\n"


def _reports(folder: Path) -> dict[str, Report]:
    found = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    return {report["benchmark"]: report for report in found}


def _provenance(reports: list[Report]) -> str:
    machines = {
        "{system}, {cores} cores, Python {python}".format_map(report["machine"])
        for report in reports
    }
    days = sorted({report["when"][:10] for report in reports})
    return (
        f"Measured on {' and '.join(sorted(machines))}, {' and '.join(days)}. "
        "A ratio says how many times as fast as the peer, both in one run."
    )


def _capture(report: Report) -> Iterator[Figure]:
    for way, name in (("tcp", "TCP"), ("unix", "a Unix socket")):
        yield Figure(
            f"changes by {name}, durable in the change log",
            f"{report[way]['headrace_rows_per_s']:,} rows/s",
            f"`pg_recvlogical` to /dev/null: {report[way]['pg_recvlogical_rows_per_s']:,} rows/s",
            f"{report[way]['ratio']:.2f}",
        )


def _snapshot(report: Report) -> Iterator[Figure]:
    yield Figure(
        f"{report['rows']:,} rows from nothing to a Delta table",
        f"{report['headrace_rows_per_s']:,} rows/s",
        f"`psql` COPY to /dev/null: {report['psql_copy_rows_per_s']:,} rows/s",
        f"{report['ratio']:.2f}",
    )


def _apply(report: Report) -> Iterator[Figure]:
    sizes = [int(name.removeprefix("rows_")) for name in report if name.startswith("rows_")]
    for size in sizes:
        measured = report[f"rows_{size}"]
        merged = measured.get("merge_ms")
        yield Figure(
            f"{report['keys_per_batch']:,} random updates into {size:,} rows",
            f"{measured['headrace_ms']:,.1f} ms",
            f"`DeltaTable.merge`: {merged:,.0f} ms" if merged else "",
            f"{measured['ratio']:.0f}" if merged else "",
        )
        if "first_apply_s" in measured and size == max(sizes):
            built, reading = measured["first_apply_s"], measured["read_keys_s"]
            yield Figure(
                f"the key index of {size:,} rows, built anew",
                f"{built:.1f} s, {measured['bytes_per_row']:.0f} bytes a row",
                f"reading the keys alone: {reading:.1f} s",
                f"{reading / built:.2f}",
            )


_MERGES: Final = {
    "merge": "`DeltaTable.merge`",
    "dlt": "dlt's merge into Delta",
    "duckdb": "DuckDB's `MERGE` into a table of its own",
}
_BATCHES: Final = {
    "scd2": "new versions (scd2)",
    "wide": "updates of {columns} columns",
    "delete_heavy": "changes, {deletes_per_batch} of them deletes,",
}


def _merges(report: Report) -> Iterator[Figure]:
    for name, batch in _BATCHES.items():
        measured = report[name]
        for peer, told in _MERGES.items():
            if peer in measured["ratio"]:
                what = batch.format_map(measured)
                yield Figure(
                    f"{report['keys_per_batch']:,} {what} into {measured['rows']:,} rows",
                    f"{measured['headrace_ms']:,.1f} ms",
                    f"{told}: {measured[f'{peer}_ms']:,.1f} ms",
                    f"{measured['ratio'][peer]:,.1f}",
                )


def _upkeep(report: Report) -> Iterator[Figure]:
    curve = report["curve"]
    applies = [point["apply_p50_ms"] for point in curve[1:]]
    reads = [point["read_duckdb_ms"] for point in curve]
    files = [point["files"] for point in curve[1:]]
    yield Figure(
        f"{report['commits']:,} commits, an hour's, to a table of {report['rows']:,} rows: "
        f"apply p50 of each {curve[1]['commits']}",
        f"{min(applies):.0f} to {max(applies):.0f} ms, {min(files)} to {max(files)} files",
    )
    yield Figure(
        "a whole read of that table by DuckDB, before them and after each",
        f"{reads[0]:.0f} ms, then {min(reads[1:]):.0f} to {max(reads[1:]):.0f} ms",
    )


def _many_tables(report: Report) -> Iterator[Figure]:
    yield Figure(
        f"{report['tables']} tables that change at {report['rows_per_s']:,} rows/s in all, "
        "to rows readable in Delta",
        f"p50 {report['p50_ms'] / 1000:.1f} s, p99 {report['p99_ms'] / 1000:.1f} s, "
        f"{report['cpu_cores']:.1f} cores, {report['peak_mib']} MiB",
    )


def _latency(report: Report) -> Iterator[Figure]:
    for rate in report["rates"]:
        yield Figure(
            f"commit in Postgres to row readable in Delta, {rate['rows_per_s']:,} commits/s",
            f"p50 {rate['p50_ms']:.0f} ms, p99 {rate['p99_ms']:.0f} ms",
        )


def _reverse_load(report: Report) -> Iterator[Figure]:
    form = report["limit"]
    copied = report[f"copy_{form}_rows_per_s"]
    yield Figure(
        f"{report['rows']:,} rows from a Delta table into Postgres",
        f"{report['headrace_rows_per_s']:,} rows/s",
        f"`COPY` of a ready {form} file on the server: {copied:,} rows/s",
        f"{report['ratio']:.2f}",
    )


_UPSERTS: Final = {
    "staged_insert": "`INSERT … ON CONFLICT` from a ready staging table",
    "row_by_row": "`psycopg`, a statement for each row",
    "execute_values": "`psycopg2`'s `execute_values`",
    "dlt_merge": "dlt's merge",
}


def _reverse_upsert(report: Report) -> Iterator[Figure]:
    ours = median(report["headrace_seconds"])
    for name, told in _UPSERTS.items():
        if name == "row_by_row":
            told = f"{told}, extrapolated from {report['row_by_row_measured_rows']:,} rows"
        theirs = median(report[f"{name}_seconds"])
        yield Figure(
            f"{report['changed']:,} rows changed in a Delta table, into {report['rows']:,} rows "
            "of Postgres",
            f"{ours:.2f} s",
            f"{told}: {theirs:.2f} s",
            f"{theirs / ours:.2f}",
        )


def _reverse_latency(report: Report) -> Iterator[Figure]:
    for kind in report["kinds"]:
        yield Figure(
            f"Delta commit ({kind['commits']} of {kind['rows_each']} rows) to rows readable in "
            f"Postgres, poll {report['poll_ms']} ms",
            f"p50 {kind['p50_ms']:.0f} ms, p99 {kind['p99_ms']:.0f} ms",
        )


_ROWS: Final[Mapping[str, Callable[[Report], Iterator[Figure]]]] = {
    "capture": _capture,
    "snapshot": _snapshot,
    "apply": _apply,
    "merges": _merges,
    "upkeep": _upkeep,
    "latency": _latency,
    "many_tables": _many_tables,
    "reverse_load": _reverse_load,
    "reverse_upsert": _reverse_upsert,
    "reverse_latency": _reverse_latency,
}


# -- Markdown --------------------------------------------------------------------------------------


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(parts) + "\n"


def _table(columns: Sequence[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "cli.md": cli_page,
    "config.md": config_page,
    "errors.md": errors_page,
    "failpoints.md": failpoints_page,
    "types.md": types_page,
}

if __name__ == "__main__":
    sys.exit(main())
