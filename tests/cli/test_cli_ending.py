"""A command's exit code tells how it went, whatever happens to its process after that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ABORTING = """
import atexit, os
atexit.register(os.abort)  # as destructors of C++ libraries do where their threads still run
from headrace.cli import main
main()
"""


def ended(*arguments: str, **to) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ABORTING, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **to)


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["status"], 2), (["no"], 2)])
def test_what_breaks_at_the_interpreters_end_does_not_change_the_exit_code(
    tmp_path, arguments, code
):
    done = ended(*arguments, cwd=tmp_path, stdout=subprocess.PIPE)
    assert done.returncode == code
    assert done.stdout or "headrace init" in done.stderr or "No such command" in done.stderr


def test_output_that_nobody_reads_is_told_by_the_exit_code_alone(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = ended("--version", cwd=tmp_path, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_does_not_fit_on_the_disk_is_an_error(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = ended("status", "--json", cwd=tmp_path, stdout=full)
    assert done.returncode == 1
    said, hint = done.stderr.splitlines()
    assert said == "error: the output cannot be written: No space left on device"
    assert hint.startswith("hint: make room")
