"""Shows a run while it goes on: a live view on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headrace.cli.events import Event, happenings, progress, rate
from headrace.cli.numbers import CopyNumbers, RunNumbers, SyncNumbers, View, read_numbers
from headrace.cli.output import Output
from headrace.cli.phases import phase_style
from headrace.cli.plain import cell, count, counted, duration, json_line, prose, size
from headrace.engine.table_state import Phase

PROGRESS_INTERVAL: Final = 10.0  # seconds between log lines that nothing caused
RATE_WINDOW: Final = 20  # ticks of 0.1 s: a rate over two seconds is steady and still moves
SHOWN_COPIES: Final = 12  # bars that leave room on a screen of 24 lines
SHOWN_TABLES: Final = 12
SHOWN_PROBLEMS: Final = 5
BAR_WIDTH: Final = 30

Tick = Callable[[Sequence[View]], None]
Look = Callable[[RunNumbers], None]


@contextmanager
def showing(output: Output) -> Iterator[Tick]:
    """Show a run where the output goes; gives what to call about ten times a second.

    The last look is taken when the run has ended, so that what stays to be read is how it ended.
    """
    views: list[View] = []
    with _drawing(output.console) if output.live else _logging(output) as look:

        def tick(now: Sequence[View]) -> None:
            views[:] = now
            look(read_numbers(now))

        try:
            yield tick
        finally:
            if views:
                look(replace(read_numbers(views), ended=True))


@contextmanager
def _drawing(console: Console) -> Iterator[Look]:
    """Draw `live_view` in place; what was drawn last stays on the screen."""
    history: deque[RunNumbers] = deque(maxlen=RATE_WINDOW)
    with Live(console=console, auto_refresh=False) as live:

        def look(now: RunNumbers) -> None:
            history.append(now)
            live.update(live_view(history), refresh=True)

        yield look


@contextmanager
def _logging(output: Output) -> Iterator[Look]:
    log = RunLog(_print_json if output.as_json else _log)
    try:
        yield log.look
    finally:
        log.close()


def _log(event: Event) -> None:
    logging.getLogger("headrace.run").log(event.level, "%s", event)


def _print_json(event: Event) -> None:
    level = logging.getLevelName(event.level).lower()
    print(json_line({**event.record(), "level": level}), flush=True)


class RunLog:
    """One event per change of state, one about every ten seconds, and one at the end."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._last: RunNumbers | None = None
        self._reported: RunNumbers | None = None

    def look(self, now: RunNumbers) -> None:
        """Report what is new since the look before."""
        for event in happenings(self._last, now):
            self._emit(event)
        self._last = now
        self._reported = self._reported or now
        if now.at - self._reported.at >= PROGRESS_INTERVAL:
            self.close()
            self._reported = now

    def close(self) -> None:
        """Say how it stands, however short the run was."""
        if self._reported and self._last:
            self._emit(progress(self._reported, self._last))


# -- the live view, pure ---------------------------------------------------------------------------


def live_view(history: Sequence[RunNumbers]) -> RenderableType:
    """The newest of `history`, with rates over all of it: bars while copying, then one line."""
    now = history[-1]
    parts: list[RenderableType] = []
    if now.copying and now.copies:
        parts.append(_bars(history[0], now))
    elif now.copies:
        parts.append(_copied(now))
    if now.syncs:
        parts.append(_syncs(now))
    parts.append(_summary(history[0], now))
    parts += _problems(now)
    return Group(*parts)


def _bars(before: RunNumbers, now: RunNumbers) -> Table:
    grid = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right", "right", "left"):
        grid.add_column(justify=justify, no_wrap=True)
    earlier = {copy.table: copy.rows for copy in before.copies}
    shown = sorted(now.copies, key=_attention)[:SHOWN_COPIES]
    for copy in shown:
        speed = rate(earlier.get(copy.table, 0), copy.rows, now.at - before.at)
        grid.add_row(*_bar(copy, speed))
    if len(now.copies) > len(shown):
        finished = sum(copy.ended for copy in now.copies)
        grid.add_row(Text(f"{len(now.copies)} tables, {finished} copied", style="dim"))
    return grid


def _copied(now: RunNumbers) -> Text:
    rows = sum(copy.rows for copy in now.copies if copy.done)
    tables = sum(copy.done for copy in now.copies)
    return Text(f"  copied {count(rows)} rows of {count(tables)} tables", "dim")


def _attention(copy: CopyNumbers) -> tuple[bool, bool]:
    """Those in progress first, then those that wait, then those that ended."""
    return copy.ended, not copy.rows


