"""The three stages of an image: encode the inputs, sample the latent, decode it.

A stage runs under the policy of the device. Where its numbers are not finite in a lower precision,
it runs once more in float32; where the memory does not suffice it raises OutOfMemory, and
`ldm.engine.fallbacks` decides what to try next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypedDict, TypeVar

import torch
from torch import Tensor, nn

from ldm.checkpoints.lora import match_lora
from ldm.engine.batch_noise import Draws
from ldm.engine.batching import Part, joined, noise_of, refilled, stands_alone, started
from ldm.engine.device import Policy
from ldm.engine.events import BatchStarted, OnEvent, RunWarning, StepDone
from ldm.engine.guides import Guide
from ldm.engine.memory import Offload, OutOfMemory, free, is_out_of_memory
from ldm.engine.problem import Given, Problem, Start
from ldm.engine.tasks import TASKS, first_draw
from ldm.engine.timing import phase
from ldm.errors import JobError, NonFiniteError
from ldm.images.sources import Sources
from ldm.images.tensors import ImageArray, to_image_array
from ldm.jobs.job import Job
from ldm.models.encoding import Memory
from ldm.models.model import Model
from ldm.nn.attention import attention_backend
from ldm.nn.rows import image_by_image
from ldm.sampling.denoiser import DenoiseFn, snapped
from ldm.sampling.flow import FlowSchedule
from ldm.sampling.guidance import Calls, Unguided, held, in_turn
from ldm.sampling.noise import ScaledNoise
from ldm.sampling.samplers import final_latent, masked
from ldm.sampling.samplers.table import levels

T = TypeVar("T")

ENCODERS, NETWORK, DECODER = "text or image encoder", "network", "decoder"
PHASE_OF = {ENCODERS: "text", NETWORK: "steps", DECODER: "decode"}
ADVICE = {
    ENCODERS: "check the weights with ldm info",
    NETWORK: "try another --sampler, a --scale nearer to 1, or --prediction",
    DECODER: "the latents are too large; try a --scale nearer to 1",
}


class _How(TypedDict):
    """What both of a model's guided denoisers take."""

    rescale: float
    zero_snr: bool
    unguided: Unguided | None


