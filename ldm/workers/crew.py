"""Many workers instead of one engine: distributes batches and orders the replies.

The workers are processes of this machine, one for each GPU or so many as asked, or lie on a Ray
cluster (`ldm.workers.cluster`). Only the driver, which is this process, writes files. A worker
that dies is replaced, and what it was about is given to another one.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import Protocol

from ldm.engine.cancel import Cancel
from ldm.engine.events import Note, OnEvent, RunWarning
from ldm.engine.plan import Plan
from ldm.errors import LdmError, WorkersLost
from ldm.jobs.outputs import OutputPlan
from ldm.workers.pool import Batch, Engines, Outcome, import_engine, model_key
from ldm.workers.process import Processes
from ldm.workers.worker import VARIABLES, Order, Reply

TRIES = 3
_AHEAD = 3  # so many times as many bundles as there are workers may wait for those before them


class Hand(Protocol):
    """The driver's end of a worker."""

    @property
    def died(self) -> tuple[type[Exception], ...]:
        """The errors that its futures raise if it died."""
        ...

    def submit(self, order: bytes) -> Future[bytes]:
        """Give an order; the reply comes later. Orders are taken one after another."""
        ...

    def stop(self) -> None:
        """End it at once."""
        ...


class Site(Protocol):
    """Where workers are."""

    @property
    def here(self) -> bool:
        """Whether that is this machine."""
        ...

    def open(self, device: str) -> int:
        """Return the number of workers for a device; raises LdmError if there can be none.

        May be called again.
        """
        ...

    def hire(self, index: int) -> Hand:
        """A new worker."""
        ...

    def close(self) -> None:
        """Leave the site; its workers have ended."""
        ...


@dataclass
class Bundle:
    """Batches that one worker is given at a time, the `index`th of them; `tries` that failed."""

    index: int
    batches: tuple[Batch, ...]
    outcomes: tuple[Outcome, ...] | None = None
    given: bool = False
    tries: int = 0


