"""What commands show to a person, made from what the project returned; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import pyarrow as pa
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headrace.cli.output import table
from headrace.cli.phases import phase_style
from headrace.cli.plain import cell, count, counted, duration, prose, size
from headrace.connectors.postgres.slot_outlook import SlotOutlook
from headrace.consistency import Moment
from headrace.engine.table_state import Phase
from headrace.model import BEFORE, COMMIT_LSN, COMMIT_TS, META_COLUMNS, OP, UNCHANGED, Lsn
from headrace.model.finding import Finding, Severity
from headrace.model.times import python_values
from headrace.plan import Plan
from headrace.status import CaptureStatus, Status, TableStatus
from headrace.verify import TableVerification

T = TypeVar("T")

_COUNTS: Final = ("applied", "upserted", "deleted")
SHOWN_ROWS: Final = 1000  # a person scrolls no further; JSON has them all
_SEVERITY_STYLES: Final = {
    Severity.BLOCKER: "bold red",
    Severity.WARNING: "yellow",
    Severity.OK: "green",
}
_ACTION_STYLES: Final = {
    "keep": "dim",
    "create": "green",
    "add": "green",
    "copy": "cyan",
    "compare": "cyan",
    "apply": "cyan",
    "alter": "yellow",
    "stop": "bold red",
}


def findings_view(findings: Sequence[Finding], *, everything: bool) -> RenderableType:
    """Findings in the order given; what is in order only with `everything`."""
    shown = [f for f in findings if everything or f.severity is not Severity.OK]
    passed = sum(f.severity is Severity.OK for f in findings)
    parts: list[RenderableType] = []
    if shown:
        columns = ("severity", "what", "objects", "evidence", "fix")
        parts += [table(columns, map(_finding_row, shown)), ""]
    blockers = sum(f.severity is Severity.BLOCKER for f in findings)
    warnings = len(findings) - passed - blockers
    style = "bold red" if blockers else "green"
    parts.append(
        Text(
            f"{counted(blockers, 'blocker')}, {counted(warnings, 'warning')}, {passed} in order",
            style,
        )
    )
    return Group(*parts)


def _finding_row(finding: Finding) -> Sequence[str | Text]:
    return (
        Text(finding.severity.value, _SEVERITY_STYLES[finding.severity]),
        prose(finding.message),
        cell(", ".join(finding.objects)),
        prose(finding.evidence),
        prose("\n".join([finding.fix, *finding.sql]).strip()),
    )


def plan_view(plan: Plan) -> RenderableType:
    """Every step of a run, those that change something in colour."""
    rows = [
        (
            Text(step.action, _ACTION_STYLES.get(step.action, "")),
            step.kind,
            cell(step.name),
            step.pipeline,
            cell(step.detail),
        )
        for step in plan.steps
    ]
    changes = len(plan.changes)
    summary = f"{changes} to do, {len(plan.steps) - changes} already there"
    return Group(table(("action", "kind", "name", "pipeline", "detail"), rows), "", summary)


# -- status ----------------------------------------------------------------------------------------


def status_view(status: Status) -> RenderableType:
    """Captures, tables by the kind of their source, then all notices and errors in full."""
    followed = [t for t in status.tables if t.version is None and t.source_version is None]
    synced = [t for t in status.tables if t not in followed]
    parts: list[RenderableType] = []
    if status.captures:
        parts += [_captures(status.captures), ""]
    if followed:
        parts += [_followed(followed), ""]
    if synced:
        parts += [_synced(synced), ""]
    if not status.tables:
        parts += [Text("no table has been copied yet: headrace run", "dim"), ""]
    told = [*_slot_notices(status.captures), *_waits(status.captures), *_notices(status.tables)]
    told += _errors(status)
    return Group(*parts[:-1], *told)


def _captures(captures: Sequence[CaptureStatus]) -> Table:
    return table(
        ("capture", "runs", "commit", "position", "lag", "slot", "WAL held"),
        map(_capture_row, captures),
        right=("commit", "lag", "WAL held"),
    )


def _followed(tables: Sequence[TableStatus]) -> Table:
    """Tables whose source is Postgres."""
    return table(
        ("pipeline", "table", "phase", *_COUNTS, "position", "lag", "behind"),
        map(_table_row, tables),
        right=(*_COUNTS, "lag", "behind"),
    )


def _synced(tables: Sequence[TableStatus]) -> Table:
    """Tables whose source has versions."""
    return table(
        ("pipeline", "table", "phase", "applied", "version", "of", "lag", "behind", "quarantine"),
        map(_synced_row, tables),
        right=("applied", "version", "of", "lag", "behind", "quarantine"),
    )


def _capture_row(capture: CaptureStatus) -> Sequence[str | Text]:
    slot = capture.slot
    return (
        capture.capture,
        Text(capture.running, "green") if capture.running else Text("no", "dim"),
        count(capture.commit),
        _or_dash(str, capture.position),
        _or_dash(size, capture.lag_bytes),
        f"{slot.name} ({slot.wal_status})" if slot else "-",
        _or_dash(size, slot.retained_bytes if slot else None),
    )


def _slot_notices(captures: Sequence[CaptureStatus]) -> Iterator[Text]:
    """Who keeps a slot from letting go of WAL, and how long it lasts like that."""
    for capture in captures:
        slot, outlook = capture.slot, capture.outlook
        if slot is None or outlook is None or outlook.holder is None:
            continue
        kept = f"slot {slot.name} retains {_or_dash(size, slot.retained_bytes)} of WAL"
        if outlook.limit is not None:
            kept += f" of at most {size(outlook.limit)}"
        held = f"{outlook.holder.told} (hint: {outlook.holder.cure})"
        text = f"{kept}, {_lasting(outlook)}; what holds it: {held}"
        yield Text.assemble((f"\n{cell(capture.capture)}: ", "yellow"), prose(text))


def _waits(captures: Sequence[CaptureStatus]) -> Iterator[Text]:
    """What holds up a run, and which prepared transactions wait."""
    for capture in captures:
        for text in capture.waits:
            yield Text.assemble((f"\n{cell(capture.capture)}: ", "yellow"), prose(text))


def _lasting(outlook: SlotOutlook) -> str:
    if outlook.lost_in is None:
        return "without limit" if outlook.limit is None else "not in danger"
    return f"is lost in {duration(outlook.lost_in)} at {size(round(outlook.rate))}/s"


def _table_row(status: TableStatus) -> Sequence[str | Text]:
    return (
        status.pipeline,
        cell(status.table),
        Text(status.phase.value, phase_style(status.phase)),
        count(status.rows_applied),
        _or_dash(count, status.upserted),
        _or_dash(count, status.deleted),
        _or_dash(str, status.lsn),
        _or_dash(size, status.lag_bytes),
        _or_dash(duration, status.lag_seconds),
    )


def _synced_row(status: TableStatus) -> Sequence[str | Text]:
    return (
        status.pipeline,
        cell(status.table),
        Text(status.phase.value, phase_style(status.phase)),
        count(status.rows_applied),
        _or_dash(str, status.version),
        _or_dash(str, status.source_version),
        _or_dash(lambda number: counted(number, "version"), status.lag_versions),
        _or_dash(duration, status.lag_seconds),
        Text(_or_dash(count, status.quarantined), "yellow" if status.quarantined else ""),
    )


def _notices(tables: Sequence[TableStatus]) -> Iterator[Text]:
    """What was done out of the ordinary, rules that rows broke, and rows that wait for a person."""
    for status in tables:
        told = [status.notice] if status.notice else []
        if status.verified is not None and not status.verified.is_equal:
            told.append(str(status.verified))
        broken = [f"{rule} {count(rows)}" for rule, rows in (status.breaches or {}).items() if rows]
        if broken:
            told.append(f"rows that broke a rule: {', '.join(broken)}")
        if status.quarantined:
            told.append(f"{counted(status.quarantined, 'row')} refused: headrace quarantine list")
        for text in told:
            yield Text.assemble((f"\n{cell(status.table)}: ", "yellow"), prose(text))


def caught_up_view(status: Status) -> tuple[str, str]:
    """How a run ended that nothing failed in, in a sentence, and its style."""
    refused = sum(table.quarantined or 0 for table in status.tables)
    held = sum(table.phase is Phase.HELD for table in status.tables)
    but = [f"{counted(refused, 'row')} in quarantine (headrace quarantine list)"] if refused else []
    but += [f"{counted(held, 'table')} held (headrace status)"] if held else []
    if but:
        return f"caught up, but for {' and '.join(but)}", "yellow"
    return "caught up: every table holds what its source had at the start", "green"


def _or_dash(show: Callable[[T], str], value: T | None) -> str:
    return "-" if value is None else show(value)


def _errors(status: Status) -> Iterable[Text]:
    found = [(c.capture, c.error) for c in status.captures]
    found += [(t.table, t.error) for t in status.tables]
    for name, error in found:
        if error:
            text = error.removeprefix(f"{name}: ")
            yield Text.assemble((f"\n{cell(name)}: ", "red"), prose(text))


def moments_view(moments: Sequence[Moment]) -> RenderableType:
    """By pipeline, the LSN and a line per table."""
    if not moments:
        return Text("no table has been copied yet: headrace run", "dim")
    parts: list[RenderableType] = []
    for moment in moments:
        parts.append(Text(f"{moment.pipeline}: {moment.lsn}", "green"))
        rows = [
            (cell(str(t.table)), f"VERSION AS OF {t.version}", str(t.lsn), str(t.reached))
            for t in moment.tables
        ]
        parts += [table(("table", "version", "since", "reached"), rows), ""]
    return Group(*parts[:-1])


# -- rows ------------------------------------------------------------------------------------------


def changes_of_log(rows: pa.Table, *, everything: bool) -> pa.Table:
    """Changes as the log has them, their LSNs as text; without `everything` what a person reads."""
    at = rows.schema.get_field_index(COMMIT_LSN)
    lsns = [str(Lsn(value)) for value in rows.column(at).to_pylist()]
    rows = rows.set_column(at, COMMIT_LSN, pa.array(lsns, pa.string()))
    if everything:
        return rows
    own = [name for name in rows.column_names if name not in META_COLUMNS]
    told = [name for name in (UNCHANGED, BEFORE) if rows.column(name).null_count < rows.num_rows]
    return rows.select([OP, COMMIT_LSN, COMMIT_TS, *own, *told])


def rows_view(rows: pa.Table) -> RenderableType:
    """An Arrow table as one: at most SHOWN_ROWS rows, and it says so."""
    numbers = [f.name for f in rows.schema if pa.types.is_primitive(f.type) and _is_number(f.type)]
    columns = [python_values(column.slice(0, SHOWN_ROWS)) for column in rows.columns]
    made = table(
        [cell(name) for name in rows.column_names],
        (list(map(_row_cell, row)) for row in zip(*columns, strict=True)),
        right=numbers,
    )
    if rows.num_rows <= SHOWN_ROWS:
        return Group(made, Text(f"({counted(rows.num_rows, 'row')})", "dim"))
    note = f"(the first {count(SHOWN_ROWS)} of {counted(rows.num_rows, 'row')}; --json prints all)"
    return Group(made, Text(note, "yellow"))


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _row_cell(value: object) -> Text:
    return Text("null", "dim") if value is None else Text(cell(value))


def verification_view(tables: Sequence[TableVerification]) -> RenderableType:
    """One line per table, then keys of rows that differ, and why others are not equal."""
    made = table(
        ("pipeline", "table", "result", "rows", "missing", "extra", "at"),
        map(_verification_row, tables),
        right=("rows", "missing", "extra"),
    )
    equal = sum(t.equal for t in tables)
    told = (text for t in tables for text in _verification_notices(t))
    repaired = sum(t.repaired for t in tables)
    summary = f"{equal} of {len(tables)} tables equal their source"
    summary += f", {repaired} repaired" if repaired else ""
    well = equal + repaired == len(tables)
    return Group(made, *told, "", Text(summary, "green" if well else "bold red"))


def _verification_notices(verified: TableVerification) -> Iterator[Text]:
    name = cell(str(verified.table))
    if verified.differs:
        yield Text.assemble((f"\n{name} differs at ", "red"), cell("; ".join(verified.samples)))
    if verified.quarantined:
        rows = counted(verified.quarantined, "row")
        told = f"{rows} in quarantine, not compared: headrace quarantine list"
        yield Text.assemble((f"\n{name}: ", "yellow"), told)
    if verified.problem is not None:
        told = "\nhint: ".join(filter(None, (verified.problem.message, verified.problem.hint)))
        yield Text.assemble((f"\n{name}: ", "red"), prose(told))


def _verification_row(verified: TableVerification) -> Sequence[str | Text]:
    return (
        verified.pipeline,
        cell(str(verified.table)),
        _verdict(verified),
        count(verified.rows),
        count(verified.missing),
        count(verified.extra),
        _or_dash(str, verified.lsn) if verified.version is None else f"version {verified.version}",
    )


def _verdict(verified: TableVerification) -> Text:
    if verified.repaired:
        return Text("repaired", "yellow")
    if verified.differs:
        return Text("different", "bold red")
    if verified.problem is not None:
        return Text("unproven", "bold red")
    return Text("incomplete", "yellow") if verified.quarantined else Text("equal", "green")


def statements_view(statements: Sequence[str]) -> Text:
    """SQL, one statement a line, ready to be pasted into psql."""
    return Text("\n".join(f"  {prose(sql).rstrip(';')};" for sql in statements), "cyan")
