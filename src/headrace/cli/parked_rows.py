"""Rows in quarantine as a person or a program reads them; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from headrace.cli.output import table
from headrace.cli.plain import cell, count, counted, prose
from headrace.model.times import python_rows

if TYPE_CHECKING:
    from headrace.connectors.postgres.parked import ParkedRow
    from headrace.connectors.postgres.replay import Replayed


def parked_record(row: ParkedRow, *, everything: bool = False) -> dict[str, Any]:
    """A row for `--json`: texts that have nothing to tell are null; its values on demand."""
    told = {
        "sqlstate": row.sqlstate,
        "constraint": row.constraint,
        "column": row.column,
        "log_id": row.log_id,
    }
    record = {
        "id": row.id,
        "pipeline": row.pipeline,
        "table": row.table,
        "operation": row.operation,
        "key": row.key,
        "code": row.code,
        "reason": row.reason,
        **{name: text or None for name, text in told.items()},
        "version": row.version,
        "parked_at": row.parked_at,
        "tried_at": row.tried_at,
        "attempts": row.attempts,
    }
    return {**record, "row": python_rows(row.row)[0]} if everything else record


def parked_view(rows: Sequence[ParkedRow]) -> RenderableType:
    """One line per row, and how to go on."""
    if not rows:
        return Text("no row is in quarantine", "green")
    made = table(
        ("id", "table", "key", "change", "version", "parked", "reason"),
        map(_parked_line, rows),
        right=("id", "version"),
    )
    summary = f"{count(len(rows))} in quarantine: headrace quarantine show ID, then retry or drop"
    return Group(made, "", Text(summary, "yellow"))


def _parked_line(row: ParkedRow) -> Sequence[str | Text]:
    return (
        str(row.id),
        cell(str(row.table)),
        cell(_key(row)),
        row.operation.value,
        str(row.version),
        f"{row.parked_at:%Y-%m-%d %H:%M:%S}",
        Text.assemble((f"{row.code}: ", "red"), cell(row.reason)),
    )


def _key(row: ParkedRow) -> str:
    return ", ".join("null" if part is None else part for part in row.key) or "-"


def parked_details(row: ParkedRow) -> RenderableType:
    """Everything about one row, its values last."""
    head = [
        ("id", str(row.id)),
        ("pipeline", row.pipeline),
        ("table", str(row.table)),
        ("change", f"{row.operation.value}, of source version {row.version}"),
        ("reason", f"{row.code}: {row.reason}"),
        ("SQLSTATE", row.sqlstate),
        ("constraint", row.constraint),
        ("column", row.column),
        ("parked", f"{row.parked_at:%Y-%m-%d %H:%M:%S}, tried {counted(row.attempts, 'time')}"),
    ]
    facts = table(("", ""), [(Text(name, "dim"), prose(text)) for name, text in head if text])
    facts.show_header = False
    values = table(("column", "value"), [(cell(k), _value(v)) for k, v in row.values().items()])
    return Group(facts, "", values, "", Text(row.replay, "cyan"))


def _value(text: str | None) -> Text:
    return Text("null", "dim") if text is None else Text(cell(text))


def retried_view(done: Replayed) -> RenderableType:
    """How many rows were applied, and why others were not."""
    lines = [
        Text.assemble((f"  {number}: ", "red"), prose(why)) for number, why in done.left.items()
    ]
    summary = f"{count(done.applied)} applied, {count(len(done.left))} refused again"
    return Group(Text(summary, "yellow" if done.left else "green"), *lines)
