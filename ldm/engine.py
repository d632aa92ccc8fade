"""The one driver: a job and a model in, pictures out, whoever asks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ldm.denoiser import DenoiseFn
from ldm.device import Policy
from ldm.errors import LdmError, NonFiniteError
from ldm.guidance import held
from ldm.images import Picture, to_picture
from ldm.job import Job
from ldm.metadata import Record
from ldm.model import Model
from ldm.nn.attention import attention_backend
from ldm.noise import ImageNoise, Noise, Rng, StreamNoise, slerp
from ldm.samplers import final_latent, masked, start_latent
from ldm.sources import Sources, digests, read_sources
from ldm.tasks import TASKS, Given, Problem, first_draw

T = TypeVar("T")

RNGS: dict[str, Rng] = {"philox": "philox", "cpu": "cpu", "device": "device", "numpy": "cpu"}
ENCODERS, NETWORK, DECODER = "text or image encoder", "network", "decoder"
ADVICE = {
    ENCODERS: "check the weights with ldm info",
    NETWORK: "try another --sampler, a --scale nearer to 1, or --prediction",
    DECODER: "the latents are too large; try a --scale nearer to 1",
}


@dataclass(frozen=True)
class Event:
    """News of a run: a batch begins (`total` steps), a step of it is done, or a warning's text."""

    kind: Literal["batch", "step", "warning"]
    done: int = 0
    total: int = 0
    text: str = ""


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Result:
    """One picture, with everything needed to make it again.

    `latent` [C,h,w] is what was decoded, float32 on the CPU; `seconds` is its share of the time;
    `depth` [1,H,W] is the inverse depth that the network was shown, where it was.
    """

    picture: Picture
    record: Record
    latent: Tensor
    seconds: float
    depth: Tensor | None = None

    @property
    def prompt(self) -> str:
        """The text it was made from."""
        return self.record.job.texts()[self.record.row]

    @property
    def seed(self) -> int:
        """Its own seed, or that of the stream it belongs to."""
        return self.record.job.image_seeds()[self.record.row]


