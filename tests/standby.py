"""A standby of a server of ours: physical replication, promoted when a test says so."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg

from headrace.testing.postgres import EmbeddedPostgres, wheel_bin_dir

FEEDBACK = {"hot_standby_feedback": "on"}


class Standby(EmbeddedPostgres):
    """Streams from `primary` by the physical slot `standby_1`, which it makes there.

    Settings are those of an EmbeddedPostgres; with `sync_replication_slots` (17) it keeps copies of
    its primary's failover slots.
    """

    def __init__(
        self,
        primary: EmbeddedPostgres,
        settings: Mapping[str, str] | None = None,
        bin_dir: Path | None = None,
    ) -> None:
        # What the tool writes of it an older server may not understand.
        follows = {"primary_conninfo": primary.dsn(), "primary_slot_name": "standby_1"}
        super().__init__({**FEEDBACK, **follows, **(settings or {})}, fast=True, bin_dir=bin_dir)
        self.password = primary.password
        self._primary = primary.dsn()

    def _initdb(self, password: Path) -> None:
        """A copy of the primary takes the place of a new data folder."""
        password.unlink()
        tool = wheel_bin_dir() / "pg_basebackup"  # the newest one copies older servers as well
        command = [tool, "-D", self.data_dir, "-d", self._primary, "-R", "-c", "fast"]
        subprocess.run([*command, "-C", "-S", "standby_1"], check=True, capture_output=True)
        for path in self.data_dir.rglob("*"):
            self._own(path)

    def promote(self) -> None:
        """Make it a primary; returns when it is."""
        with psycopg.connect(self.dsn(), autocommit=True) as session:
            session.execute("select pg_promote()")