@dataclass
class Crew(Engines):
    """Workers that generate the same bytes as one engine, in the same order."""

    site: Site = field(kw_only=True)
    cancel: Cancel = field(kw_only=True)
    depth: bool = False  # whether depth is to be brought along
    hands: list[Hand] = field(default_factory=list)
    idle: deque[Hand] = field(default_factory=deque)
    working: dict[Future[bytes], tuple[Hand, Bundle | None]] = field(default_factory=dict)
    queue: deque[Bundle] = field(default_factory=deque)
    order: Order | None = None
    room: int = 1
    deaths: int = 0
    in_vain: int = 0  # deaths since an image was finished

    def get_ready(self, plan: Plan) -> None:
        """Import what this process needs; it loads no model."""
        import_engine(plan)

    def prepare(self, plan: Plan) -> None:
        """Let all workers load what a plan needs, and wait for the first.

        Raises LdmError if none of them can.
        """
        if self.key == model_key(plan):
            assert self.settled is not None
            self.report_once(plan, self.settled.job.device)
            return
        self.get_ready(plan)
        import torch

        self.key, self.settled = model_key(plan), None
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        self.order = Order(plan, torch.get_num_threads(), os.getcwd(), variables, self.tuning)
        self.working.clear()
        self.idle.clear()
        self.hands = self.hands or [
            self.site.hire(index) for index in range(self.site.open(plan.job.device))
        ]
        self.reported = True  # by the first worker that has loaded it
        for hand in self.hands:
            self._send(hand, None)
        try:
            while not self.idle:
                self._listen(self.report)
        except BaseException:
            self.key = ()
            raise

    def generated(
        self, plan: Plan, batches: Sequence[Batch], on_event: OnEvent, at_once: int | None
    ) -> Iterator[Outcome]:
        """The images of batches in order, as `apart` yields them.

        Once a stop is asked for, no batch is started; the run stops after those in work.
        """
        bundles = self._bundles(batches, at_once)
        self.queue = deque(bundles)
        for bundle in bundles:
            while bundle.outcomes is None:
                self._give(bundle.index, at_once)
                if not bundle.given and not bundle.tries:
                    self.cancel.check()
                self.cancel.check_step()
                self._listen(on_event)
            outcomes, bundle.outcomes = bundle.outcomes, ()
            for left, outcome in zip(range(len(outcomes), 0, -1), outcomes, strict=True):
                self._listen(on_event, 0)
                self._give(bundle.index, at_once)
                more = int(left > 1 or bundle is not bundles[-1])
                yield outcome if isinstance(outcome, LdmError) else replace(outcome, ready=more)

    def alike(self, other: Engines) -> bool:
        """Whether its workers can be those of other engines."""
        return super().alike(other) and isinstance(other, Crew) and self.site == other.site

    def take_over(self, last: Engines) -> None:
        """Go on with the workers of another one."""
        assert isinstance(last, Crew)
        super().take_over(last)
        self.site, self.order, self.room = last.site, last.order, last.room
        self.hands, self.idle, self.working = last.hands, last.idle, last.working

    def close(self) -> None:
        """End the workers."""
        for hand in self.hands:
            hand.stop()
        self.hands.clear()
        self.key = ()
        self.site.close()

    @property
    def spread(self) -> int:
        """The known number of workers."""
        return max(1, len(self.hands))

    @property
    def here(self) -> bool:
        """Whether they are processes of this machine."""
        return self.site.here

    # --- the workers ------------------------------------------------------------------------------

    def _bundles(self, batches: Sequence[Batch], at_once: int | None) -> list[Bundle]:
        """Bundle batches, in order, up to a good batch size, with some for every worker."""
        share = -(-sum(job.count() for _, job in batches) // len(self.hands))
        most = min(at_once or self.room, share)
        bundles: list[Bundle] = []
        bundle: list[Batch] = []
        for place, batch in enumerate(batches):
            bundle.append(batch)
            last = place == len(batches) - 1
            if last or sum(job.count() for _, job in bundle) >= most:
                bundles.append(Bundle(len(bundles), tuple(bundle)))
                bundle = []
        return bundles

    def _give(self, delivered: int, at_once: int | None) -> None:
        """Give idle workers bundles that are not too far ahead, until a stop is requested."""
        while self.idle and self.queue:
            bundle = self.queue[0]
            if bundle.index > delivered + _AHEAD * len(self.hands):
                return
            if self.cancel.asked and not bundle.tries:
                return
            self._send(self.idle.popleft(), self.queue.popleft(), at_once)

    def _send(self, hand: Hand, bundle: Bundle | None, at_once: int | None = None) -> None:
        assert self.order is not None
        order = replace(self.order, at_once=at_once, depth=self.depth)
        if bundle is not None:
            order, bundle.given = replace(order, batches=bundle.batches), True
        try:
            future = hand.submit(pickle.dumps(order))
        except hand.died as error:
            future = Future()
            future.set_exception(error)
        self.working[future] = (hand, bundle)

    def _listen(self, report: OnEvent, patience: float = 1.0) -> None:
        """Process replies; waits for the first of them up to a number of seconds."""
        done, _ = wait(self.working, patience, FIRST_COMPLETED)
        for future in done:
            hand, bundle = self.working.pop(future)
            try:
                reply: Reply = pickle.loads(future.result())
            except hand.died as error:
                self._replace(hand, bundle, error, report)
                continue
            self._take(hand, bundle, reply, report)

    def _take(self, hand: Hand, bundle: Bundle | None, reply: Reply, report: OnEvent) -> None:
        if reply.error is not None:  # it could not load what others may be able to
            self.hands.remove(hand)
            hand.stop()
            if not self.hands:
                raise reply.error
            report(RunWarning(f"a worker cannot be used: {reply.error}"))
            return
        self.idle.append(hand)
        if self.settled is None:
            self.settled, self.room = reply.settled, reply.room
            for event in (*reply.loading, *self._crowded()):
                self.report(event)
        for warning in reply.warnings:
            report(warning)
        if bundle is not None:
            bundle.outcomes, self.in_vain = reply.outcomes, 0

    def _crowded(self) -> list[Note]:
        """A note if there are more threads than processors."""
        assert self.order is not None
        assert self.settled is not None
        count, threads, processors = len(self.hands), self.order.threads, os.cpu_count() or 1
        if not self.here or self.settled.job.device != "cpu" or count * threads <= processors:
            return []
        each = max(1, processors // count)
        return [
            Note(
                f"{count} workers of {threads} threads are more than {processors} processors: "
                f"OMP_NUM_THREADS={each} is quicker, and may change the last bits by rounding"
            )
        ]

    def _replace(
        self,
        hand: Hand,
        bundle: Bundle | None,
        error: BaseException,
        report: OnEvent,
    ) -> None:
        """Have another worker in the place of one that died."""
        self.deaths, self.in_vain = self.deaths + 1, self.in_vain + 1
        hand.stop()
        if bundle is not None:
            bundle.given, bundle.tries = False, bundle.tries + 1
            self.queue.appendleft(bundle)
        if self.in_vain >= TRIES * len(self.hands) or (bundle and bundle.tries >= TRIES):
            again = "each time at the same images" if bundle else "before they were ready"
            raise WorkersLost(
                f"workers died {self.deaths} times, in the end {again}: use fewer workers or "
                f"smaller images if memory is short ({str(error) or type(error).__name__})"
            )
        report(RunWarning(f"a worker died and was replaced (death {self.deaths} of this run)"))
        at = self.hands.index(hand)
        self.hands[at] = self.site.hire(at)
        self._send(self.hands[at], None)


def crew_of(outputs: OutputPlan, report: OnEvent, cancel: Cancel) -> Crew:
    """The workers that a run requests; they start when there is something to generate."""
    depth = outputs.save_depth is not None
    site: Site = Processes(outputs.workers or 1)
    if outputs.engine == "ray":
        from ldm.workers.cluster import Cluster

        site = Cluster(outputs.address, outputs.workers)
    return Crew(report, False, outputs.tuning, site=site, cancel=cancel, depth=depth)
