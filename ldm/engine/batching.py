"""Batches of several jobs as one: which fit together, and their problems joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.engine.batch_noise import Draws, Joined, Rows
from ldm.engine.guides import Guide
from ldm.engine.problem import Problem
from ldm.images.sources import Sources
from ldm.jobs.job import Job
from ldm.jobs.loras import Lora
from ldm.models.conditioning import Conditioning
from ldm.sampling.noise import Noise
from ldm.sampling.samplers import start_latent

# Numbers in the widest planes of a network, for all images at once, up to which more of them at
# once cost less time: where a machine computes rather than waits for what is to be computed.
_ROOM = 2**20
MOST = 8


@dataclass
class Part:
    """A batch on its way to images: its job, what it reads, its noise and what to sample.

    `rows` are those of the batch that are meant, all of them unless the memory sets a limit.
    `latents` [B,C,h,w] are there once it is sampled; `seconds` is the time that it took so far;
    `name` is that of a pass after the first.
    """

    job: Job
    sources: Sources
    hashes: dict[str, str]
    draws: Draws
    problem: Problem
    rows: slice
    used: bool = False  # whether the noise was begun to be drawn
    seconds: float = 0.0
    latents: Tensor | None = field(default=None, repr=False)
    name: str = ""

    @property
    def count(self) -> int:
        """Images in it."""
        return len(range(self.job.n_samples)[self.rows])

    @property
    def loras(self) -> tuple[Lora, ...]:
        """The LoRAs of its images."""
        return self.job.loras_of(self.job.texts()[0])

    def depth(self) -> Tensor | None:
        """The depth [1,H,W] that the network was shown, without the edges added to the image."""
        depth, placement = self.problem.depth, self.sources.placement
        if depth is None or placement is None:
            return depth
        size = placement.canvas[::-1]
        whole = F.interpolate(depth[None], size=size, mode="bilinear", antialias=True)[0, 0]
        return torch.from_numpy(placement.undo(whole.numpy()))[None]

    def halves(self) -> list[Part]:
        """Its first rows and the others."""
        first, last, _ = self.rows.indices(self.job.n_samples)
        middle = (first + last) // 2
        here = [slice(first, middle), slice(middle, last)]
        inside = [slice(0, middle - first), slice(middle - first, last - first)]
        problems = [rows_of(self.problem, rows) for rows in inside]
        pairs = zip(here, problems, strict=True)
        return [replace(self, rows=rows, problem=problem, used=True) for rows, problem in pairs]


def started(problem: Problem, noise: Tensor) -> Tensor:
    """The first x: noise, or an image with noise of a level that may not be the grid's own."""
    sigma = float(problem.sigmas[0])
    if problem.init is None:
        return start_latent(problem.sampler, noise, sigma)
    x = problem.schedule.noised(refilled(problem, noise), problem.init_sigma, noise)
    if problem.init_sigma == sigma:
        return x
    return x * math.sqrt((1 + sigma**2) / (1 + problem.init_sigma**2))


def refilled(problem: Problem, noise: Tensor) -> Tensor:
    """The clean latents to start from, with the noise [B,C,h,w] in place of them where wanted."""
    assert problem.init is not None
    if problem.noised is None:
        return problem.init
    return torch.where(problem.noised > 0, noise.to(problem.init.dtype), problem.init)


