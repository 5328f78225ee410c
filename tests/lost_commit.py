"""A way to the server that is lost in a COMMIT: before the server has it, or before it answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum


class Loss(Enum):
    """Where the connection breaks."""

    BEFORE = "the server never gets the COMMIT"
    AFTER = "the server commits, its answer never arrives"


@dataclass
class Way:
    """`port` leads to the server; `lose` breaks the connection of the next COMMIT."""

    target: tuple[str, int]
    listener: socket.socket
    losing: Loss | None = None
    lost: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    ends: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def lose(self, loss: Loss) -> None:
        self.losing = loss

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(self.target)
                self.ends += [client, server]
                for one, other in ((client, server), (server, client)):
                    thread = threading.Thread(target=self._pump, args=(one, other, one is client))
                    self.threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, to: socket.socket, asking: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self._is_lost(data, asking):
                    break
                to.sendall(data)
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _is_lost(self, data: bytes, asking: bool) -> bool:
        """The question's text is COMMIT, and so is the tag of its answer."""
        wanted = asking == (self.losing is Loss.BEFORE)
        found = self.losing is not None and wanted and b"COMMIT\0" in data
        if found:
            self.losing = None
            self.lost += 1
        return found


@contextmanager
def way_to(host: str, port: int) -> Iterator[Way]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        way = Way((host, port), listener)
        accepting = threading.Thread(target=way.accept)
        accepting.start()
        try:
            yield way
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            accepting.join()
            for end in way.ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in way.threads:
                thread.join(10)