def _bar(copy: CopyNumbers, speed: float) -> Iterator[RenderableType]:
    total = copy.rows if copy.done else max(copy.expected, copy.rows)
    yield Text(copy.table)
    yield ProgressBar(
        total=total or 1, completed=total or 1 if copy.done else copy.rows, width=BAR_WIDTH
    )
    yield Text(f"{count(copy.rows)} rows")
    yield Text("" if copy.ended else f"{count(speed)}/s", style="cyan")
    yield Text(_time_left(copy, speed), style="red" if copy.error else "dim")


def _time_left(copy: CopyNumbers, speed: float) -> str:
    if copy.error:
        return "failed"
    if copy.done:
        return "copied"
    left = copy.expected - copy.rows
    return f"{duration(left / speed)} left" if speed > 0 and left > 0 else ""


def _syncs(now: RunNumbers) -> Table:
    """Tables that follow versions: where they stand, those that need a look first."""
    grid = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "left", "right", "left"):
        grid.add_column(justify=justify, no_wrap=True)
    shown = sorted(now.syncs, key=_in_order)[:SHOWN_TABLES]
    for table in shown:
        grid.add_row(
            Text(cell(table.table)),
            Text(table.phase.value, phase_style(table.phase)),
            Text(_versions(table)),
            Text(f"{count(table.applied)} rows"),
            Text(_broken(table), "yellow"),
        )
    if len(now.syncs) > len(shown):
        grid.add_row(Text(f"and {len(now.syncs) - len(shown)} more: headrace status", "dim"))
    return grid


def _in_order(table: SyncNumbers) -> tuple[bool, int]:
    """Those at work or in trouble first, the furthest behind before others."""
    return table.phase is Phase.STREAMING and not table.lag_versions, -(table.lag_versions or 0)


def _versions(table: SyncNumbers) -> str:
    """`version 12`, or `version 12 of 15, 3 s behind`."""
    if table.version is None:
        return "" if table.head is None else f"version {table.head}"
    if not table.lag_versions:
        return f"version {table.version}"
    return f"version {table.version} of {table.head}, {duration(table.lag_seconds)} behind"


def _broken(table: SyncNumbers) -> str:
    broken = [f"{rule} {count(rows)}" for rule, rows in table.breaches if rows]
    return f"broken: {', '.join(broken)}" if broken else ""


def _summary(before: RunNumbers, now: RunNumbers) -> Text:
    seconds = now.at - before.at
    failed = len(now.in_phase(Phase.FAILED))
    connected = now.ended or all(s.connected for s in now.streams)
    captures = bool(now.streams) or not now.syncs
    rates = (before.captured, now.captured) if captures else (before.applied, now.applied)
    captured = f"{count(now.captured)} captured, " if captures else ""
    parts = [
        ("● ", "green" if connected else "yellow"),
        (_state(now, connected), ""),
        (f"   {count(rate(*rates, seconds))} {'changes' if captures else 'rows'}/s", "cyan"),
        (f"   {captured}{count(now.applied)} applied", ""),
        (f"   lag {', '.join(_lags(now, captures))}", ""),
        (f"   {failed} of {len(now.tables)} tables failed" if failed else "", "bold red"),
    ]
    return Text.assemble(*parts)


def _lags(now: RunNumbers, captures: bool) -> Iterator[str]:
    if captures:
        yield size(now.lag_bytes)
    if now.syncs:
        yield counted(now.lag_versions, "version")
    yield duration(now.lag_seconds)


def _state(now: RunNumbers, connected: bool) -> str:
    if now.ended:
        return "ended"
    if not now.streams:
        return "watching"
    return "streaming" if connected else "connecting"


def _problems(now: RunNumbers) -> list[Text]:
    """The first lines of what goes wrong at the moment."""
    streams = [(s.pipelines, s.error) for s in now.streams if s.error and not now.ended]
    troubled = (Phase.FAILED, Phase.RETRYING)
    tables = [(t.table, t.error) for t in now.tables if t.error and t.phase in troubled]
    found = [*streams, *tables]
    lines = [
        Text.assemble(
            (f"  {name}: ", "red"), prose(error.splitlines()[0].removeprefix(f"{name}: "))
        )
        for name, error in found[:SHOWN_PROBLEMS]
        if error
    ]
    if len(found) > SHOWN_PROBLEMS:
        lines.append(Text(f"  and {len(found) - SHOWN_PROBLEMS} more: headrace status"))
    return [*lines, *_notices(now)]


def _notices(now: RunNumbers) -> Iterator[Text]:
    """What was done out of the ordinary, and why."""
    told = [(table.table, table.notice) for table in now.syncs if table.notice]
    for name, notice in told[:SHOWN_PROBLEMS]:
        yield Text.assemble((f"  {cell(name)}: ", "yellow"), prose(notice.splitlines()[0]))
