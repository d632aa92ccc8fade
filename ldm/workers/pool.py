"""Engines for plans: loaded when a job needs one, cached as long as jobs can share it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ldm.checkpoints.components import Files, files_of, settings_of
from ldm.checkpoints.families.choice import Choice
from ldm.checkpoints.weights.keys import NETWORK
from ldm.engine.events import ModelLoaded, Note, OnEvent
from ldm.engine.garbage import uncollected
from ldm.engine.plan import Plan, resolve
from ldm.engine.readahead import read_ahead
from ldm.engine.timing import phase
from ldm.errors import LdmError
from ldm.jobs.job import Job
from ldm.jobs.tuning import PLAIN, Tuning
from ldm.nn.allocator import found_ahead

if TYPE_CHECKING:
    from ldm.engine.device import Policy
    from ldm.engine.engine import Engine
    from ldm.engine.results import Result
    from ldm.models.load import Loaded

# Where Linux shows GPUs of NVIDIA and AMD, those of a Tegra, and those of Windows around it.
_GPUS = tuple(map(Path, ("/dev/nvidiactl", "/dev/kfd", "/dev/nvmap", "/dev/dxg")))

Batch: TypeAlias = tuple[int, Job]  # a batch, and the number of the job that it belongs to
Outcome: TypeAlias = "Result | LdmError"


@dataclass
class Engines:
    """The engine of the last job; a job that needs another model replaces it."""

    report: OnEvent
    script: bool = False
    tuning: Tuning = PLAIN
    key: tuple[Any, ...] = ()
    engine: Engine | None = None
    settled: Plan | None = None
    reported: bool = False  # whether this run has reported its model

    def job(self, plan: Plan) -> Job:
        """The job completed by its engine, without loading it if possible."""
        if self.here and self.key != model_key(plan) and plan.choice.prediction_why:
            self.get_ready(plan)
            from ldm.engine.device import choose

            job = plan.job
            environment = dict(os.environ)
            policy = choose(job.device, job.precision, job.attention, environment, self.tuning)
            predicted = plan.choice.family.prediction
            return replace(
                job, device=policy.device.type, precision=policy.precision, prediction=predicted
            )
        self.prepare(plan)
        assert self.settled is not None
        return settle(plan, self.settled, script=self.script)

    def get_ready(self, plan: Plan) -> None:
        """Import what this process needs to generate the images of a plan."""
        import_engine(plan, packed_bytes(plan, self.tuning))

    def prepare(self, plan: Plan) -> None:
        """Load the model of a plan."""
        self.load(plan)

    def generated(
        self, plan: Plan, batches: Sequence[Batch], on_event: OnEvent, at_once: int | None
    ) -> Iterator[Outcome]:
        """The images of batches of a plan, as `apart` yields them."""
        return apart(self.load(plan), batches, on_event, at_once)

    @property
    def spread(self) -> int:
        """How many workers share the batches."""
        return 1

    @property
    def here(self) -> bool:
        """Whether the images are generated on this machine."""
        return True

    def alike(self, other: Engines) -> bool:
        """Whether this one could take over the engine of another run."""
        same = (self.script, self.tuning) == (other.script, other.tuning)
        return same and type(self) is type(other)

    def take_over(self, last: Engines) -> None:
        """Take over the loaded engine of another run."""
        self.key, self.engine, self.settled = last.key, last.engine, last.settled

    def close(self) -> None:
        """Release what would outlive this process; a plain engine has nothing."""

    def load(self, plan: Plan) -> Engine:
        """The engine of a plan."""
        if self.engine is None or self.key != model_key(plan):
            self.engine = None  # not two models in memory at once
            self.engine, self.settled = load_engine(
                plan, plan.given, self.report, script=self.script, tuning=self.tuning
            )
            self.key = model_key(plan)
            self.reported = True
            self.report(ModelLoaded(self.settled, str(self.engine.policy.device)))
        self.report_once(plan, str(self.engine.policy.device))
        return self.engine

    def report_once(self, plan: Plan, device: str) -> None:
        """Report the model of this run where it was loaded by an earlier one."""
        if not self.reported:
            assert self.settled is not None
            job = settle(plan, self.settled, script=self.script)
            self.reported = True
            self.report(ModelLoaded(replace(plan, job=job), device))


def apart(
    engine: Engine, batches: Sequence[Batch], on_event: OnEvent, at_once: int | None
) -> Iterator[Outcome]:
    """The images of batches in order; the error of a batch comes after those it finished.

    All are generated together. If one fails, the rest is generated one by one, so that it fails
    alone, and with it the later batches of its job.
    """
    at = done = 0
    failed: dict[int, LdmError] = {}
    try:
        for result in engine.run_all([job for _, job in batches], on_event, at_once):
            yield result
            done += 1
            if done == batches[at][1].count():
                at, done = at + 1, 0
        return
    except LdmError as error:
        if len(batches) == 1:
            failed[batches[0][0]] = error
    for number, job in batches[at:]:
        try:
            if number not in failed:
                yield from islice(engine.run_all([job], on_event, at_once), done, None)
        except LdmError as error:
            failed[number] = error
        if number in failed:
            yield failed[number]
        done = 0


_kept: ContextVar[list[Engines] | None] = ContextVar("kept", default=None)


@contextmanager
def kept_engine() -> Iterator[None]:
    """Keep the engine of one run, or its workers, for the next, as long as the context lasts."""
    kept: list[Engines] = []
    token = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(token)
        for engines in kept:
            engines.close()


def reused(made: Engines) -> Engines:
    """The engines of a new run, with the loaded model or workers of the last one if they fit."""
    kept = _kept.get()
    if kept is not None:
        for last in kept:
            if last.alike(made):
                made.take_over(last)
            else:
                last.close()
        kept[:] = [made]
    return made


@contextmanager
def in_use(engines: Engines) -> Iterator[None]:
    """Close engines at the end of a run, unless it succeeds and they are kept for the next."""
    try:
        yield
    except BaseException:
        engines.close()
        raise
    if _kept.get() is None:
        engines.close()


def load_engine(
    plan: Plan,
    given: Mapping[str, Any],
    report: OnEvent,
    *,
    script: bool = False,
    tuning: Tuning = PLAIN,
) -> tuple[Engine, Plan]:
    """The engine for a plan, and the plan updated by loading.

    `given` are the fields that the user gave; `script` is as for `make_plan`.
    """
    import_engine(plan, packed_bytes(plan, tuning))
    from ldm.engine.device import choose
    from ldm.engine.engine import Engine

    job = plan.job
    policy = choose(job.device, job.precision, job.attention, dict(os.environ), tuning)
    for note in policy.notes if "precision" in given else ():
        report(Note(note))
    with phase("load"):
        path, files = plan.header.path, files_of(job)
        loaded = load_as(policy, path, plan.config, settings_of(job), job.prediction, files)
    for note in loaded.notes:
        report(Note(note))
    if policy.compiled:
        report(Note("compiling the network at its first step: a minute or more, once"))
    if not plan.choice.prediction_why:
        text = f"the network predicts {loaded.family.prediction} ({loaded.prediction_why})"
        report(Note(text))
        choice = replace(plan.choice, family=loaded.family, prediction_why=loaded.prediction_why)
        plan = _with_choice(plan, choice, given, script=script)
    settled = replace(
        plan.job,
        device=policy.device.type,
        precision=policy.precision,
        prediction=loaded.family.prediction,
    )
    engine = Engine(loaded.model, policy, loaded.name, loaded.digest)
    return engine, replace(plan, job=settled)


def import_engine(plan: Plan, room: int = 0) -> None:
    """Import everything that generates images, torch first.

    Meanwhile the system reads the plan's checkpoint and provides `room` bytes of memory.
    """
    read_ahead(plan.header.path)
    if "ldm.engine.engine" not in sys.modules:
        with phase("imports"), uncollected(), found_ahead(room):
            import ldm.engine.device
            import ldm.engine.engine
            import ldm.models.load  # noqa: F401


def packed_bytes(plan: Plan, tuning: Tuning) -> int:
    """Bytes of float32 that the network's weights will be packed into on the CPU (`device.choose`).

    0 where only torch could say whether they will be packed.
    """
    job = plan.job
    no_gpu = sys.platform == "linux" and not any(path.exists() for path in _GPUS)
    on_cpu = job.device == "cpu" or (job.device == "auto" and no_gpu)
    if not on_cpu or job.precision not in ("auto", "full") or tuning.compile:
        return 0
    tensors = plan.header.tensors.items()
    return sum(4 * entry.count for key, entry in tensors if key.startswith(NETWORK))


def load_as(
    policy: Policy,
    path: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    prediction: str | None = None,
    components: Files | None = None,
) -> Loaded:
    """Load a checkpoint the way a policy asks for; see `load_model`."""
    from ldm.models.load import load_model
    from ldm.nn.allocator import keep_freed

    if policy.keeps_freed:
        keep_freed()
    return load_model(
        path,
        config,
        overrides,
        prediction,
        policy.dtype,
        policy.home,
        components=components,
        channels_last=policy.channels_last,
        packed=policy.packed,
        quantized=policy.quantized,
        compiled=policy.compiled,
    )


def settle(plan: Plan, settled: Plan, *, script: bool = False) -> Job:
    """The job of a plan, updated by what loading found out for another plan of the model."""
    if not plan.choice.prediction_why:
        plan = _with_choice(plan, settled.choice, plan.given, script=script)
    names = ("device", "precision", "prediction")
    return replace(plan.job, **{name: getattr(settled.job, name) for name in names})


def _with_choice(plan: Plan, choice: Choice, given: Mapping[str, Any], *, script: bool) -> Plan:
    """The plan resolved again, now that the network's prediction is known."""
    plan = replace(plan, choice=choice)
    return resolve(plan, choice.family.defaults, given, script=script)


def model_key(plan: Plan) -> tuple[Any, ...]:
    """The values that two jobs must share to use one engine."""
    job = plan.job
    parts = (settings_of(job), job.prediction, *sorted(files_of(job).items()))
    return (plan.header.path, plan.config, *parts, job.device, job.precision, job.attention)
