"""`headrace quarantine`: rows that a destination refused, to be looked at, tried again or dropped.

A row's number is unique at its destination; where pipelines have several, `--pipeline` says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from headrace.cli.invocation import (
    DEFAULT_FILE,
    AsJson,
    ConfigFile,
    Verbose,
    Yes,
    confirmed,
    load_project,
)
from headrace.cli.output import reporting
from headrace.errors import ConfigError, HeadraceError

OnePipeline = Annotated[str | None, typer.Option("--pipeline", help="Only of this pipeline.")]
OneTable = Annotated[
    str | None, typer.Option("--table", metavar="TABLE", help="All of this table's.")
]
EveryRow = Annotated[bool, typer.Option("--all", help="All there are.")]
Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[ID]...", help="These.", show_default=False)
]

quarantine_app = typer.Typer(
    name="quarantine",
    help="Rows that a destination refused: list, show, retry or drop them.",
    no_args_is_help=True,
)


@quarantine_app.command("list")
def list_rows(
    table: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE]", help="schema.table at the destination.", show_default=False
        ),
    ] = None,
    pipeline: OnePipeline = None,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """List the rows in quarantine, each with the reason."""
    from headrace.cli.parked_rows import parked_record, parked_view

    with reporting(as_json=as_json, verbose=verbose) as output:
        rows = load_project(config).quarantine(table, pipeline)
        output.show(map(parked_record, rows), parked_view(rows))


@quarantine_app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", help="The row's number in the list.")],
    pipeline: OnePipeline = None,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show one row, its values as they were to be applied, and why they were not."""
    from headrace.cli.parked_rows import parked_details, parked_record

    with reporting(as_json=as_json, verbose=verbose) as output:
        row = load_project(config).quarantined(number, pipeline)
        output.show([parked_record(row, everything=True)], parked_details(row))


@quarantine_app.command()
def retry(
    numbers: Numbers = None,
    table: OneTable = None,
    every: EveryRow = False,
    pipeline: OnePipeline = None,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Apply rows again; those that pass leave the quarantine. Exit code 1 if any stays."""
    from headrace.cli.parked_rows import retried_view

    with reporting(as_json=as_json, verbose=verbose) as output:
        ids = _chosen(numbers, table, every, "retry")
        done = load_project(config).retry(ids, table, pipeline)
        output.show([{"applied": done.applied, "left": done.left}], retried_view(done))
        if done.left:
            raise typer.Exit(HeadraceError.exit_code)


@quarantine_app.command()
def drop(
    numbers: Numbers = None,
    table: OneTable = None,
    every: EveryRow = False,
    pipeline: OnePipeline = None,
    yes: Yes = False,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Forget rows for good: they will never be applied."""
    with reporting(as_json=as_json, verbose=verbose) as output:
        ids = _chosen(numbers, table, every, "drop")
        what = f"rows {', '.join(map(str, ids))}" if ids else f"every row of {table or 'all'}"
        if not yes and not confirmed(f"Forget {what} in quarantine?"):
            raise typer.Exit(1)
        dropped = load_project(config).drop_quarantined(ids, table, pipeline)
        output.show([{"dropped": dropped}], f"{dropped} dropped")


def _chosen(
    numbers: Sequence[int] | None, table: str | None, every: bool, command: str
) -> Sequence[int]:
    """The numbers, where exactly one way of choosing rows is given."""
    given = [bool(numbers), table is not None, every]
    if sum(given) != 1:
        raise ConfigError(
            "say which rows: their IDs, --table or --all"
            if not any(given)
            else "IDs, --table and --all exclude each other",
            hint=f"headrace quarantine {command} 12 13, or --table public.orders, or --all",
        )
    return numbers or ()
