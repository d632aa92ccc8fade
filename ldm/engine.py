"""The one driver: a job and a model in, pictures out, whoever asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ldm.device import Policy
from ldm.errors import LdmError, NonFiniteError
from ldm.images import Picture, to_picture
from ldm.job import Job
from ldm.metadata import Record
from ldm.model import Model
from ldm.nn.attention import attention_backend
from ldm.noise import ImageNoise, Noise, Rng, StreamNoise
from ldm.samplers import final_latent, start_latent
from ldm.tasks import TASKS, Problem

T = TypeVar("T")

RNGS: dict[str, Rng] = {"philox": "philox", "cpu": "cpu", "device": "device"}
TEXT_ENCODER, NETWORK, DECODER = "text encoder", "network", "decoder"
ADVICE = {
    TEXT_ENCODER: "check the weights with ldm info",
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

    `latent` [C,h,w] is what was decoded, float32 on the CPU; `seconds` is its share of the time.
    """

    picture: Picture
    record: Record
    latent: Tensor
    seconds: float

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
        draws: Draws | None = None
        for batch in job.batches():
            start = time.perf_counter()
            if draws is None or batch.noise == "image":
                draws = self._open(batch)
            here = replace(batch, skip_draws=draws.position)
            latents = self._sample(here, draws, report)
            share = (time.perf_counter() - start) / here.n_samples
            for row in range(here.n_samples):
                start = time.perf_counter()
                yield Result(
                    picture=self._decode(latents[row : row + 1], report),
                    record=Record(here, row, self.name, self.digest),
                    latent=latents[row].float().cpu(),
                    seconds=share + time.perf_counter() - start,
                )

    def _sample(self, batch: Job, draws: Draws, report: OnEvent) -> Tensor:
        """The latents [B,C,h,w] of one batch, ready to be decoded."""
        problem = self._stage(
            TEXT_ENCODER,
            self.model.cond_stage_model,
            lambda again: TASKS[batch.task](batch, self.model),
            lambda problem: [c.crossattn for c in (problem.cond, problem.uncond) if c],
            report,
        )
        for text in problem.warnings:
            report(Event("warning", text=text))
        report(Event("batch", total=len(problem.sigmas) - 1))
        return self._stage(
            NETWORK,
            self.model.network,
            lambda again: self._solve(
                problem, self._open(batch) if again else draws, batch, report
            ),
            lambda latents: [latents],
            report,
        )

    def _solve(self, problem: Problem, draws: Draws, batch: Job, report: OnEvent) -> Tensor:
        sampler, steps = problem.sampler, len(problem.sigmas) - 1
        noise = draws.start((batch.n_samples, *self._latent_shape(batch)))
        x = sampler.fn(
            self.model.denoiser(problem.cond, problem.uncond, problem.scale),
            start_latent(sampler, noise, float(problem.sigmas[0])),
            problem.sigmas,
            noise=draws,
            on_step=lambda i, x, denoised: report(Event("step", done=i + 1, total=steps)),
            **problem.options,
        )
        return final_latent(sampler, x, float(problem.sigmas[-1]))

    def _decode(self, latent: Tensor, report: OnEvent) -> Picture:
        """One picture from its latent [1,C,h,w]; one at a time keeps the memory bounded."""
        image = self._stage(
            DECODER,
            self.model.first_stage_model,
            lambda again: self.model.decode(latent),
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

    def _open(self, batch: Job) -> Draws:
        return Draws(batch, self._latent_shape(batch), self.policy.device)

    def _latent_shape(self, job: Job) -> tuple[int, int, int]:
        assert job.width is not None
        assert job.height is not None
        factor = self.model.factor
        return self.model.latent_channels, job.height // factor, job.width // factor


class Draws(Noise):
    """The noise of a batch from its first draw on, in the order of the originals.

    In a stream: the fixed code where one is wanted, then what earlier batches drew. Every draw has
    as many rows as a full batch has, and a short one takes the first of them.
    """

    def __init__(self, batch: Job, shape: tuple[int, int, int], device: torch.device) -> None:
        assert batch.seed is not None
        rng = RNGS[batch.rng]
        self.rows = batch.draw_rows or batch.n_samples
        self.code: Tensor | None = None
        self.source: ImageNoise | StreamNoise
        if batch.noise == "image":
            self.source = ImageNoise(batch.image_seeds(), rng, device)
        else:
            self.source = StreamNoise(batch.seed, rng, device)
            if batch.fixed_code:
                self.code = self.source.draw((self.rows, *shape))
            self.source.skip(batch.skip_draws, (self.rows, *shape))

    @property
    def position(self) -> int:
        """Tensors that a stream gave since the fixed code."""
        if isinstance(self.source, ImageNoise):
            return 0
        return self.source.draws - (self.code is not None)

    def start(self, shape: tuple[int, ...]) -> Tensor:
        """The noise to start from: the fixed code, or else a draw."""
        return self.draw(shape) if self.code is None else self.code[: shape[0]]

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor."""
        return self.source.draw((self.rows, *shape[1:]))[: shape[0]]

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Pass over tensors."""
        self.source.skip(draws, (self.rows, *shape[1:]))


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
