"""`headrace demo`: a Postgres of its own goes live into Delta tables, and is proven equal.

The one module of the product that imports `headrace.testing`, for the embedded server.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from threading import Event
from typing import Final

import psycopg

from headrace.cli.display import Tick, showing
from headrace.cli.interruption import Interruption, stopping_on_signals
from headrace.cli.listings import findings_view, rows_view, statements_view, verification_view
from headrace.cli.numbers import View
from headrace.cli.output import INTERRUPTED, Output
from headrace.cli.plain import count, duration
from headrace.cli.starter import Starter, starter_text
from headrace.engine.runner import RunView
from headrace.engine.table_state import Phase, TableState
from headrace.model import Lsn
from headrace.project import Project, load
from headrace.testing.postgres import EmbeddedPostgres

DIFFERENT: Final = 4  # exit code: a verification found a difference
TRAFFIC_SECONDS: Final = 8.0
PAUSE: Final = 0.02  # seconds between bursts: the shop shares two cores with its followers
VARIABLE: Final = "SHOP_PASSWORD"

SHOP_SIZE: Final = """
SELECT count(*), sum(reltuples)::bigint
  FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
REVENUE: Final = """\
SELECT c.country, count(DISTINCT o.id) AS orders, sum(i.quantity * i.price) AS revenue
  FROM public.customers c
  JOIN public.orders o ON o.customer_id = c.id
  JOIN public.order_items i ON i.order_id = o.id
 GROUP BY c.country
 ORDER BY revenue DESC
 LIMIT 5"""


def run_demo(output: Output, *, keep: bool) -> int:
    """The whole demo; gives the exit code. What it made is gone afterwards, unless `keep`.

    Raises:
        HeadraceError: no embedded Postgres is installed, or whatever went wrong.
    """
    started = time.monotonic()
    with stopping_on_signals() as asked:
        output.say("Starting a Postgres with a shop in it", "bold")
        with EmbeddedPostgres(fast=True) as server, _folder(keep) as folder:
            _fill(server.dsn(), output)
            project = _project(server, folder, output)
            code = _show(project, server.dsn(), output, asked)
            output.say(f"\ndone in {duration(time.monotonic() - started)}")
            if keep and not asked.signalled:
                _tell_where(folder, server, output)
                asked.wait()
                output.say(f"stopped the server; the files are in {folder}")
            elif not keep:
                output.say("nothing is left of it; headrace demo --keep leaves it up", "dim")
        return code


@contextmanager
def _folder(keep: bool) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
    try:
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder)


def _statements(name: str) -> bytes:
    return resources.files("headrace.cli").joinpath(name).read_bytes()


def _fill(dsn: str, output: Output) -> None:
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(_statements("demo_shop.sql"))
        tables, rows = session.execute(SHOP_SIZE).fetchone() or (0, 0)
    output.say(f"{tables} tables, {count(rows)} rows")


def _project(server: EmbeddedPostgres, folder: Path, output: Output) -> Project:
    starter = Starter(
        host="127.0.0.1",
        port=server.port,
        database="postgres",
        user="postgres",
        variable=VARIABLE,
        source="shop",
    )
    file = folder / "headrace.yaml"
    file.write_text(starter_text(starter), "utf-8")
    os.environ[VARIABLE] = server.password  # this process's own, for ${SHOP_PASSWORD} in the file
    output.say(f"wrote {file}")
    return load(file)


def _show(project: Project, dsn: str, output: Output, asked: Interruption) -> int:
    """Check, replicate, verify, query; a signal ends it between two of them."""
    _check(project, output)
    if not asked.signalled and not _replicate(project, dsn, output, asked.stop):
        return 1
    if asked.signalled:
        return INTERRUPTED
    output.say("\nheadrace verify: the same rows on both sides?", "bold")
    tables = project.verify()
    output.console.print(verification_view(tables))
    output.say("\nheadrace query, over the Delta tables", "bold")
    output.say(REVENUE, "cyan")
    output.console.print(rows_view(project.query(REVENUE)))
    return 0 if all(table.equal for table in tables) else DIFFERENT


