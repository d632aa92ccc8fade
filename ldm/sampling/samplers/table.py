"""The table of samplers, and their common functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeVar

import torch
from torch import Tensor

from ldm.errors import UsageError
from ldm.jobs.fields import SAMPLER_ALIASES
from ldm.sampling.noise import Noise

OnStep = Callable[[int, Tensor, Tensor], None]
"""Called after step i (from 0) with the new x and the estimate of z that the step used."""

SampleFn = Callable[..., Tensor]
"""fn(denoise, x, sigmas, *, noise=None, on_step=None, **options) -> x at sigmas[-1], of x's shape.

x [B,C,h,w] is z + sigma * noise at sigmas[0] (not the originals' variance-preserving latent: see
`start_latent`). sigmas [N+1] decrease and may end in 0; there are N steps. No input is modified. (A
Protocol cannot express that each sampler has its own options.)
"""
F = TypeVar("F", bound=SampleFn)


@dataclass(frozen=True)
class Sampler:
    """A row of the table.

    grid: its default grid. order: the order of convergence, measured by the tests on a smooth grid
    (with eta 0 if it has eta). draws: whether it needs noise with its default options. start: "vp"
    for the originals' samplers, "ve" for k-diffusion's; the two scale the first noise differently.
    options: names of its additional keyword arguments. calls: of the denoiser in a step.
    """

    fn: SampleFn
    name: str
    aliases: tuple[str, ...]
    grid: str
    order: int
    draws: bool
    start: Literal["vp", "ve"]
    options: tuple[str, ...]
    calls: int = 1


@dataclass(frozen=True)
class Churn:
    """Noise added before the steps between two levels: arXiv 2206.00364, algorithm 2.

    `amount` is the paper's S_churn, for all steps together; 0 adds none.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf


SAMPLERS: dict[str, Sampler] = {}
"""Every sampler by its main name, filled by `register`."""


def register(
    name: str,
    *,
    order: int,
    grid: str = "default",
    draws: bool = False,
    start: Literal["vp", "ve"] = "ve",
    options: tuple[str, ...] = (),
    calls: int = 1,
) -> Callable[[F], F]:
    """Decorator: enter a function into the table.

    The command line must know the names without importing torch, so they and their aliases are in
    `ldm.jobs.fields.SAMPLER_ALIASES`; a test compares the two.
    """

    def enter(fn: F) -> F:
        if name in SAMPLERS:
            raise ValueError(f"sampler {name!r} is registered twice")
        aliases = SAMPLER_ALIASES.get(name, ())
        SAMPLERS[name] = Sampler(fn, name, aliases, grid, order, draws, start, options, calls)
        return fn

    return enter


def find_sampler(name: str) -> Sampler:
    """The sampler of this name or alias; raises UsageError with the nearest known name."""
    names = {word: s for s in SAMPLERS.values() for word in (s.name, *s.aliases)}
    if name in names:
        return names[name]
    near = get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(SAMPLERS)}"
    raise UsageError(f"unknown sampler {name!r}: {hint}")


def start_latent(sampler: Sampler, noise: Tensor, sigma: float) -> Tensor:
    """Pure noise [B,C,h,w] as the first x, at the first noise level.

    The originals' samplers use standard normal numbers as the variance-preserving latent, whose x
    is larger by sqrt(1 + sigma**2); k-diffusion's use them as the noise alone, without an image.
    """
    return noise * (math.sqrt(1 + sigma * sigma) if sampler.start == "vp" else sigma)


def final_latent(sampler: Sampler, x: Tensor, sigma: float) -> Tensor:
    """The last x as the latent to decode.

    The originals stop at alphas_cumprod[0], not at a noise level of 0, and decode the
    variance-preserving latent there.
    """
    return x / math.sqrt(1 + sigma * sigma) if sampler.start == "vp" else x


def levels(x: Tensor, sigma: float) -> Tensor:
    """A noise level for each item of the batch: [B] like x."""
    return torch.full((x.shape[0],), sigma, device=x.device, dtype=x.dtype)


def ancestral_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Split a step into a noiseless one and the noise to add: (sigma_down, sigma_up).

    sigma_down**2 + sigma_up**2 = sigma_next**2. eta 0 adds no noise, 1 as much as the reverse of
    the forward process: arXiv 2010.02502, equation 16.
    """
    share = 1 - (sigma_next / sigma) ** 2
    up = min(sigma_next, eta * sigma_next * math.sqrt(share))
    return math.sqrt(max(sigma_next**2 - up**2, 0.0)), up


def add_noise(x: Tensor, noise: Noise | None, scale: float) -> Tensor:
    """x + scale * (the next noise), in place; it consumes one tensor even when scale is 0.

    The originals draw at every step, even with eta 0, and a stream of random numbers must match
    them. Raises ValueError for a scale other than 0 without a source of noise.
    """
    shape = tuple(x.shape)
    if noise is None:
        if scale:
            raise ValueError("this sampler needs noise")
    elif scale:
        x.add_(noise.draw(shape).to(x), alpha=scale)
    else:
        noise.skip(1, shape)
    return x


def churned(
    x: Tensor, sigma: float, steps: int, churn: Churn | None, noise: Noise | None
) -> tuple[Tensor, float]:
    """x and its level after the noise that `churn` adds before one of so many steps."""
    if churn is None or not churn.amount or not churn.low <= sigma <= churn.high:
        return x, sigma
    raised = sigma * (1 + min(churn.amount / steps, math.sqrt(2) - 1))
    return add_noise(x.clone(), noise, math.sqrt(raised**2 - sigma**2)), raised
