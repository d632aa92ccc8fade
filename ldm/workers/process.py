"""Workers that are processes of this machine.

Each has a pipe of its own to this process, whose other end nobody else holds. So the end of a
worker is noticed at once, even if it is killed in the middle of a reply, and a worker ends with
this process, however that ends.
"""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from queue import SimpleQueue

from ldm.workers.worker import serve


class WorkerDied(Exception):
    """A process ended before it answered."""


class Process:
    """A process of this machine, which takes one order after another."""

    died = (WorkerDied,)

    def __init__(self, index: int) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(index, theirs), daemon=True)
        with without_interrupts():
            self.process.start()
        theirs.close()
        self.orders: SimpleQueue[tuple[bytes, Future[bytes]]] = SimpleQueue()
        threading.Thread(target=self._talk, daemon=True).start()

    def submit(self, order: bytes) -> Future[bytes]:
        """Send an order; its reply comes later."""
        future: Future[bytes] = Future()
        self.orders.put((order, future))
        return future

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()

    def _talk(self) -> None:
        """Send each order and wait for its reply, until the process ends."""
        is_alive = True
        while True:
            order, future = self.orders.get()
            try:
                if not is_alive:
                    raise EOFError
                self.pipe.send_bytes(order)
                kind, content = pickle.loads(self.pipe.recv_bytes())
            except (EOFError, OSError):
                is_alive = False
                future.set_exception(WorkerDied("the process ended unexpectedly"))
                continue
            if kind == "reply":
                future.set_result(content)
            else:
                future.set_exception(content)


@dataclass(frozen=True)
class Processes:
    """A number of processes of this machine."""

    count: int
    here = True

    def open(self, device: str) -> int:
        """Return their number."""
        return self.count

    def hire(self, index: int) -> Process:
        """Start a new one, which takes the GPU of this index."""
        return Process(index)

    def close(self) -> None:
        """Nothing is left to close."""


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Let processes that start here ignore Ctrl-C from the very beginning."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
