"""The heavy readers' own Python environment: made once into .cache, by its pins, for all tests."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "readers"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_MADE = "complete"  # the last file that is written


def heavy_python() -> Path:
    """The interpreter that has the heavy readers; skips the test offline, but never in CI."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = CACHE / key
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side
        if not (folder / _MADE).exists():
            _make(folder)
    return folder / "bin" / "python"


def _make(folder: Path) -> None:
    commands = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [
            *(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--no-compile", "--disable-pip-version-check", "-r", str(REQUIREMENTS)),
        ],
    ]
    for command in commands:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
        if done.returncode:
            told = f"the readers of tests/readers cannot be installed:\n{done.stderr[-2000:]}"
            if os.environ.get("CI") == "true":
                pytest.fail(told)
            pytest.skip(told)
    (folder / _MADE).touch()
