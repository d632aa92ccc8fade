"""A worker in a process of its own, here or on another machine: orders in, images out.

Orders and replies travel as bytes, so that they are alike on every way. No torch until the first.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from ldm.engine.events import Event, RunWarning
from ldm.engine.plan import Plan
from ldm.errors import CheckpointError, LdmError
from ldm.jobs.tuning import PLAIN, Tuning
from ldm.workers.pool import Batch, Engines, Outcome, apart, import_engine

if TYPE_CHECKING:
    from ldm.engine.engine import Engine

# Variables that have a say in how images are computed.
VARIABLES = ("ATTN_PRECISION",)


@dataclass(frozen=True)
class Order:
    """Batches to draw by the engine of a plan; without any it is only loaded.

    `threads` are those of the driver, which have a say in how numbers are rounded on a CPU.
    `folder` is where it works: names of files are relative to it. `depth`: whether that is wanted.
    """

    plan: Plan
    threads: int
    folder: str
    variables: Mapping[str, str]
    tuning: Tuning = PLAIN
    batches: tuple[Batch, ...] = ()
    at_once: int | None = None
    depth: bool = False


@dataclass(frozen=True)
class Reply:
    """The reply to an order: images and errors, as `apart` gives them, and warnings.

    `settled` is the plan updated by loading, `room` how many images are best drawn at once;
    where the loading failed there is only the error.
    """

    outcomes: tuple[Outcome, ...] = ()
    warnings: tuple[RunWarning, ...] = ()
    loading: tuple[Event, ...] = ()
    settled: Plan | None = None
    room: int = 1
    error: LdmError | None = None


@dataclass
class Worker:
    """An engine that takes orders; the `index`th GPU is its own, counted around."""

    index: int = 0
    loading: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engines = Engines(self.loading.append)

    def answer(self, order: bytes) -> bytes:
        """The reply to an order."""
        return pickle.dumps(self.reply(pickle.loads(order)))

    def reply(self, order: Order) -> Reply:
        """Load the model if needed, and generate."""
        self.loading.clear()
        try:
            self._move(order)
            engine = self.engines.load(order.plan)
        except LdmError as error:
            return Reply(error=error)
        warnings: list[RunWarning] = []

        def listen(event: Event) -> None:
            if isinstance(event, RunWarning):
                warnings.append(event)

        outcomes = tuple(
            outcome if isinstance(outcome, LdmError) else replace(outcome, **_left_out(order))
            for outcome in apart(engine, order.batches, listen, order.at_once)
        )
        loading, settled = tuple(self.loading), self.engines.settled
        return Reply(outcomes, tuple(warnings), loading, settled, _room(engine, order.plan))

    def _move(self, order: Order) -> None:
        """Be where the driver is, as it is."""
        try:
            os.chdir(order.folder)
        except OSError as error:
            raise CheckpointError(
                f"{order.folder}: a worker cannot work there ({error.strerror}); all machines must "
                "see the same files under the same names"
            ) from None
        os.environ.update(order.variables)
        self.engines.tuning = order.tuning
        import_engine(order.plan)
        import torch

        if torch.get_num_threads() != order.threads:
            torch.set_num_threads(order.threads)
        if order.plan.job.device in ("auto", "cuda") and torch.cuda.is_available():
            torch.cuda.set_device(self.index % torch.cuda.device_count())


def _left_out(order: Order) -> dict[str, Any]:
    """The fields of a result that are not sent, since nobody uses them."""
    import torch

    nothing = torch.empty(0)
    return {"latent": nothing} if order.depth else {"latent": nothing, "depth": None}


def _room(engine: Engine, plan: Plan) -> int:
    from ldm.engine.batching import room

    model, job = engine.model, plan.job
    height, width = (int((side or 0) // model.factor) for side in (job.height, job.width))
    return room(
        model.network.model_channels, (model.latent_channels, max(1, height), max(1, width))
    )


# --- a process of this machine --------------------------------------------------------------------


def serve(index: int, pipe: Connection) -> None:
    """Answer the orders of the driver in this process, which ends when the driver does.

    A reply is sent pickled as ("reply", bytes), an unexpected exception as ("error", exception).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles it
    orders: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
    worker = Worker(index)
    while True:
        order = orders.get()
        try:
            answer = pickle.dumps(("reply", worker.answer(order)))
        except Exception as error:  # noqa: BLE001 (the driver raises it)
            answer = _pickled_error(error)
        try:
            pipe.send_bytes(answer)
        except OSError:  # the driver has ended
            os._exit(1)


def _receive(pipe: Connection, orders: SimpleQueue[bytes]) -> None:
    """Take in orders, also while one is being carried out, to notice the end of the driver."""
    with suppress(EOFError, OSError):
        while True:
            orders.put(pipe.recv_bytes())
    os._exit(1)


def _pickled_error(error: Exception) -> bytes:
    try:
        return pickle.dumps(("error", error))
    except (pickle.PicklingError, TypeError, AttributeError):
        return pickle.dumps(("error", RuntimeError(f"{type(error).__name__}: {error}")))
