"""A TCP proxy that fails as networks do."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time: close() sends RST


class Proxy:
    """Forwards 127.0.0.1:`port` to `target`, until told otherwise."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._left: int | None = None
        self.cuts = 0
        self._threads = [threading.Thread(target=self._accept, name="proxy")]

    def cut(self) -> None:
        """Reset every connection; new ones are taken."""
        self.cuts += 1
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def cut_after(self, size: int) -> None:
        """Cut once, when `size` more bytes have come from the target."""
        self._left = size

    def swallow(self) -> None:
        """Take connections and data, and forward nothing: a firewall that forgot us."""
        self._flowing.clear()

    def heal(self) -> None:
        """Forward again, on new connections, and for good; those that went silent are reset."""
        self._left = None
        self.cut()
        self._flowing.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed: the end
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            self._pump(client, server, counted=False)
            self._pump(server, client, counted=True)

    def _pump(self, source: socket.socket, to: socket.socket, *, counted: bool) -> None:
        thread = threading.Thread(target=self._forward, args=(source, to, counted), name="pump")
        self._threads.append(thread)
        thread.start()

    def _forward(self, source: socket.socket, to: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._flowing.wait()
                to.sendall(data)
                if counted:
                    self._count(len(data))
        with self._lock:
            self._open -= {source, to}
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _count(self, size: int) -> None:
        if self._left is not None:
            self._left -= size
            if self._left < 0:
                self._left = None
                self.cut()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        self.cut()
        for thread in self._threads:
            thread.join()
