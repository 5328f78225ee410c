"""The embedded server: what the other tests and the demo rely on."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from headrace.errors import HeadraceError
from headrace.testing.postgres import EmbeddedPostgres, _children, wheel_bin_dir


@pytest.fixture(scope="module")
def server():
    with EmbeddedPostgres(fast=True, settings={"work_mem": "5MB"}) as server:
        yield server


def value(dsn: str, query: str):
    with psycopg.connect(dsn, autocommit=True) as connection:
        return connection.execute(query).fetchone()[0]


def test_it_decodes_logically_and_takes_settings(server):
    assert value(server.dsn(), "show wal_level") == "logical"
    assert value(server.dsn(), "show work_mem") == "5MB"


def test_a_wrong_password_is_refused_over_tcp_and_over_the_socket(server):
    for via_socket in (False, True):
        assert value(server.dsn(via_socket=via_socket), "select 1") == 1
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn(password="wrong", via_socket=via_socket))


def test_the_dsn_carries_any_name_and_password(server):
    name, password = "o'brien @/:?#", "p%40 ss/:?#é"
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create role \"{name}\" login password '{password}'")
        connection.execute(f'create database "{name}" owner "{name}"')
    dsn = server.dsn(name, name, password)
    assert value(dsn, "select current_user || current_database()") == name + name


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_data_outlives_a_restart(server, mode):
    table = f"kept_{mode}"
    with psycopg.connect(server.dsn()) as connection:
        connection.execute(f"create table {table} as select 7 as id")
    server.restart(mode)
    assert value(server.dsn(), f"select id from {table}") == 7


def test_kill_ends_every_process_at_once_and_committed_rows_survive(server):
    connection = psycopg.connect(server.dsn(), autocommit=True)
    connection.execute("create table survivor (id int)")
    connection.execute("insert into survivor values (1)")
    processes = [server.pid, *_children(server.pid)]
    assert connection.info.backend_pid in processes
    server.kill()
    assert [pid for pid in processes if _alive(pid)] == []
    with pytest.raises(psycopg.OperationalError):
        connection.execute("select 1")
    connection.close()
    server.start()
    assert value(server.dsn(), "select count(*) from survivor") == 1


def test_a_setting_that_postgres_refuses_is_reported_with_its_log():
    with pytest.raises(HeadraceError, match="no_such_setting") as caught:
        EmbeddedPostgres(settings={"no_such_setting": "1"}).__enter__()
    assert caught.value.hint


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("headrace.testing.postgres.WHEEL", "no_such_wheel")
    with pytest.raises(HeadraceError) as caught:
        wheel_bin_dir()
    assert caught.value.hint == 'pip install "headrace[demo]"'


def test_nothing_is_left_behind_after_the_block():
    with EmbeddedPostgres(fast=True) as server:
        folder, pid = server.folder, server.pid
        assert folder.exists()
    assert not folder.exists()
    assert not _alive(pid)


def test_nothing_is_left_behind_when_the_owner_is_killed():
    script = (
        "from headrace.testing.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(fast=True).__enter__()\n"
        "print(server.folder, server.pid, server._watchdog.pid, flush=True)\n"
        "input()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        folder, pid, watchdog = owner.stdout.readline().split()
        ended = [os.pidfd_open(int(pid)), os.pidfd_open(int(watchdog))]
        owner.send_signal(signal.SIGKILL)
    for descriptor in ended:
        _await_end(descriptor)
    assert not Path(folder).exists()


def test_a_private_home_of_the_binaries_is_copied_not_opened(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root's child loses the right to read")
    package = wheel_bin_dir().parents[1]
    home = tmp_path / "home"
    home.mkdir(0o700)
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.parent / name, home / name, symlinks=True)
    with EmbeddedPostgres(bin_dir=home / wheel_bin_dir().relative_to(package.parent)) as server:
        assert value(server.dsn(), "select 1") == 1
        assert server.bin_dir.is_relative_to(server.folder)
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_plain_user_needs_no_root():
    if os.geteuid() != 0:
        pytest.skip("every test here runs as a plain user already")
    script = (
        "import os, psycopg\n"
        "from headrace.testing.postgres import EmbeddedPostgres\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "with EmbeddedPostgres(fast=True) as server:\n"
        "    server.kill(); server.start()\n"
        "    psycopg.connect(server.dsn()).close()\n"
        "    assert server.folder.stat().st_uid == 65534\n"
        "assert not server.folder.exists()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd="/")


def _alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _await_end(descriptor: int) -> None:
    assert select.select([descriptor], [], [], 30)[0]
    os.close(descriptor)
