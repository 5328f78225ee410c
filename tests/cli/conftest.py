"""The command line as its users have it: a process, a folder, an environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from typer.testing import CliRunner

from headrace.cli import app
from headrace.cli.starter import Starter, starter_text
from headrace.testing.database import Database

TIMEOUT = 120
VARIABLE = "SOURCE_PASSWORD"


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """What was printed under --json; every line must be an object."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class CommandLine:
    """Runs `headrace` in a folder of its own: called, as a process; `inside`, in this one."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.folder / "headrace.yaml"

    def __call__(self, *arguments: str, **environment: str) -> Finished:
        with self.started(*arguments, **environment) as process:
            out, err = process.communicate(timeout=TIMEOUT)
        return Finished(process.returncode, out, err)

    def inside(self, *arguments: str, **environment: str) -> Finished:
        """The same without the start of a process, which takes longer than most commands."""
        with chdir(self.folder):
            done = CliRunner().invoke(app, arguments, env={**self.environment, **environment})
        return Finished(done.exit_code, done.stdout, done.stderr)

    @contextmanager
    def started(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """A running command, killed if the test leaves it behind."""
        with subprocess.Popen(
            [sys.executable, "-m", "headrace", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def shop(database: Database, tmp_path: Path) -> CommandLine:
    """A folder with the file that `headrace init` writes for the test's database of two tables."""
    database.execute(
        "create table customers (id int primary key, name text);"
        "create table orders (id int primary key, customer_id int, total numeric(10,2));"
        "insert into customers select n, 'customer ' || n from generate_series(1, 300) n;"
        "insert into orders select n, 1 + n % 300, n * 1.5 from generate_series(1, 1000) n"
    )
    parts = {key: str(value) for key, value in conninfo_to_dict(database.dsn).items()}
    starter = Starter(
        host=parts["host"],
        port=int(parts["port"]),
        database=database.name,
        user=parts["user"],
        variable=VARIABLE,
    )
    (tmp_path / "headrace.yaml").write_text(starter_text(starter))
    return CommandLine(tmp_path, {VARIABLE: parts["password"]})
