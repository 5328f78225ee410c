"""Whatever is wrong: words and a hint, the right exit code, no traceback, and never a secret."""

from __future__ import annotations

import json

import pytest

from headrace.testing.database import Database

SECRET = "tr0ub4dor&3-never-shown"
VARIABLE = "SOURCE_PASSWORD"  # that the file of `headrace init` names


def write(folder, text: str) -> None:
    (folder / "headrace.yaml").write_text(text)


BAD_FILES = {
    "not YAML": "version: 1\n  connections: {",
    "an unknown key": "version: 1\nconections: {}\n",
    "an empty file": "",
    "a variable that is not set": "version: 1\nstate: ${NO_SUCH_VARIABLE_HERE}\n",
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES.keys())
@pytest.mark.parametrize("command", ["check", "run", "status"])
def test_a_bad_file_is_wrong_use_with_a_hint(command_line, text, command):
    write(command_line.folder, text)
    done = command_line.inside(command)
    assert done.code == 2
    assert done.err.startswith("error: headrace.yaml")
    assert "\nhint: " in done.err
    assert "Traceback" not in done.out + done.err


def test_a_missing_file_points_to_init(command_line):
    done = command_line.inside("run", "-c", "elsewhere.yaml")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: elsewhere.yaml does not exist\nhint: headrace init\n"


def test_under_json_an_error_is_one_object_on_stdout(command_line):
    done = command_line.inside("status", "--json")
    assert (done.code, done.err) == (2, "")
    assert json.loads(done.out) == {
        "error": "headrace.yaml does not exist",
        "hint": "headrace init",
    }


def test_a_traceback_appears_with_verbose_only(command_line):
    assert "Traceback" not in command_line.inside("status").err
    assert "ConfigError" in command_line.inside("status", "-v").err


def test_a_process_ends_with_the_same_words(command_line):
    done = command_line("status")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: headrace.yaml does not exist\nhint: headrace init\n"


@pytest.mark.parametrize(
    "arguments", [("check", "nowhere"), ("run", "nowhere", "--once"), ("destroy", "nowhere", "-y")]
)
def test_an_unknown_pipeline_names_those_there_are(shop, arguments):
    done = shop.inside(*arguments)
    assert done.code == 2
    assert "nowhere" in done.err
    assert "source_to_lake" in done.err


def test_an_unknown_option_is_wrong_use(command_line):
    assert command_line.inside("run", "--no-such-option").code == 2


def test_an_unreachable_server_is_a_failure_that_names_its_address(shop):
    text = shop.file.read_text()
    port = next(line for line in text.splitlines() if line.startswith("    port:"))
    write(shop.folder, text.replace(port, "    port: 1"))
    for command in (["check"], ["run", "--once"], ["verify"], ["plan"]):
        done = shop.inside(*command)
        assert done.code == 1, command
        assert ":1/" in done.err
        assert "hint: " in done.err
    assert shop.inside("status").code == 0  # that the source is away is part of the answer


@pytest.mark.parametrize(
    "command",
    [
        ("check", "-v"),
        ("check", "--json"),
        ("plan", "-v"),
        ("run", "--once", "-v"),
        ("run", "--once", "--json"),
        ("status", "-v"),
        ("verify", "-v"),
        ("destroy", "--yes", "-v"),
    ],
    ids=" ".join,
)
def test_invariant_14_a_refused_password_appears_nowhere(shop, command):
    done = shop.inside(*command, **{VARIABLE: SECRET})
    assert SECRET not in done.out + done.err
    assert "password authentication failed" in done.out + done.err


def test_invariant_14_a_password_that_works_is_in_no_output_and_no_file(shop, database: Database):
    password = shop.environment[VARIABLE]
    outputs = []
    for command in (["check", "-v"], ["run", "--once", "-v"], ["status", "--json"], ["plan", "-v"]):
        done = shop.inside(*command)
        assert done.code in (0, 3), done.err
        outputs.append(done.out + done.err)
    assert not any(password in output for output in outputs)
    files = [path for path in shop.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if password.encode() in path.read_bytes()] == []


def test_invariant_14_a_url_in_the_file_is_not_quoted_back(command_line):
    url = f"postgresql://someone:{SECRET}@[broken/shop"
    write(
        command_line.folder,
        "version: 1\nconnections:\n"
        f"  shop: {{type: postgres, url: '{url}'}}\n"
        "  lake: {type: delta, location: ./lake}\n"
        "pipelines:\n  p: {source: shop, destination: lake, tables: ['public.*']}\n",
    )
    for command in (["check", "-v"], ["run", "--once", "-v"], ["status", "--json", "-v"]):
        done = command_line.inside(*command)
        assert SECRET not in done.out + done.err
