"""A certificate authority and a server certificate that live for a test."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.errors import HeadraceError

_INSTALL: Final = "install OpenSSL's command line tool"
_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """`ca` is what clients name as sslrootcert; `files` go into the server's data folder."""

    ca: Path
    files: dict[str, bytes]


def make_certificates(folder: Path, host: str = "localhost") -> Certificates:
    """Make them with the openssl command; the server's is valid for `host` alone.

    Raises:
        HeadraceError: there is no such command.
    """
    ca, ca_key = folder / "ca.crt", folder / "ca.key"
    server, server_key = folder / "server.crt", folder / "server.key"
    _request(ca, ca_key, "/CN=Test CA", "-addext", "keyUsage=critical,keyCertSign")
    signed = ("-CA", str(ca), "-CAkey", str(ca_key), "-addext", f"subjectAltName=DNS:{host}")
    _request(server, server_key, f"/CN={host}", *signed, "-addext", "basicConstraints=CA:FALSE")
    return Certificates(ca, {p.name: p.read_bytes() for p in (server, server_key)})


def _request(certificate: Path, key: Path, subject: str, *arguments: str) -> None:
    command = ["openssl", "req", "-x509", "-days", "2", "-subj", subject, *_KEY, *arguments]
    command += ["-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError as error:
        raise HeadraceError("cannot make certificates: no openssl", hint=_INSTALL) from error