class Stages:
    """The stages on one model that lies on the policy's device; `memory` caches encoded texts."""

    def __init__(self, model: Model, policy: Policy) -> None:
        self.model, self.policy = model, policy
        self.memory = Memory()
        self.offload = Offload(policy.device, mode=policy.offload)

    def draws(self, batch: Job, sources: Sources) -> Draws:
        """The noise source of a batch, at its first draw."""
        width, height = sources.canvas
        factor = self.model.factor
        shape = (self.model.latent_channels, height // factor, width // factor)
        first = first_draw(batch, self.model, sources)
        restarts = isinstance(self.model.schedule, FlowSchedule)
        return Draws(batch, shape, self.policy.device, first, restarts=restarts)

    def encode(
        self,
        batch: Job,
        sources: Sources,
        draws: Draws,
        tiling: str,
        report: OnEvent,
        start: Start | None = None,
    ) -> Problem:
        """Encode one batch into a Problem; `start` is the result of the pass before."""
        self._merge(batch)
        first = None if draws.first is None else draws.first[: batch.n_samples]
        given = Given(self.model, sources, first, tiling, self.memory, start)
        model = self.model
        named = (model.text_conditioner, model.first_stage_model, getattr(model, "embedder", None))
        precise = nn.ModuleList(part for part in named if part is not None)
        return self._run(
            ENCODERS, precise, lambda: TASKS[batch.task](batch, given), Problem.numbers, report
        )

    def sample(self, parts: Sequence[Part], report: OnEvent) -> Tensor:
        """The latents [B,C,h,w] of batches as one, ready to be decoded."""
        rows = sum(part.count for part in parts)
        self._merge(parts[0].job, step=0, steps=len(parts[0].problem.sigmas) - 1)
        report(BatchStarted(rows, len(parts[0].problem.sigmas) - 1, parts[0].name))
        precise = self.model.network if len(parts) == 1 else None
        return self._run(
            NETWORK, precise, lambda: self._solve(parts, report), lambda x: [x], report
        )

    def agree(self, parts: Sequence[Part], report: OnEvent) -> bool:
        """Whether the first step gives the same for batches together as for each alone, to the bit.

        How a matrix product or a convolution is rounded may depend on the size of the batch, but
        not on its content, so the first step decides for all batches of this shape.
        """
        self._merge(parts[0].job, step=0, steps=len(parts[0].problem.sigmas) - 1)
        fresh = [self.draws(part.job, part.sources) for part in parts]
        starts, _ = noise_of(parts, fresh)
        xs = [started(part.problem, x) for part, x in zip(parts, starts, strict=True)]

        def first_step(problem: Problem, x: Tensor) -> Tensor:
            with image_by_image(len(x)):
                return self._denoiser(problem, x, Calls())(x, levels(x, float(problem.sigmas[0])))

        def compare() -> bool:
            whole = first_step(joined([part.problem for part in parts]), torch.cat(xs))
            alone = (first_step(part.problem, x) for part, x in zip(parts, xs, strict=True))
            split = torch.split(whole, [part.count for part in parts])
            return all(map(torch.equal, split, alone))

        return self._run(NETWORK, None, compare, lambda _: [], report)

    def encode_images(self, images: Tensor, tiling: str, report: OnEvent) -> Tensor:
        """The latents [B,C,h,w] of images [B,3,H,W], one by one to keep the memory bounded."""

        def compute() -> Tensor:
            return torch.cat([self.model.encode(image[None], tiling=tiling) for image in images])

        return self._run(ENCODERS, self.model.first_stage_model, compute, lambda x: [x], report)

    def decode(self, latent: Tensor, tiling: str, report: OnEvent) -> ImageArray:
        """One image from its latent [1,C,h,w]; one at a time keeps the memory bounded."""
        image = self._run(
            DECODER,
            self.model.first_stage_model,
            lambda: self.model.decode(latent, tiling),
            lambda image: [image],
            report,
        )
        return to_image_array(image[0])

    def _merge(self, job: Job, step: int | None = None, steps: int = 0) -> None:
        """Merge a batch's LoRAs into the network for a step, or into the text encoders."""
        merging = self.model.merging
        loras = job.loras_of(job.texts()[0])
        if merging is None:
            if loras:
                raise JobError("--lora needs a model that was loaded from a file")
            return
        side = merging.text if step is None else merging.network
        if step is not None:
            loras = tuple(lora for lora in loras if lora.is_active(step, steps))
        loras = tuple(x for x in loras if (x.text if step is None else x.network))
        if loras == side.merged:
            return
        shapes = self._shapes()
        paths = dict(pair.split("=", 1) for pair in job.lora_files)
        chosen = tuple((lora, match_lora(paths[lora.name], shapes)) for lora in loras)
        if step is None:
            self.memory = Memory()  # of another text encoder
        merging.use(side, chosen)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        assert self.model.merging is not None
        return self.model.merging.shapes

    def _solve(self, parts: Sequence[Part], report: OnEvent) -> Tensor:
        draws = [self.draws(p.job, p.sources) if p.used else p.draws for p in parts]
        starts, noise = noise_of(parts, draws)
        for part, source in zip(parts, draws, strict=True):
            part.used, part.draws = True, source
        problem = joined([part.problem for part in parts])
        sampler, steps = problem.sampler, len(problem.sigmas) - 1
        if not steps and not problem.init_sigma:  # strength 0: nothing is added or taken away
            return refilled(problem, torch.cat(starts))
        xs = [started(part.problem, start) for part, start in zip(parts, starts, strict=True)]
        x = xs[0] if len(xs) == 1 else torch.cat(xs)
        calls = Calls(by_step=sampler.calls == 1)
        options, unguided = problem.options, None
        if "unguided" in sampler.options:
            unguided = Unguided()
            options = {**options, "unguided": unguided}
        denoise, fn = self._denoiser(problem, x, calls, unguided), sampler.fn
        if problem.noise_scale != 1:
            noise = ScaledNoise(noise, problem.noise_scale)
        if problem.mask is not None and problem.init is not None:
            if sampler.name == "ddim" and sampler.start == "vp":  # as the originals did
                fn = masked(fn, problem.init, 1 - problem.mask)
            else:  # a sampler with a history must see all steps
                denoise = held(denoise, problem.init, problem.mask)

        def on_step(index: int, x: Tensor, denoised: Tensor) -> None:
            calls.step_done()
            report(StepDone(index + 1, steps, denoised))
            if index + 1 < steps:
                self._merge(parts[0].job, step=index + 1, steps=steps)

        with image_by_image(len(x) if stands_alone(parts[0].job) else 1):
            x = fn(
                denoise,
                x,
                problem.sigmas,
                noise=noise,
                on_step=on_step,
                **options,
            )
        return final_latent(sampler, x, float(problem.sigmas[-1]))

    def _denoiser(
        self, problem: Problem, x: Tensor, calls: Calls, unguided: Unguided | None = None
    ) -> DenoiseFn:
        """The model's denoiser for a problem, tile by tile where the image is large.

        What guides it changes with the number of `calls`; `unguided` takes its estimates without
        the prompt.
        """

        denoisers = [self._guided(guide, problem, x, unguided) for guide in problem.guides]
        if problem.snaps:
            denoisers = [snapped(denoise, self.model.schedule) for denoise in denoisers]
        if len(denoisers) == 1:
            return denoisers[0]
        ends = [guide.until for guide in problem.guides]
        return in_turn(list(zip(ends, denoisers, strict=True)), calls)

    def _guided(
        self, guide: Guide, problem: Problem, x: Tensor, unguided: Unguided | None
    ) -> DenoiseFn:
        """The denoiser under one guide."""

        def part(rows: slice, columns: slice) -> DenoiseFn:
            return whole(guide.with_sides(lambda side: side.crop(rows, columns)))

        def whole(guide: Guide) -> DenoiseFn:
            how = _How(rescale=problem.rescale, zero_snr=problem.zero_snr, unguided=unguided)
            if guide.is_plain:
                cond, uncond, scale = guide.conds[0], guide.uncond, problem.scale
                return self.model.denoiser(cond, uncond, scale, skip=problem.skip, **how)
            assert guide.uncond is not None
            return self.model.composed_denoiser(
                guide.conds, guide.weights, guide.uncond, problem.scale, **how
            )

        if problem.tile is None:
            return whole(guide)
        from ldm.sampling.tiling import tiled_denoiser

        height, width = x.shape[-2:]
        return tiled_denoiser(part, (height, width), problem.tile, problem.tile // 4)

    def _run(
        self,
        name: str,
        precise: nn.Module | None,
        compute: Callable[[], T],
        numbers: Callable[[T], Sequence[Tensor | None]],
        report: OnEvent,
    ) -> T:
        """Run one stage; where its numbers are not finite, once more with `precise` in float32.

        `numbers` takes the tensors to look at out of the result. Raises OutOfMemory and
        NonFiniteError.
        """
        rounded = self.policy.autocast or self.policy.dtype is not torch.float32
        for again in (False, True) if rounded and precise is not None else (False,):
            result = self._attempt(name, precise if again else None, compute, numbers)
            if result is not None:
                return result[0]
            if rounded and not again and precise is not None:
                text = f"the {name} returned NaN or infinity; trying again in float32"
                report(RunWarning(text))
        raise NonFiniteError(name, ADVICE[name])

    def _attempt(
        self,
        name: str,
        precise: nn.Module | None,
        compute: Callable[[], T],
        numbers: Callable[[T], Sequence[Tensor | None]],
    ) -> tuple[T] | None:
        """The result of a stage, None where it is not finite; with `precise` in float32.

        Raises OutOfMemory.
        """
        policy = self.policy
        try:
            self.offload.use(self.model, name)
            with ExitStack() as stack:
                stack.enter_context(torch.inference_mode())
                kernel = attention_backend(
                    policy.attention, upcast=policy.upcast, rounded=policy.rounded
                )
                stack.enter_context(kernel)
                arithmetic = policy.arithmetic() if precise is None else _in_float32(precise)
                stack.enter_context(arithmetic)
                with phase(PHASE_OF[name]):
                    result = compute()
                if all(bool(t.isfinite().all()) for t in numbers(result) if t is not None):
                    return (result,)
                return None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here nothing holds on to the tensors of the failed attempt any more.
        free()
        raise OutOfMemory(name, policy.device)


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """Keep a module in float32 for a while; its half-precision weights come back unchanged."""
    dtype = next((p.dtype for p in module.parameters()), None)
    if dtype is None:
        yield
        return
    module.float()
    try:
        yield
    finally:
        module.to(dtype)