class Engine:
    """Runs jobs on one model that lies on the policy's device; `name` and `digest` are recorded."""

    def __init__(self, model: Model, policy: Policy, name: str = "", digest: str = "") -> None:
        self.model = model
        self.policy = policy
        self.name = name
        self.digest = digest

    def run(self, job: Job, on_event: OnEvent | None = None) -> Iterator[Result]:
        """The pictures of a resolved job in order, each as soon as it is done.

        Raises NonFiniteError where a stage gives no numbers even in float32, and LdmError where
        the memory of the device does not suffice.
        """
        report = _warn_once(on_event or (lambda event: None))
        sources = read_sources(job, self.multiple)
        hashes = digests(job)
        draws: Draws | None = None
        for batch in job.batches():
            start = time.perf_counter()
            if draws is None or batch.noise == "image":
                draws = self._open(batch, sources)
            here = replace(batch, skip_draws=draws.position)
            problem, latents = self._sample(here, sources, draws, report)
            share = (time.perf_counter() - start) / here.n_samples
            for row in range(here.n_samples):
                start = time.perf_counter()
                picture = self._decode(latents[row : row + 1], here, report)
                yield Result(
                    picture=sources.finish(picture, here),
                    record=Record(here, row, self.name, self.digest, hashes),
                    latent=latents[row].float().cpu(),
                    seconds=share + time.perf_counter() - start,
                    depth=problem.depth,
                )

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be a multiple of, in pixels.

        The network halves its input once per level but the last.
        """
        return int(self.model.factor * 2 ** (self.model.network.levels - 1))

    def _sample(
        self, batch: Job, sources: Sources, draws: Draws, report: OnEvent
    ) -> tuple[Problem, Tensor]:
        """The problem of one batch and its latents [B,C,h,w], ready to be decoded."""
        first = None if draws.first is None else draws.first[: batch.n_samples]
        given = Given(self.model, sources, first, batch.vae_tiling)
        problem = self._stage(
            ENCODERS,
            nn.ModuleList(part for part in self._encoders() if part is not None),
            lambda again: TASKS[batch.task](batch, given),
            _numbers,
            report,
        )
        for text in problem.warnings:
            report(Event("warning", text=text))
        report(Event("batch", total=len(problem.sigmas) - 1))
        latents = self._stage(
            NETWORK,
            self.model.network,
            lambda again: self._solve(
                problem, self._open(batch, sources) if again else draws, batch, report
            ),
            lambda latents: [latents],
            report,
        )
        return problem, latents

    def _encoders(self) -> list[nn.Module | None]:
        """What turns texts and pictures into numbers."""
        model = self.model
        return [model.cond_stage_model, model.first_stage_model, getattr(model, "embedder", None)]

    def _solve(self, problem: Problem, draws: Draws, batch: Job, report: OnEvent) -> Tensor:
        sampler, steps = problem.sampler, len(problem.sigmas) - 1
        noise = draws.start(batch.n_samples)
        if not steps:  # strength 0: nothing is taken away
            assert problem.init is not None
            return problem.init
        denoise, fn = self._denoiser(problem, noise), sampler.fn
        if problem.mask is not None and problem.init is not None:
            if sampler.name == "ddim":  # as the originals did
                fn = masked(fn, problem.init, 1 - problem.mask)
            else:  # whatever remembers its last steps must see all of them
                denoise = held(denoise, problem.init, problem.mask)
        x = fn(
            denoise,
            _start(problem, noise),
            problem.sigmas,
            noise=draws,
            on_step=lambda i, x, denoised: report(Event("step", done=i + 1, total=steps)),
            **problem.options,
        )
        return final_latent(sampler, x, float(problem.sigmas[-1]))

    def _denoiser(self, problem: Problem, noise: Tensor) -> DenoiseFn:
        """The model's denoiser for a problem, tile by tile where the picture is large."""

        def part(rows: slice, columns: slice) -> DenoiseFn:
            cond = problem.cond.crop(rows, columns)
            uncond = None if problem.uncond is None else problem.uncond.crop(rows, columns)
            return self.model.denoiser(cond, uncond, problem.scale)

        if problem.tile is None:
            return self.model.denoiser(problem.cond, problem.uncond, problem.scale)
        from ldm.tiling import tiled_denoiser

        height, width = noise.shape[-2:]
        return tiled_denoiser(part, (height, width), problem.tile, problem.tile // 4)

    def _decode(self, latent: Tensor, job: Job, report: OnEvent) -> Picture:
        """One picture from its latent [1,C,h,w]; one at a time keeps the memory bounded."""
        image = self._stage(
            DECODER,
            self.model.first_stage_model,
            lambda again: self.model.decode(latent, job.vae_tiling),
            lambda image: [image],
            report,
        )
        return to_picture(image[0])

    def _stage(
        self,
        name: str,
        module: nn.Module | None,
        compute: Callable[[bool], T],
        look_at: Callable[[T], Sequence[Tensor | None]],
        report: OnEvent,
    ) -> T:
        """Run one stage; if its numbers are not finite, once more with the module in float32.

        `compute` is told whether it runs again; `look_at` takes the numbers out of its result.
        """
        policy = self.policy
        rounded = policy.autocast or policy.dtype is not torch.float32
        for again in (False, True) if rounded else (False,):
            with ExitStack() as stack:
                stack.enter_context(_memory_error_told(name))
                stack.enter_context(torch.inference_mode())
                stack.enter_context(attention_backend(policy.attention, upcast=policy.upcast))
                stack.enter_context(_in_float32(module) if again else policy.arithmetic())
                result = compute(again)
                if all(bool(t.isfinite().all()) for t in look_at(result) if t is not None):
                    return result
            if rounded and not again:
                text = f"the {name} gave values that are not finite; once more in float32"
                report(Event("warning", text=text))
        raise NonFiniteError(name, ADVICE[name])

    def _open(self, batch: Job, sources: Sources) -> Draws:
        width, height = sources.canvas
        factor = self.model.factor
        shape = (self.model.latent_channels, height // factor, width // factor)
        return Draws(batch, shape, self.policy.device, first_draw(batch, self.model, sources))


class Draws(Noise):
    """The noise of a batch from its first draw on, in the order of the originals.

    In a stream: the fixed code where one is wanted, then the task's own draw (`first`), then what
    earlier batches drew. Every draw has as many rows as a full batch has, and a short one takes the
    first of them. `shape` and `first` are without the batch.
    """

    def __init__(
        self,
        batch: Job,
        shape: tuple[int, int, int],
        device: torch.device,
        first: tuple[int, ...] | None = None,
    ) -> None:
        assert batch.seed is not None
        rng = RNGS[batch.rng]
        self.batch, self.shape, self.device = batch, shape, device
        self.rows = batch.draw_rows or batch.n_samples
        self.code: Tensor | None = None
        self.first: Tensor | None = None
        self.mixed: ImageNoise | None = None
        if batch.variation_seed is not None:
            self.mixed = ImageNoise(batch.variation_seeds(), rng, device)
        self.source: ImageNoise | StreamNoise
        if batch.noise == "image":
            self.source = ImageNoise(batch.image_seeds(), rng, device)
            if first is not None:
                self.first = self.source.draw((self.rows, *first))
        else:
            self.source = StreamNoise(batch.seed, rng, device)
            if batch.fixed_code:
                self.code = self.source.draw((self.rows, *shape))
            if first is not None:
                # The demo's picture had its channels last in memory, and its noise, too.
                last = batch.task == "upscale"
                self.first = self.source.draw((self.rows, *first), channels_last=last)
            self.source.skip(batch.skip_draws, (self.rows, *shape))

    @property
    def position(self) -> int:
        """Tensors that a stream gave since the fixed code and the task's own draw."""
        if isinstance(self.source, ImageNoise):
            return 0
        return self.source.draws - (self.code is not None) - (self.first is not None)

    def start(self, rows: int) -> Tensor:
        """The noise to start from [rows,C,h,w]: the fixed code, numpy's, or else a draw."""
        shape = (rows, *self.shape)
        if self.batch.rng == "numpy":
            numbers = np.random.RandomState((self.batch.seed or 0) & 0xFFFFFFFF).randn(*shape)
            return torch.from_numpy(numbers.astype(np.float32)).to(self.device)
        noise = self.draw(shape) if self.code is None else self.code[: shape[0]]
        if self.mixed is None:
            return noise
        return slerp(self.batch.variation_strength, noise, self.mixed.draw((self.rows, *shape[1:])))

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor."""
        return self.source.draw((self.rows, *shape[1:]))[: shape[0]]

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Pass over tensors."""
        self.source.skip(draws, (self.rows, *shape[1:]))


def _start(problem: Problem, noise: Tensor) -> Tensor:
    """The first x: noise, or a picture with noise of a level that may not be the grid's own."""
    sigma = float(problem.sigmas[0])
    if problem.init is None:
        return start_latent(problem.sampler, noise, sigma)
    x = torch.add(problem.init, noise, alpha=problem.init_sigma)
    if problem.init_sigma == sigma:
        return x
    return x * math.sqrt((1 + sigma**2) / (1 + problem.init_sigma**2))


def _numbers(problem: Problem) -> list[Tensor | None]:
    """What the encoders of a problem gave."""
    sides = [side for side in (problem.cond, problem.uncond) if side is not None]
    parts = [part for side in sides for part in (side.crossattn, side.concat, side.vector)]
    return [*parts, problem.init]


def _warn_once(report: OnEvent) -> OnEvent:
    told: set[str] = set()

    def pass_on(event: Event) -> None:
        if event.kind != "warning" or event.text not in told:
            told.add(event.text)
            report(event)

    return pass_on


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


@contextmanager
def _memory_error_told(stage: str) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise LdmError(
            f"the GPU's memory does not suffice for the {stage}: "
            "use a smaller --n_samples or size, --precision fp16 or --attention sliced"
        ) from None