def room(width: int, latent: tuple[int, int, int]) -> int:
    """How many images are best drawn at once, where that is not said: 1 for a large network.

    `width` is the number of channels of its widest planes, `latent` the shape of a latent.
    """
    return max(1, min(MOST, _ROOM // (width * latent[1] * latent[2])))


def stands_alone(job: Job) -> bool:
    """Whether the images of a batch do not depend on each other."""
    return job.noise == "image"


def fit(one: Part, other: Part) -> bool:
    """Whether two batches can be sampled as one: everything their images share is equal."""
    if not (stands_alone(one.job) and stands_alone(other.job)):
        return False
    a, b = one.problem, other.problem
    if one.loras != other.loras:
        return False
    alone = (a.mask, b.mask, a.noised, b.noised, a.tile, b.tile)
    if any(part is not None for part in alone):
        return False
    same = a.sampler.name == b.sampler.name and a.init_sigma == b.init_sigma
    extra = [(p.options, p.skip, p.rescale, p.zero_snr, p.noise_scale, p.snaps) for p in (a, b)]
    return (
        same
        and extra[0] == extra[1]
        and torch.equal(a.sigmas, b.sigmas)
        and one.draws.shape == other.draws.shape
        and kinds(a) == kinds(b)
    )


def kinds(problem: Problem) -> tuple[object, ...]:
    """The shapes and types of the tensors of one row of a problem."""
    tensors = [problem.init]
    for side in (side for guide in problem.guides for side in guide.sides()):
        tensors += [side.crossattn, side.vector, side.concat, *side.controls]
    shapes = [None if each is None else (tuple(each.shape[1:]), each.dtype) for each in tensors]
    forms = [(g.until, len(g.conds), g.uncond is None, g.is_plain) for g in problem.guides]
    return *forms, *shapes


def joined(problems: Sequence[Problem]) -> Problem:
    """Problems that fit as one, their rows in order."""
    if len(problems) == 1:
        return problems[0]
    scales = [problem.scale for problem in problems]
    inits = [problem.init for problem in problems if problem.init is not None]
    return replace(
        problems[0],
        guides=tuple(map(_joined_guide, zip(*(p.guides for p in problems), strict=True))),
        scale=_joined(problems) if len(set(scales)) > 1 else scales[0],
        init=torch.cat(inits) if inits else None,
    )


def rows_of(problem: Problem, rows: slice) -> Problem:
    """Some rows of a problem."""
    init, scale = problem.init, problem.scale
    return replace(
        problem,
        guides=tuple(_rows_of_guide(guide, rows) for guide in problem.guides),
        init=None if init is None else init[rows],
        scale=scale[rows] if isinstance(scale, tuple) else scale,
    )


def noise_of(parts: Sequence[Part], draws: Sequence[Draws]) -> tuple[list[Tensor], Noise]:
    """The noise that each part starts from, and the source of the noise after it."""
    starts, sources = [], []
    for part, source in zip(parts, draws, strict=True):
        total = part.job.n_samples
        starts.append(source.start(total)[part.rows])
        whole = part.count == total
        sources.append((source if whole else Rows(source, part.rows, total), part.count))
    return starts, (sources[0][0] if len(sources) == 1 else Joined(sources))


def _joined(problems: Sequence[Problem]) -> tuple[float, ...]:
    """The scale of each row of guided problems."""
    scales: list[float] = []
    for problem in problems:
        alone, count = problem.scale, len(problem.guides[0].weights[0])
        scales += alone if isinstance(alone, tuple) else (alone,) * count
    return tuple(scales)


def _joined_guide(guides: Sequence[Guide]) -> Guide:
    """Guides of one form as that of all their rows."""
    unconds = [guide.uncond for guide in guides if guide.uncond is not None]
    weights = zip(*(guide.weights for guide in guides), strict=True)
    return replace(
        guides[0],
        conds=tuple(map(_stacked, zip(*(guide.conds for guide in guides), strict=True))),
        weights=tuple(tuple(weight for own in part for weight in own) for part in weights),
        uncond=_stacked(unconds) if unconds else None,
    )


def _rows_of_guide(guide: Guide, rows: slice) -> Guide:
    """A guide of some of the rows."""
    weights = tuple(part[rows] for part in guide.weights)
    return replace(guide.with_sides(lambda side: _rows(side, rows)), weights=weights)


def _stacked(sides: Sequence[Conditioning]) -> Conditioning:
    whole = sides[0]
    for side in sides[1:]:
        whole = whole.stack(side)
    return whole


def _rows(side: Conditioning, rows: slice) -> Conditioning:
    return Conditioning(
        crossattn=None if side.crossattn is None else side.crossattn[rows],
        vector=None if side.vector is None else side.vector[rows],
        concat=None if side.concat is None else side.concat[rows],
        controls=tuple(control[rows] for control in side.controls),
    )
