"""A worker process on its own: its end is noticed whatever it was doing."""

from __future__ import annotations

import os
import pickle
import signal
import struct
import time
from multiprocessing.connection import Connection

import pytest

from ldm.workers.process import Process, WorkerDied


def half_a_reply(index: int, pipe: Connection) -> None:
    """Die in the middle of a message of 1000 bytes."""
    pipe.recv_bytes()
    os.write(pipe.fileno(), struct.pack("!i", 1000) + b"x" * 10)
    os._exit(1)


def echo(index: int, pipe: Connection) -> None:
    """Answer each order with itself and the index; "wrong" with an exception."""
    while True:
        order = pipe.recv_bytes()
        if order == b"wrong":
            pipe.send_bytes(pickle.dumps(("error", ZeroDivisionError("in the worker"))))
        else:
            pipe.send_bytes(pickle.dumps(("reply", order + str(index).encode())))


def test_orders_are_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.workers.process.serve", echo)
    hand = Process(3)
    replies = [hand.submit(order) for order in (b"a", b"wrong", b"b")]
    assert replies[0].result(60) == b"a3"
    with pytest.raises(ZeroDivisionError, match="in the worker"):
        replies[1].result(60)
    assert replies[2].result(60) == b"b3"
    hand.stop()
    with pytest.raises(WorkerDied):
        hand.submit(b"c").result(60)


def test_a_torn_reply_is_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.workers.process.serve", half_a_reply)
    hand = Process(0)
    with pytest.raises(WorkerDied):
        hand.submit(b"a").result(60)
    with pytest.raises(WorkerDied):
        hand.submit(b"b").result(60)


def test_a_killed_worker_is_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.workers.process.serve", echo)
    one, other = Process(0), Process(1)  # which holds no end of the first one's pipe
    assert one.submit(b"a").result(60) == b"a0"
    assert one.process.pid is not None
    os.kill(one.process.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(WorkerDied):
        one.submit(b"b").result(60)
    assert time.monotonic() - start < 30
    assert other.submit(b"c").result(60) == b"c1"
    other.stop()
