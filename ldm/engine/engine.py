"""The one driver: a job and a model in, pictures out, whoever asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldm.engine.batch_noise import Draws
from ldm.engine.batching import Part, fit, joined, kinds, noise_of, room, stands_alone, started
from ldm.engine.device import Policy
from ldm.engine.events import BatchStarted, OnEvent, RunWarning, StepDone, ignore, warn_once
from ldm.engine.memory import Offload, OutOfMemory, free, is_out_of_memory
from ldm.engine.results import Result
from ldm.engine.tasks import TASKS, Given, Problem, first_draw, inpaints_without_text
from ldm.engine.timing import phase
from ldm.errors import NonFiniteError
from ldm.images.sources import Sources, digests, read_sources
from ldm.images.tensors import Picture, to_picture
from ldm.jobs.job import Job
from ldm.jobs.metadata import Record
from ldm.models.encoding import Memory
from ldm.models.model import Model
from ldm.nn.attention import attention_backend
from ldm.nn.rows import image_by_image
from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.guidance import held
from ldm.sampling.samplers import final_latent, masked
from ldm.sampling.samplers.table import levels

T = TypeVar("T")

# So many times as many batches as are drawn together are looked through for those that fit.
_AHEAD = 4
OFFLOADED = "out of memory; what is not in use goes to the main memory, which takes longer"
ENCODERS, NETWORK, DECODER = "text or image encoder", "network", "decoder"
PHASE_OF = {ENCODERS: "text", NETWORK: "steps", DECODER: "decode"}
ADVICE = {
    ENCODERS: "check the weights with ldm info",
    NETWORK: "try another --sampler, a --scale nearer to 1, or --prediction",
    DECODER: "the latents are too large; try a --scale nearer to 1",
}


class Engine:
    """Runs jobs on one model that lies on the policy's device; `name` and `digest` are recorded.

    `memory` keeps what texts came to. Where the memory of the machine does not suffice, fewer
    images are drawn at once, then decoded in tiles, then what is not in use is put aside; it stays
    so for later jobs.
    """

    def __init__(self, model: Model, policy: Policy, name: str = "", digest: str = "") -> None:
        self.model = model
        self.policy = policy
        self.name = name
        self.digest = digest
        self.memory = Memory()
        self.offload = Offload(policy.device, mode=policy.offload)
        self.most: int | None = None  # images at once that the memory suffices for
        self.tiled = False
        self.agreed: dict[object, bool] = {}

    def run(self, job: Job, on_event: OnEvent | None = None) -> Iterator[Result]:
        """The pictures of a resolved job in order, each as soon as it is done.

        Raises NonFiniteError where a stage gives no numbers even in float32, and OutOfMemory.
        """
        return self.run_all([job], on_event, 1)

    def run_all(
        self, jobs: Iterable[Job], on_event: OnEvent | None = None, at_once: int | None = None
    ) -> Iterator[Result]:
        """The pictures of resolved jobs in order; those of one shape are drawn together.

        Their batches make up larger ones of `at_once` images, or, where that is not said, of as
        many as is quick and leaves every image as it is alone, to the bit.
        """
        report = warn_once(on_event or ignore)
        waiting: list[Part] = []
        for part in self._parts(jobs, report):
            waiting.append(part)
            most = self._at_once(part, at_once)
            if len(waiting) >= (most if part.job.files() else _AHEAD * most if most > 1 else 1):
                yield from self._first(waiting, at_once, report)
        while waiting:
            yield from self._first(waiting, at_once, report)

    # --- batches ----------------------------------------------------------------------------------

    def _at_once(self, part: Part, asked: int | None) -> int:
        """How many images may be drawn together with a batch, itself included."""
        # A compiled network is compiled anew for every size of a batch.
        if not stands_alone(part.job) or (self.policy.compiled and asked is None):
            return 1
        return asked or room(self.model.network.model_channels, part.draws.shape)

    def _parts(self, jobs: Iterable[Job], report: OnEvent) -> Iterator[Part]:
        """The batches of all jobs; in a stream each waits until the last one is drawn."""
        for job in jobs:
            padded = not inpaints_without_text(job, self.model)
            sources = read_sources(job, self.model.multiple, padded=padded)
            hashes = digests(job)
            draws: Draws | None = None
            for batch in job.batches():
                start = time.perf_counter()
                if draws is None or batch.noise == "image":
                    draws = self._open(batch, sources)
                here = replace(batch, skip_draws=draws.position)
                problem = self._problem(here, sources, draws, report)
                part = Part(here, sources, hashes, draws, problem, slice(0, here.n_samples))
                part.seconds = time.perf_counter() - start
                yield part
                draws = part.draws

    def _first(self, waiting: list[Part], asked: int | None, report: OnEvent) -> Iterator[Result]:
        """Draw the first batch, with others that fit; give those that are then done in order."""
        first, *others = waiting
        if first.latents is None:
            pack, count = [first], first.count
            most = self._at_once(first, asked)
            for part in others:
                if part.latents is None and count + part.count <= most and fit(first, part):
                    pack.append(part)
                    count += part.count
            start = time.perf_counter()
            self._sample(pack, report, exact=asked is None)
            for part in pack:
                part.seconds += (time.perf_counter() - start) * part.count / count
        done = list(takewhile(lambda part: part.latents is not None, waiting))
        del waiting[: len(done)]
        ready = sum(part.count for part in done)
        for part in done:
            ready -= part.count
            yield from self._pictures(part, ready, report)

    def _pictures(self, part: Part, ready: int, report: OnEvent) -> Iterator[Result]:
        assert part.latents is not None
        for row, latent in enumerate(part.latents):
            start = time.perf_counter()
            picture = self._decode(latent[None], part.job, report)
            yield Result(
                picture=part.sources.finish(picture, part.job),
                record=Record(part.job, row, self.name, self.digest, part.hashes),
                latent=latent.float().cpu(),
                seconds=part.seconds / part.job.n_samples + time.perf_counter() - start,
                depth=part.depth(),
                ready=ready + part.count - row - 1,
            )

    # --- stages -----------------------------------------------------------------------------------

    def _problem(self, batch: Job, sources: Sources, draws: Draws, report: OnEvent) -> Problem:
        """What to sample for one batch."""
        first = None if draws.first is None else draws.first[: batch.n_samples]
        tiling = self._tiling(batch)
        given = Given(self.model, sources, first, tiling, self.memory)
        model = self.model
        named = (model.cond_stage_model, model.first_stage_model, getattr(model, "embedder", None))
        precise = nn.ModuleList(part for part in named if part is not None)
        while True:
            try:
                problem = self._stage(
                    ENCODERS,
                    precise,
                    lambda again: TASKS[batch.task](batch, given),
                    Problem.numbers,
                    report,
                )
                break
            except OutOfMemory:
                if not self.offload.start():
                    raise
                report(RunWarning(OFFLOADED))
        for text in problem.warnings:
            report(RunWarning(text))
        return problem

    def _sample(self, parts: Sequence[Part], report: OnEvent, *, exact: bool) -> None:
        """Sample batches together, or by halves where that does not do.

        It does not if `exact` and an image would be another one, where numbers are not finite, and
        where the memory does not suffice.
        """
        count = sum(part.count for part in parts)
        if self.most is None or count <= self.most:
            try:
                if len(parts) == 1 or not exact or self._agree(parts, report):
                    latents = self._latents(parts, report)
                    sizes = [part.count for part in parts]
                    for part, own in zip(parts, torch.split(latents, sizes), strict=True):
                        part.latents = own
                    return
            except NonFiniteError:
                if len(parts) == 1:
                    raise
            except OutOfMemory:
                if count > 1:
                    self.most = (count + 1) // 2
                    text = f"out of memory with {count} images at once; going on with {self.most}"
                elif self.offload.start():
                    text = OFFLOADED
                else:
                    raise
                report(RunWarning(text))
                if count == 1:
                    self._sample(parts, report, exact=exact)
                    return
        if len(parts) > 1:
            middle = (len(parts) + 1) // 2
            self._sample(parts[:middle], report, exact=exact)
            self._sample(parts[middle:], report, exact=exact)
            return
        halves = parts[0].halves()
        for half in halves:
            self._sample([half], report, exact=exact)
        parts[0].latents = torch.cat([half.latents for half in halves if half.latents is not None])
        parts[0].draws = halves[-1].draws

    def _agree(self, parts: Sequence[Part], report: OnEvent) -> bool:
        """Whether batches come out the same together as each alone, to the bit.

        How a matrix product or a convolution is rounded may depend on the size of the batch, not on
        what is in it: so the first step tells for all of this shape.
        """
        counts = [part.count for part in parts]
        key = (*counts, parts[0].draws.shape, kinds(parts[0].problem))
        if key not in self.agreed:
            fresh = [self._open(part.job, part.sources) for part in parts]
            starts, _ = noise_of(parts, fresh)
            xs = [started(part.problem, x) for part, x in zip(parts, starts, strict=True)]

            def first_step(problem: Problem, x: Tensor) -> Tensor:
                with image_by_image(len(x)):
                    return self._denoiser(problem, x)(x, levels(x, float(problem.sigmas[0])))

            def compute(again: bool) -> bool:
                whole = first_step(joined([part.problem for part in parts]), torch.cat(xs))
                alone = (first_step(part.problem, x) for part, x in zip(parts, xs, strict=True))
                return all(map(torch.equal, torch.split(whole, counts), alone))

            self.agreed[key] = self._stage(NETWORK, None, compute, lambda _: [], report)
        return self.agreed[key]

    def _latents(self, parts: Sequence[Part], report: OnEvent) -> Tensor:
        """The latents [B,C,h,w] of batches as one, ready to be decoded."""
        rows = sum(part.count for part in parts)
        report(BatchStarted(rows, len(parts[0].problem.sigmas) - 1))
        alone = len(parts) == 1
        return self._stage(
            NETWORK,
            self.model.network if alone else None,
            lambda again: self._solve(parts, report),
            lambda latents: [latents],
            report,
        )

    def _solve(self, parts: Sequence[Part], report: OnEvent) -> Tensor:
        draws = [self._open(p.job, p.sources) if p.used else p.draws for p in parts]
        starts, noise = noise_of(parts, draws)
        for part, source in zip(parts, draws, strict=True):
            part.used, part.draws = True, source
        problem = joined([part.problem for part in parts])
        sampler, steps = problem.sampler, len(problem.sigmas) - 1
        if not steps and not problem.init_sigma:  # strength 0: nothing is added, or taken away
            assert problem.init is not None
            return problem.init
        xs = [started(part.problem, start) for part, start in zip(parts, starts, strict=True)]
        x = xs[0] if len(xs) == 1 else torch.cat(xs)
        denoise, fn = self._denoiser(problem, x), sampler.fn
        if problem.mask is not None and problem.init is not None:
            if sampler.name == "ddim":  # as the originals did
                fn = masked(fn, problem.init, 1 - problem.mask)
            else:  # whatever remembers its last steps must see all of them
                denoise = held(denoise, problem.init, problem.mask)
        with image_by_image(len(x) if stands_alone(parts[0].job) else 1):
            x = fn(
                denoise,
                x,
                problem.sigmas,
                noise=noise,
                on_step=lambda i, x, denoised: report(StepDone(i + 1, steps, denoised)),
                **problem.options,
            )
        return final_latent(sampler, x, float(problem.sigmas[-1]))

    def _denoiser(self, problem: Problem, x: Tensor) -> DenoiseFn:
        """The model's denoiser for a problem, tile by tile where the picture is large."""

        def part(rows: slice, columns: slice) -> DenoiseFn:
            cond = problem.cond.crop(rows, columns)
            uncond = None if problem.uncond is None else problem.uncond.crop(rows, columns)
            return self.model.denoiser(cond, uncond, problem.scale)

        if problem.tile is None:
            return self.model.denoiser(problem.cond, problem.uncond, problem.scale)
        from ldm.sampling.tiling import tiled_denoiser

        height, width = x.shape[-2:]
        return tiled_denoiser(part, (height, width), problem.tile, problem.tile // 4)

    def _tiling(self, job: Job) -> str:
        return "on" if self.tiled and job.vae_tiling == "auto" else job.vae_tiling

    def _decode(self, latent: Tensor, job: Job, report: OnEvent) -> Picture:
        """One picture from its latent [1,C,h,w]; one at a time keeps the memory bounded."""
        autoencoder = self.model.first_stage_model
        while True:
            tiling = self._tiling(job)
            decode = partial(self.model.decode, latent, tiling)
            try:
                image = self._stage(
                    DECODER,
                    autoencoder,
                    lambda again: decode(),  # noqa: B023  (called at once)
                    lambda image: [image],
                    report,
                )
                return to_picture(image[0])
            except OutOfMemory:
                if tiling == "auto":
                    self.tiled = True
                    text = "out of memory while decoding; going on in tiles (--vae-tiling on)"
                elif self.offload.start():
                    text = OFFLOADED
                else:
                    raise
                report(RunWarning(text))

    def _stage(
        self,
        name: str,
        precise: nn.Module | None,
        compute: Callable[[bool], T],
        look_at: Callable[[T], Sequence[Tensor | None]],
        report: OnEvent,
    ) -> T:
        """Run one stage; if its numbers are not finite, once more with `precise` in float32.

        `compute` is told whether it runs again; `look_at` takes the numbers out of its result.
        Raises OutOfMemory.
        """
        policy = self.policy
        rounded = policy.autocast or policy.dtype is not torch.float32
        for again in (False, True) if rounded and precise is not None else (False,):
            short = False
            try:
                self.offload.use(self.model, name)
                with ExitStack() as stack:
                    stack.enter_context(torch.inference_mode())
                    kernel = attention_backend(
                        policy.attention, upcast=policy.upcast, rounded=policy.rounded
                    )
                    stack.enter_context(kernel)
                    stack.enter_context(_in_float32(precise) if again else policy.arithmetic())
                    with phase(PHASE_OF[name]):
                        result = compute(again)
                    if all(bool(t.isfinite().all()) for t in look_at(result) if t is not None):
                        return result
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                short = True
            if short:  # here nothing holds on to the tensors of the failed attempt any more
                free()
                raise OutOfMemory(name, policy.device)
            if rounded and not again and precise is not None:
                text = f"the {name} gave values that are not finite; once more in float32"
                report(RunWarning(text))
        raise NonFiniteError(name, ADVICE[name])

    def _open(self, batch: Job, sources: Sources) -> Draws:
        width, height = sources.canvas
        factor = self.model.factor
        shape = (self.model.latent_channels, height // factor, width // factor)
        return Draws(batch, shape, self.policy.device, first_draw(batch, self.model, sources))


@contextmanager
def _in_float32(module: nn.Module | None) -> Iterator[None]:
    """A module in float32 for a while; half precision survives the way there and back."""
    dtype = next((p.dtype for p in module.parameters()), None) if module is not None else None
    if module is None or dtype is None:
        yield
        return
    module.float()
    try:
        yield
    finally:
        module.to(dtype)
