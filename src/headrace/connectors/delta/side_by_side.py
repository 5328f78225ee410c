"""Several sources read at once, what they give taken one after the other, with a bound on both."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

S = TypeVar("S")
T = TypeVar("T")

AHEAD: Final = 4  # items read that nobody has taken
_POLL: Final = 0.1  # seconds in which a reader notices that nobody takes any more


def side_by_side(
    sources: Iterable[S], read: Callable[[S], Iterator[T]], threads: int
) -> Iterator[T]:
    """What `read` gives of each source, in no order between sources; raises what it raises."""
    items: queue.Queue[T | None] = queue.Queue(AHEAD)
    waiting, lock, stop = iter(sources), threading.Lock(), threading.Event()

    def put(item: T | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                items.put(item, timeout=_POLL)
                return

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    source = next(waiting, None)
                if source is None:
                    return
                for item in read(source):
                    put(item)
        finally:
            put(None)

    with ThreadPoolExecutor(threads, "headrace-read") as pool:
        readers: list[Future[None]] = [pool.submit(work) for _ in range(threads)]
        try:
            for _ in range(threads):
                while (item := items.get()) is not None:
                    yield item
        finally:
            stop.set()
        for reader in readers:
            reader.result()
