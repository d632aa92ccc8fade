"""Each task as one short function from a job to a `Problem`, which the engine solves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ldm.conditioning import Conditioning
from ldm.job import Job
from ldm.model import Model
from ldm.samplers import Sampler, find_sampler
from ldm.schedule import Compat, make_grid


@dataclass(frozen=True)
class Problem:
    """What to sample: a latent for each row of `cond`, down the noise levels `sigmas`.

    `uncond` is None where the scale of guidance is 1. `warnings` tell what of the texts the model
    cannot take in.
    """

    cond: Conditioning
    uncond: Conditioning | None
    scale: float
    sampler: Sampler
    sigmas: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def txt2img(job: Job, model: Model) -> Problem:
    """A picture for each text, from noise alone; the job is one batch, resolved."""
    assert job.steps is not None
    assert job.scale is not None
    assert job.sampler is not None
    texts = job.texts()
    cond, cut = model.condition(texts)
    uncond, cut_negative = None, [""]
    if job.scale != 1:
        uncond, cut_negative = model.condition([job.negative] * len(texts))
    sampler = find_sampler(job.sampler)
    takes_eta = job.eta is not None and "eta" in sampler.options
    compat: Compat = "ldm" if job.schedule_compat == "ldm" else "exact"
    sigmas = make_grid(job.grid or sampler.grid, model.schedule, job.steps, compat)
    return Problem(
        cond=cond,
        uncond=uncond,
        scale=job.scale,
        sampler=sampler,
        sigmas=sigmas,
        options={"eta": job.eta} if takes_eta else {},
        warnings=(
            *_losses("prompt", texts, cut, model),
            *_losses("negative prompt", [job.negative], cut_negative[:1], model),
            *_other_count(job.steps, len(sigmas) - 1),
        ),
    )


def _losses(what: str, texts: Sequence[str], cut: Sequence[str], model: Model) -> list[str]:
    """A warning for each text that is too long, or has words that the model never learnt."""
    warnings = []
    for text, tail in zip(texts, cut, strict=True):
        if tail:
            warnings.append(f"the {what} is too long for the model; cut off at the end: {tail!r}")
        unknown = model.cond_stage_model.unknown_words(text) if model.cond_stage_model else []
        if unknown:
            words = ", ".join(repr(word) for word in unknown)
            warnings.append(f"the model does not know {words}; it will draw something else there")
    return warnings


def _other_count(asked: int, steps: int) -> list[str]:
    if asked == steps:
        return []
    return [f"{asked} steps make {steps}, as in the original scripts (--schedule-compat ldm)"]


TASKS: Mapping[str, Callable[[Job, Model], Problem]] = {"txt2img": txt2img}
