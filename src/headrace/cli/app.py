"""The commands and their options (DESIGN: "One command line").

Each is a few lines over one call of `headrace.project`. What is heavy to import is imported by the
command that needs it, so that `--help` and completion answer at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

import headrace
from headrace.cli.ending import ending_process
from headrace.cli.invocation import (
    DEFAULT_FILE,
    AsJson,
    ConfigFile,
    OnePipeline,
    Verbose,
    Yes,
    confirmed,
    load_project,
    lsn_of,
)
from headrace.cli.output import INTERRUPTED, Output, reporting
from headrace.cli.plain import about
from headrace.cli.quarantine import quarantine_app
from headrace.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.project import Project
    from headrace.refreshes import TableFailure

BLOCKED: Final = 3  # exit code: a check found a blocker
DIFFERENT: Final = 4  # exit code: a verification found a difference

PASSWORD_ENV: Final = {False: "SOURCE_PASSWORD", True: "DESTINATION_PASSWORD"}  # by --reverse

app = typer.Typer(
    name="headrace",
    help="Replication between Postgres and the lakehouse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(quarantine_app)


def main() -> NoReturn:
    """The entry point; always ends the process with an exit code."""
    ending_process(lambda: app(prog_name="headrace"))


def decoder_name() -> str:
    """Which decoder this installation reads the replication stream with."""
    from headrace.pgoutput import KERNEL

    return "compiled pgoutput kernel" if KERNEL else "plain Python pgoutput decoder"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {headrace.__version__} ({decoder_name()})")
        raise typer.Exit


@app.callback()
def headrace_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Replication between Postgres and the lakehouse."""


# -- before a run ----------------------------------------------------------------------------------


@app.command()
def init(
    url: Annotated[
        str,
        typer.Option(
            "--url",
            "--source-url",
            help="postgresql://user@host:port/database without a password, or ${NAME}.",
        ),
    ] = "",
    host: Annotated[str, typer.Option(help="The Postgres server's host.")] = "",
    port: Annotated[int, typer.Option(help="Its port.")] = 5432,
    database: Annotated[str, typer.Option(help="The database.")] = "",
    user: Annotated[str, typer.Option(help="The role to work as.")] = "",
    password_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable with its password; SOURCE_PASSWORD if not given, with "
            "--reverse DESTINATION_PASSWORD.",
            show_default=False,
        ),
    ] = None,
    location: Annotated[str, typer.Option(help="Where the Delta tables are, or go.")] = "./lake",
    tables: Annotated[str, typer.Option(help="Which tables, as schema.table or a glob.")] = (
        "public.*"
    ),
    reverse: Annotated[
        bool, typer.Option("--reverse", help="From Delta tables to Postgres.")
    ] = False,
    key: Annotated[
        str, typer.Option(metavar="COLUMNS", help="With --reverse: what identifies a row, as a,b.")
    ] = "id",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a commented headrace.yaml, from options or, on a terminal, by asking."""
    from headrace.cli.starter import Starter, has_password, starter_text

    with reporting(as_json=as_json, verbose=verbose) as output:
        _refuse_to_overwrite(config, force)
        variable = PASSWORD_ENV[reverse] if password_env is None else password_env
        if not url:
            host = host or _ask("--host", "Host of the Postgres server", "localhost")
            database = database or _ask("--database", "Database", "postgres")
            user = user or _ask("--user", "Role", "postgres")
        starter = Starter(
            url=url,
            host=host,
            port=port,
            database=database,
            user=user,
            variable=variable,
            location=location,
            tables=tables,
            reverse=reverse,
            key=tuple(part.strip() for part in key.split(",")),
        )
        _write(config, starter_text(starter), force)
        needed = variable if not has_password(url) else ""
        output.say(f"wrote {config}; next:")
        if needed:
            output.say(f"  export {needed}=…")
        output.say("  headrace check --fix\n  headrace run")
        if as_json:
            output.show([{"written": str(config)}], "")


def _refuse_to_overwrite(config: Path, force: bool) -> None:
    if config.exists() and not force:
        raise ConfigError(f"{config} exists already", hint="headrace init --force overwrites it")


def _ask(option: str, question: str, default: str) -> str:
    if not sys.stdin.isatty():
        raise ConfigError(
            f"{option} is missing, and there is no terminal to ask on",
            hint="headrace init --host HOST --database NAME --user ROLE, or --url URL",
        )
    return str(typer.prompt(question, default=default, err=True))


def _write(config: Path, text: str, force: bool) -> None:
    try:
        with config.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"{config} cannot be written: {error.strerror}", hint="name another file with -c"
        ) from error


@app.command()
def schema() -> None:
    """Print the JSON Schema of headrace.yaml, for editors."""
    from headrace.config import json_schema

    with reporting():
        typer.echo(json.dumps(json_schema(), indent=2))


@app.command()
def check(
    pipeline: OnePipeline = None,
    fix: Annotated[bool, typer.Option("--fix", help="Apply the safe fixes.")] = False,
    yes: Yes = False,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Look for everything that would make a run fail, each with its fix."""
    from headrace.cli.listings import findings_view
    from headrace.model.finding import Severity

    with reporting(as_json=as_json, verbose=verbose) as output:
        project = load_project(config)
        findings = project.check(pipeline)
        statements = [sql for finding in findings if finding.safe for sql in finding.sql]
        if fix and statements and _agreed_to(statements, yes, output):
            for applied in project.fix(pipeline):
                output.show([{"applied": applied}], "")
            findings = project.check(pipeline)
        output.show(findings, findings_view(findings, everything=verbose))
        if any(finding.severity is Severity.BLOCKER for finding in findings):
            raise typer.Exit(BLOCKED)