def _check(project: Project, output: Output) -> None:
    output.say("\nheadrace check --fix", "bold")
    findings = project.check()
    output.console.print(statements_view([sql for f in findings if f.safe for sql in f.sql]))
    project.fix()
    output.console.print(findings_view(project.check(), everything=False))


def _replicate(project: Project, dsn: str, output: Output, stop: Event) -> bool:
    """Copy, follow a live shop, catch up; whether every table did."""
    output.say("\nheadrace run: a snapshot, then every change as it happens", "bold")
    with showing(output) as tick, ThreadPoolExecutor(1, "headrace-demo") as pool:
        shop = _Shop(dsn, pool, tick, stop)
        failures = project.run(stop=stop, on_tick=shop.tick)
    for failure in failures:
        output.fail(failure.error)
    if shop.traffic is not None and shop.traffic.done():
        bursts = shop.traffic.result().bursts
        output.say(f"all {count(bursts)} transactions of the shop have arrived")
    return not failures


@dataclass(frozen=True)
class _Day:
    """What the shop did, and where its last change is."""

    bursts: int
    lsn: Lsn


class _Shop:
    """Opens when everything is copied, and ends the run when all it did has arrived."""

    def __init__(self, dsn: str, pool: ThreadPoolExecutor, show: Tick, stop: Event) -> None:
        self._dsn = dsn
        self._pool = pool
        self._show = show
        self._stop = stop
        self.traffic: Future[_Day] | None = None

    def tick(self, views: Sequence[View]) -> None:
        self._show(views)
        view = next(view for view in views if isinstance(view, RunView))
        states = [state for m in view.materializations for state in m.tables.values()]
        if any(state.phase is Phase.FAILED for state in states):
            self._stop.set()
        elif self.traffic is None and all(map(_follows, states)):
            self.traffic = self._pool.submit(_trade, self._dsn, self._stop)
        elif self.traffic is not None and self.traffic.done():
            self._end_when_reached(view, self.traffic.result().lsn)

    def _end_when_reached(self, view: RunView, lsn: Lsn) -> None:
        view.capture.reach(lsn)
        if all(m.reached(lsn) for m in view.materializations):
            self._stop.set()


def _follows(state: TableState) -> bool:
    return state.phase is Phase.STREAMING


def _trade(dsn: str, stop: Event) -> _Day:
    """Bursts of changes for some seconds."""
    burst = _statements("demo_traffic.sql")
    until = time.monotonic() + TRAFFIC_SECONDS
    bursts = 0
    with psycopg.connect(dsn, cursor_factory=psycopg.ClientCursor) as session:
        while time.monotonic() < until and not stop.wait(PAUSE):
            bursts += 1
            session.execute(burst, {"seed": bursts})
            session.commit()
        row = session.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    return _Day(bursts, Lsn.parse(row[0] if row else "0/0"))


def _tell_where(folder: Path, server: EmbeddedPostgres, output: Output) -> None:
    """Paths and commands; the password goes into a file of its own, never onto the screen."""
    secret = folder / "password.env"
    secret.touch(0o600)
    secret.write_text(f"export {VARIABLE}={shlex.quote(server.password)}\n", "utf-8")
    file, table = folder / "headrace.yaml", folder / "lake" / "public" / "orders"
    output.say(
        f"""
  {file}
  {folder / "lake"}           the Delta tables
  {folder / ".headrace"}      the change log, Parquet files

  . {secret}
  headrace status -c {file}
  headrace run -c {file}
  headrace preview public.orders -c {file}
  PGPASSWORD=${VARIABLE} psql -h 127.0.0.1 -p {server.port} -U postgres
  python -c "import deltalake; print(deltalake.DeltaTable('{table}').history(3))"

Postgres stays up until Ctrl-C."""
    )
