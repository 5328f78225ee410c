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
from headrace.cli.numbers import CopyNumbers, RunNumbers, read_numbers
from headrace.cli.output import Output
from headrace.cli.plain import count, duration, json_line, prose, size
from headrace.engine.materialize import Phase
from headrace.engine.runner import RunView

PROGRESS_INTERVAL: Final = 10.0  # seconds between log lines that nothing caused
RATE_WINDOW: Final = 20  # ticks of 0.1 s: a rate over two seconds is steady and still moves
SHOWN_COPIES: Final = 12  # bars that leave room on a screen of 24 lines
SHOWN_PROBLEMS: Final = 5
BAR_WIDTH: Final = 30

Tick = Callable[[Sequence[RunView]], None]
Look = Callable[[RunNumbers], None]


@contextmanager
def showing(output: Output) -> Iterator[Tick]:
    """Show a run where the output goes; gives what to call about ten times a second.

    The last look is taken when the run has ended, so that what stays to be read is how it ended.
    """
    views: list[RunView] = []
    with _drawing(output.console) if output.live else _logging(output) as look:

        def tick(now: Sequence[RunView]) -> None:
            views[:] = now
            look(read_numbers(now))

        try:
            yield tick
        finally:
            if views:
                look(replace(read_numbers(views), streams=()))  # closed, not lost


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
    parts.append(_stream_line(history[0], now))
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


def _stream_line(before: RunNumbers, now: RunNumbers) -> Text:
    seconds = now.at - before.at
    failed, connected = len(now.in_phase(Phase.FAILED)), all(s.connected for s in now.streams)
    parts = [
        ("● ", "green" if connected else "yellow"),
        (_state(now, connected), ""),
        (f"   {count(rate(before.captured, now.captured, seconds))} changes/s", "cyan"),
        (f"   {count(now.captured)} captured, {count(now.applied)} applied", ""),
        (f"   lag {size(now.lag_bytes)}, {duration(now.lag_seconds)}", ""),
        (f"   {failed} of {len(now.tables)} tables failed" if failed else "", "bold red"),
    ]
    return Text.assemble(*parts)


def _state(now: RunNumbers, connected: bool) -> str:
    if not now.streams:
        return "ended"
    return "streaming" if connected else "connecting"


def _problems(now: RunNumbers) -> list[Text]:
    """The first lines of what goes wrong at the moment."""
    streams = [(s.pipelines, s.error) for s in now.streams if s.error]
    troubled = (Phase.FAILED, Phase.RETRYING)
    tables = [(t.table, t.error) for t in now.tables if t.error and t.phase in troubled]
    found = [*streams, *tables]
    lines = [
        Text.assemble((f"  {name}: ", "red"), prose(error.splitlines()[0]))
        for name, error in found[:SHOWN_PROBLEMS]
        if error
    ]
    if len(found) > SHOWN_PROBLEMS:
        lines.append(Text(f"  and {len(found) - SHOWN_PROBLEMS} more: headrace status"))
    return lines
