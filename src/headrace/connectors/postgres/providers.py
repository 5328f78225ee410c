"""Who runs a Postgres server, and where its owner changes what SQL cannot.

Managed services keep wal_level, the REPLICATION right and the timeouts behind their own consoles;
the advice to run ALTER SYSTEM would be useless there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Provider:
    """A service by its marks, and its own words for three changes.

    `prefix` begins the names of settings that only its servers have. `replication_roles` are roles
    whose members may replicate without the attribute REPLICATION. `{user}` in `grant` is the
    quoted role; `{setting}` and `{value}` in `parameter` are a server parameter.
    """

    name: str
    wal_level: str
    grant: str
    parameter: str
    hosts: tuple[str, ...] = ()
    prefix: str = ""
    replication_roles: tuple[str, ...] = ()
    grant_is_sql: bool = True
    parameter_is_sql: bool = False


PLAIN: Final = Provider(
    name="Postgres",
    wal_level="as superuser: ALTER SYSTEM SET wal_level = 'logical', then restart the server",
    grant="ALTER ROLE {user} REPLICATION",
    parameter="ALTER SYSTEM SET {setting} = '{value}'",
    parameter_is_sql=True,
)

MANAGED: Final = (
    Provider(
        name="Neon",
        hosts=(".neon.tech",),
        prefix="neon.",
        replication_roles=("neon_superuser",),
        wal_level="Neon console: Settings, Logical Replication, Enable (restarts the computes; "
        "cannot be undone)",
        grant="make the role {user} in the Neon console, with the Neon CLI or API: such roles may "
        "replicate, roles made by SQL may not",
        grant_is_sql=False,
        parameter="Neon sets {setting} itself; ask its support to change it",
    ),
    Provider(
        name="Amazon RDS or Aurora",
        hosts=(".rds.amazonaws.com", ".rds.amazonaws.com.cn"),
        prefix="rds.",
        replication_roles=("rds_replication", "rds_superuser"),
        wal_level="set rds.logical_replication = 1 in a parameter group of your own (Aurora: DB "
        "cluster parameter group), attach it, and reboot the (writer) instance",
        grant="GRANT rds_replication TO {user}",
        parameter="set {setting} = {value} in the parameter group (Aurora: DB cluster parameter "
        "group); a static parameter needs a reboot",
    ),
    Provider(
        name="Google Cloud SQL",
        prefix="cloudsql.",
        wal_level="set the database flag cloudsql.logical_decoding = on; the instance restarts",
        grant="ALTER ROLE {user} REPLICATION",
        parameter="set the database flag {setting} = {value}",
    ),
    Provider(
        name="Azure Database for PostgreSQL",
        hosts=(".postgres.database.azure.com",),
        prefix="azure.",
        wal_level="set the server parameter wal_level = logical, then restart the server",
        grant="ALTER ROLE {user} REPLICATION",
        parameter="set the server parameter {setting} = {value}",
    ),
)


def detect(host: str, prefixes: Collection[str]) -> Provider:
    """Whose server it is, by its host name or by `prefixes`, what its settings' names begin with
    (`neon.`)."""
    for provider in MANAGED:
        if provider.prefix in prefixes or host.lower().rstrip(".").endswith(provider.hosts):
            return provider
    return PLAIN
