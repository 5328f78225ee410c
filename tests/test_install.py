"""An install without a C compiler succeeds, and leaves the kernel out instead of failing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import pgcopy, pgoutput

ROOT = Path(__file__).parents[1]


def test_a_missing_compiler_costs_the_kernel_not_the_install(tmp_path: Path) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "src"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "*.c"))
        else:
            shutil.copy(source, tmp_path / name)
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", "out"]
    environment = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    built = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    for kernel in ("headrace.pgoutput._kernel", "headrace.pgcopy._kernel"):
        assert f"{kernel} not built" in built.stderr
    assert not list((tmp_path / "out").rglob("_kernel*.so"))
    assert list((tmp_path / "out").rglob("headrace/pgoutput/reference.py"))


def test_the_kernels_are_built() -> None:
    """Without them their tests are skipped, which must not go unnoticed in CI."""
    if os.environ.get("CI") != "true" and not (pgcopy.KERNEL and pgoutput.KERNEL):
        pytest.skip("installed without a C compiler, or without Python's headers")
    assert pgcopy.KERNEL
    assert pgoutput.KERNEL