def _agreed_to(statements: list[str], yes: bool, output: Output) -> bool:
    from headrace.cli.listings import statements_view

    if not output.as_json:
        output.say("These statements will run:")
        output.console.print(statements_view(statements))
    return yes or confirmed("Run them?")


@app.command()
def plan(
    pipeline: OnePipeline = None,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show what a run would create or copy, before it happens."""
    from headrace.cli.listings import plan_view

    with reporting(as_json=as_json, verbose=verbose) as output:
        made = load_project(config).plan(pipeline)
        output.show(made.steps, plan_view(made))


# -- running ---------------------------------------------------------------------------------------


@app.command()
def run(
    pipelines: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PIPELINE]...", help="Only these.", show_default=False),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Catch up with where the source is now, then exit.")
    ] = False,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Copy what is missing, then follow every change, until Ctrl-C."""
    from headrace.cli.display import showing
    from headrace.cli.interruption import stopping_on_signals
    from headrace.pgoutput import KERNEL

    with reporting(as_json=as_json, verbose=verbose) as output:
        project = load_project(config)
        if not KERNEL and project.settings.captures():
            output.warn(
                "the compiled pgoutput kernel is missing, decoding is many times slower; "
                "install a wheel, or a C compiler before installing"
            )
        with stopping_on_signals() as asked, showing(output) as tick:
            failures = project.run(pipelines or (), once=once, stop=asked.stop, on_tick=tick)
        _end_run(output, project, failures, caught_up=once, interrupted=asked.signalled)


def _end_run(
    output: Output,
    project: Project,
    failures: list[TableFailure],
    *,
    caught_up: bool,
    interrupted: bool,
) -> None:
    """Tell how it ended, in words and by the exit code."""
    for failure in failures:
        what = about(str(failure.table), failure.error.message)
        output.fail(HeadraceError(f"{failure.pipeline}: {what}", hint=failure.error.hint))
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if failures:
        raise typer.Exit(1)
    if caught_up:
        from headrace.cli.listings import caught_up_view

        output.say(*caught_up_view(project.status()))


@app.command()
def resync(
    tables: Annotated[
        list[str], typer.Argument(metavar="TABLE...", help="schema.table at either end.")
    ],
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Copy tables again, with the columns they have now; the old rows stay until the swap."""
    from headrace.cli.display import showing
    from headrace.cli.interruption import stopping_on_signals

    with reporting(as_json=as_json, verbose=verbose) as output:
        project = load_project(config)
        with stopping_on_signals() as asked, showing(output) as tick:
            failures = project.resync(tables, stop=asked.stop, on_tick=tick)
        _end_run(output, project, failures, caught_up=True, interrupted=asked.signalled)


@app.command()
def undo(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="schema.table at either end.")],
    yes: Yes = False,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Bring back what a table held before it was last built anew; it is left alone from then on."""
    with reporting(as_json=as_json, verbose=verbose) as output:
        project = load_project(config)
        if not yes and not confirmed(f"Bring back the rows that {table} had before its rebuild?"):
            raise typer.Exit(1)
        done = project.undo(table)
        output.show([{"done": done}], done)


# -- looking ---------------------------------------------------------------------------------------


@app.command()
def status(
    config: ConfigFile = DEFAULT_FILE, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    """Show where every capture and table stands, whether or not a run is going on.

    Exit code 4: the last verification found a difference that is not repaired.
    """
    from headrace.cli.listings import status_view

    with reporting(as_json=as_json, verbose=verbose) as output:
        found = load_project(config).status()
        output.show([*found.captures, *found.tables], status_view(found))
        if any(table.differs for table in found.tables):
            raise typer.Exit(DIFFERENT)


@app.command()
def preview(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="schema.table at the source.")],
    limit: Annotated[int, typer.Option(min=1, help="How many changes.")] = 20,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show the newest changes of a table in the change log, newest last."""
    from headrace.cli.listings import changes_of_log, rows_view
    from headrace.cli.plain import with_short_floats
    from headrace.model.times import python_rows

    with reporting(as_json=as_json, verbose=verbose) as output:
        found = with_short_floats(load_project(config).preview(table, limit))
        rows = changes_of_log(found, everything=as_json or verbose)
        output.show(python_rows(rows), rows_view(rows))


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="SELECT … FROM schema.table")],
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of-lsn",
            metavar="LSN",
            help="Read the tables as they stood together at this LSN of their source.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Run SQL over the destination's tables, by their names."""
    from headrace.cli.listings import rows_view
    from headrace.cli.plain import with_short_floats
    from headrace.model.times import python_rows

    with reporting(as_json=as_json, verbose=verbose) as output:
        rows = with_short_floats(load_project(config).query(sql, lsn_of(as_of)))
        output.show((r for b in rows.to_batches() for r in python_rows(b)), rows_view(rows))


@app.command()
def lsn(
    pipeline: OnePipeline = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="LSN", help="Not after this one.", show_default=False),
    ] = None,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show the newest LSN that all tables have reached, and the version of each that has it."""
    from headrace.cli.listings import moments_view

    with reporting(as_json=as_json, verbose=verbose) as output:
        moments = load_project(config).lsn(pipeline, lsn_of(at))
        output.show(moments, moments_view(moments))


@app.command()
def verify(
    pipeline: OnePipeline = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Write what differs to Delta tables, and no more."),
    ] = False,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Prove that every table equals its source, row by row, at one LSN or version."""
    from headrace.cli.listings import verification_view

    with reporting(as_json=as_json, verbose=verbose) as output:
        tables = load_project(config).verify(pipeline, repair=repair)
        output.show(tables, verification_view(tables))
        left = [table for table in tables if not table.repaired]
        if any(table.differs or table.quarantined for table in left):
            raise typer.Exit(DIFFERENT)
        if not all(table.equal for table in left):
            raise typer.Exit(HeadraceError.exit_code)


# -- the end ---------------------------------------------------------------------------------------


@app.command()
def destroy(
    pipeline: OnePipeline = None,
    yes: Yes = False,
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Drop what Headrace made beside the tables: slot, publication, change log, records."""
    with reporting(as_json=as_json, verbose=verbose) as output:
        project = load_project(config)
        what = f"of {pipeline}" if pipeline else "of every pipeline"
        if not yes and not confirmed(f"Drop slot, publication, change log and records {what}?"):
            raise typer.Exit(1)
        for line in project.destroy(pipeline):
            output.show([{"done": line}], line)


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything up, to look around, until Ctrl-C.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Bring a Postgres of its own live into Delta tables, on this machine, within a minute."""
    from headrace.cli.demo import run_demo

    with reporting(verbose=verbose) as output:
        code = run_demo(output, keep=keep)
        if code:
            raise typer.Exit(code)
