"""The server with TLS: what tests of sslmode rely on."""

from __future__ import annotations

import psycopg
import pytest

from headrace.errors import HeadraceError
from headrace.testing.builds import build_bin_dir


def test_it_is_verified_by_its_own_authority_and_name_only(tls_server, certificates):
    def connect(**parameters):
        return psycopg.connect(tls_server.dsn(sslmode="verify-full", **parameters))

    with connect(host="localhost", sslrootcert=str(certificates.ca)) as connection:
        assert connection.execute(
            "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()"
        ).fetchone() == (True, "TLSv1.3")
        assert connection.pgconn.used_password
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        connect(sslrootcert=str(certificates.ca))
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        connect(host="localhost", sslrootcert="system")


def test_plain_tcp_is_refused(tls_server):
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        psycopg.connect(tls_server.dsn(sslmode="disable"))


def test_an_unknown_version_names_the_known_ones(tmp_path):
    with pytest.raises(HeadraceError) as caught:
        build_bin_dir(9, tmp_path)
    assert caught.value.hint == "choose one of 13, 14, 15, 16, 17, 18"
