"""A proxy before an S3 server that misbehaves as told: by request, how often, and before or after
the server has done what was asked of it."""

from __future__ import annotations

import http.client
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Fault:
    """What befalls the next `times` requests whose `METHOD /path` matches.

    `status` answers in the server's place, with S3's `code`; 0 breaks the connection. With `done`
    the server has carried the request out before. `silent` waits for so many seconds instead.
    `struck` is set when it befalls the first one.
    """

    request: str
    times: int = 1
    status: int = 0
    code: str = ""
    done: bool = False
    silent: float = 0.0
    met: int = 0
    struck: threading.Event = field(default_factory=threading.Event)


@dataclass
class ObjectProxy:
    """`endpoint` is where clients go; `seen` every request that came, as `METHOD /path`."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    dropped: set[str] = field(default_factory=set)  # headers, lower case, that never arrive
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)

    def plan(self, *faults: Fault) -> Sequence[Fault]:
        with self.lock:
            self.faults[:] = faults
        return faults

    def fault_for(self, request: str) -> Fault | None:
        with self.lock:
            self.seen.append(request)
            for fault in self.faults:
                if fault.met < fault.times and re.search(fault.request, request):
                    fault.met += 1
                    return fault
        return None


@contextmanager
def object_proxy(server: str) -> Iterator[ObjectProxy]:
    """A proxy before the S3 server at a URL, for the length of the block."""
    proxy = ObjectProxy("")

    class Handler(_Handler):
        here, there = proxy, urlsplit(server).netloc

    with _Server(("127.0.0.1", 0), Handler) as listening:
        proxy.endpoint = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.over.set()
            listening.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # clients keep their connections

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""


class _Handler(BaseHTTPRequestHandler):
    here: ObjectProxy
    there: str
    protocol_version = "HTTP/1.1"

    def _relay(self) -> None:
        body = self._body()
        fault = self.here.fault_for(f"{self.command} {self.path}")
        if fault is None or fault.done:
            answer = self._ask(body)
            if fault is None:
                return self._answer(*answer)
        fault.struck.set()
        if fault.silent:
            self.here.over.wait(fault.silent)
        if not fault.status:
            return self._break()
        xml = f"<Error><Code>{fault.code}</Code><Message>as told</Message></Error>".encode()
        return self._answer(fault.status, [("Content-Type", "application/xml")], xml)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _relay  # noqa: N815

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        return self.rfile.read(int(length)) if length else b""

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in self.here.dropped}
        connection = http.client.HTTPConnection(self.there, timeout=30)
        try:
            connection.request(self.command, self.path, body, headers)
            found = connection.getresponse()
            return found.status, found.getheaders(), found.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break(self) -> None:
        """End the connection by a reset, as a load balancer that drops it does."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def log_message(self, *args: Any) -> None:
        """Nothing: the tests look at `seen`."""
