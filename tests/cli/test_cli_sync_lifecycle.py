"""From a Delta table to Postgres and on, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from psycopg.conninfo import conninfo_to_dict

from headrace.testing.database import Database

VARIABLE = "DESTINATION_PASSWORD"  # that the file of `headrace init --reverse` names
ROWS = "select id, name, code from crm.people order by id"
RULES = """\
key: [id]
        columns: {types: {code: varchar(3)}}
        expect: {named: "name <> ''"} #"""


def people(*rows: tuple[int, str, str]) -> pa.Table:
    ids, names, codes = zip(*rows, strict=True)
    return pa.table({"id": pa.array(ids, pa.int64()), "name": names, "code": codes})


@pytest.fixture
def lake(tmp_path: Path) -> str:
    """A Delta table of three rows that tells its changes."""
    place = str(tmp_path / "lake" / "crm" / "people")
    rows = people((1, "Ada", "a"), (2, "Grace", "b"), (3, "Edsger", "c"))
    write_deltalake(place, rows, configuration={"delta.enableChangeDataFeed": "true"})
    return place


@pytest.fixture
def line(command_line, database: Database, lake: str):
    """The command line in the table's folder, after `headrace init --reverse`."""
    parts = {key: str(value) for key, value in conninfo_to_dict(database.dsn).items()}
    address = [f"--{key}={parts[name]}" for key, name in [("host", "host"), ("port", "port")]]
    address += [f"--database={database.name}", f"--user={parts['user']}"]
    command_line.environment[VARIABLE] = parts["password"]
    done = command_line.inside("init", "--reverse", *address, "--tables", "crm.*", "--key", "id")
    assert done.code == 0, done.err
    return command_line


def add_rules(line) -> None:
    line.file.write_text(line.file.read_text().replace("key: [id]", RULES))


def succeed(line, *arguments: str) -> str:
    done = line.inside(*arguments)
    assert done.code == 0, done.out + done.err
    return done.out


def test_a_delta_table_goes_to_postgres_and_is_followed(line, lake, database):
    assert "0 blockers" in succeed(line, "check")
    assert "crm.people" in succeed(line, "plan")
    assert succeed(line, "run", "--once").startswith("caught up: every table holds what")
    assert database.execute(ROWS) == [(1, "Ada", "a"), (2, "Grace", "b"), (3, "Edsger", "c")]

    table = DeltaTable(lake)
    table.update(updates={"name": "'Grace H.'"}, predicate="id = 2")
    table.delete("id = 3")
    table.update(updates={"id": "40"}, predicate="id = 1")  # a key that moves
    assert "versions 1 to 3" in succeed(line, "plan")
    succeed(line, "run", "--once")
    assert database.execute(ROWS) == [(2, "Grace H.", "b"), (40, "Ada", "a")]

    (status,) = line.inside("status", "--json").records
    assert (status["table"], status["phase"]) == ("crm.people", "streaming")
    assert (status["version"], status["source_version"], status["lag_versions"]) == (3, 3, 0)


def test_a_refused_row_is_parked_told_and_tried_again(line, lake, database):
    add_rules(line)
    succeed(line, "run", "--once")
    write_deltalake(lake, people((4, "", "far too long"), (5, "Alan", "e")), mode="append")
    told = succeed(line, "run", "--once")
    assert told == "caught up, but for 1 row in quarantine (headrace quarantine list)\n"
    assert database.execute("select id from crm.people order by id") == [(1,), (2,), (3,), (5,)]

    (status,) = line.inside("status", "--json").records
    assert (status["quarantined"], status["breaches"]) == (1, {"named": 1})
    assert "1 row refused: headrace quarantine list" in succeed(line, "status")
    (parked,) = line.inside("quarantine", "list", "--json").records
    number = str(parked["id"])
    assert (parked["table"], parked["key"], parked["version"]) == ("crm.people", ["4"], 1)
    assert "far too long" in succeed(line, "quarantine", "show", number)

    still = line.inside("quarantine", "retry", number)
    assert (still.code, still.out.splitlines()[0]) == (1, "0 applied, 1 refused again")
    database.execute("alter table crm.people alter column code type varchar(20)")
    assert succeed(line, "quarantine", "retry", number).startswith("1 applied, 0 refused")
    assert database.execute("select code from crm.people where id = 4") == [("far too long",)]
    assert succeed(line, "quarantine", "list") == "no row is in quarantine\n"


def test_a_parked_row_of_a_first_load_can_be_forgotten(line, lake, database):
    add_rules(line)
    write_deltalake(lake, people((4, "Barbara", "far too long")), mode="append")
    told = succeed(line, "run", "--once")
    assert told == "caught up, but for 1 row in quarantine (headrace quarantine list)\n"
    assert database.execute("select id from crm.people order by id") == [(1,), (2,), (3,)]
    assert succeed(line, "quarantine", "drop", "--table", "crm.people", "--yes") == "1 dropped\n"
    assert succeed(line, "quarantine", "list") == "no row is in quarantine\n"


def test_a_rebuild_can_be_undone_and_the_table_is_left_alone_until_a_resync(line, lake, database):
    succeed(line, "run", "--once")
    before = database.execute(ROWS)
    write_deltalake(lake, people((7, "Tony", "t")), mode="overwrite")
    succeed(line, "resync", "crm.people")
    assert database.execute(ROWS) == [(7, "Tony", "t")]
    assert "crm.people" in succeed(line, "undo", "crm.people", "--yes")
    assert database.execute(ROWS) == before
    assert succeed(line, "run", "--once") == "caught up, but for 1 table held (headrace status)\n"
    assert database.execute(ROWS) == before
    (status,) = line.inside("status", "--json").records
    assert status["phase"] == "held"
    succeed(line, "resync", "crm.people")
    assert database.execute(ROWS) == [(7, "Tony", "t")]


def test_what_the_destination_has_not_is_wrong_use_or_a_failure_with_a_hint(line):
    nothing = line.inside("undo", "crm.people", "--yes")
    assert nothing.code in (1, 2)
    assert "hint: " in nothing.err
    unknown = line.inside("undo", "crm.nobody", "--yes")
    assert (unknown.code, "no pipeline carries crm.nobody" in unknown.err) == (2, True)
