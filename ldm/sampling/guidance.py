"""Guidance: functions from denoisers to a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn, Prediction

Rescale = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Guided estimates, those under the condition, x [B,...] and sigma [B] -> other estimates."""


class Unguided:
    """Where a guided denoiser leaves its latest estimate without the prompt, for CFG++."""

    latest: Tensor | None = None


def cfg(
    cond: DenoiseFn,
    pair: DenoiseFn,
    scale: float | Sequence[float],
    *,
    unguided: Unguided | None = None,
    rescale: Rescale | None = None,
) -> DenoiseFn:
    """Classifier-free guidance, uncond + scale * (cond - uncond); arXiv 2207.12598, equation 6.

    `cond` denoises a batch [B,...] under the condition; `pair` a batch [2B,...] whose first half is
    unconditional and whose second half is under the condition, so that one call of the network
    serves both. A scale of exactly 1 returns `cond` itself and never calls `pair`, unless the
    estimate without the prompt is asked for. With one scale per image, none of them 1, every image
    is the same as with its scale alone.
    """
    if scale == 1 and unguided is None:
        return cond

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        both = pair(torch.cat([x, x]), torch.cat([sigma, sigma]))
        without, with_cond = both.chunk(2)
        if unguided is not None:
            unguided.latest = without
        if isinstance(scale, Sequence):
            rows = zip(without, with_cond, scale, strict=True)
            result = torch.stack([torch.lerp(one, other, own) for one, other, own in rows])
        else:
            result = torch.lerp(without, with_cond, scale)
        return rescale(result, with_cond, x, sigma) if rescale else result

    return guided


def rescaling(share: float, prediction: Prediction) -> Rescale:
    """Bring guided estimates towards the spread of those under the condition, by a share of 0 to 1.

    Spread is the standard deviation of what the network predicts, of each image by itself.
    Source: arXiv 2305.08891, section 3.4, as diffusers' guidance_rescale has it.
    """

    def rescale(guided: Tensor, cond: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        rest = x * prediction.scalings(sigma)[0].to(x).view(-1, *[1] * (x.ndim - 1))
        axes = tuple(range(1, x.ndim))
        output = guided - rest  # what the network predicts, but for a factor
        ratio = (cond - rest).std(axes, keepdim=True) / output.std(axes, keepdim=True)
        return rest + output * (share * ratio + 1 - share)

    return rescale


@dataclass(frozen=True)
class SkipLayers:
    """Guidance away from the network without some of its layers, at noise levels low to high."""

    layers: tuple[int, ...]
    scale: float
    low: float
    high: float


def cfg_skipping(
    cond: DenoiseFn,
    pair: DenoiseFn | None,
    skipped: DenoiseFn,
    scale: float | Sequence[float],
    skip: SkipLayers,
) -> DenoiseFn:
    """Guidance as in `cfg`, plus skip.scale * (cond - skipped) at some noise levels.

    `skipped` denoises under the condition without some layers. Source: Stability-AI/sd3.5
    `sd3_impls.py`, SkipLayerCFGDenoiser.
    """

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        if pair is None or scale == 1:
            with_cond = whole = cond(x, sigma)
        else:
            both = pair(torch.cat([x, x]), torch.cat([sigma, sigma]))
            without, with_cond = both.chunk(2)
            scales = torch.tensor([scale] * len(x) if isinstance(scale, float | int) else scale)
            whole = torch.lerp(without, with_cond, scales.to(x).view(-1, *[1] * (x.ndim - 1)))
        if not skip.low <= float(sigma[0]) <= skip.high:
            return whole
        return torch.add(whole, with_cond - skipped(x, sigma), alpha=skip.scale)

    return guided


def composed(
    pair: DenoiseFn,
    others: Sequence[DenoiseFn],
    weights: Sequence[Sequence[float]],
    scale: float | Sequence[float],
    *,
    unguided: Unguided | None = None,
    rescale: Rescale | None = None,
) -> DenoiseFn:
    """Guidance by several prompts, uncond + scale * sum of w_i * (cond_i - uncond).

    `pair` denoises a batch [2B,...] without a prompt and under the first one, each of the `others`
    a batch [B,...] under one more. `weights` has a factor of each prompt for each of the B images.
    Source: arXiv 2206.01714, equation 11, as AUTOMATIC1111's web UI has it (AND).
    """

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        without, first = pair(torch.cat([x, x]), torch.cat([sigma, sigma])).chunk(2)
        if unguided is not None:
            unguided.latest = without
        scales = torch.tensor([scale] * len(x) if isinstance(scale, float | int) else scale)
        total = torch.zeros_like(without)
        for part, own in zip([first, *(one(x, sigma) for one in others)], weights, strict=True):
            factors = (scales * torch.tensor(own)).to(without)[:, None, None, None]
            total = total + factors * (part - without)
        result = without + total
        return rescale(result, first, x, sigma) if rescale else result

    return guided


class Calls:
    """How often a sampler has called its denoiser; `by_step` counts its steps instead.

    AUTOMATIC1111's web UI counts so where prompts change: calls of samplers with two a step.
    """

    def __init__(self, *, by_step: bool = True) -> None:
        self.by_step = by_step
        self.count = 0

    def call_done(self) -> None:
        """The denoiser was called."""
        self.count += not self.by_step

    def step_done(self) -> None:
        """A step was taken."""
        self.count += self.by_step


def in_turn(denoisers: Sequence[tuple[int, DenoiseFn]], calls: Calls) -> DenoiseFn:
    """Each denoiser up to a number of calls, counted from 0; the last one from then on."""

    def current(x: Tensor, sigma: Tensor) -> Tensor:
        chosen = next((one for end, one in denoisers if calls.count <= end), denoisers[-1][1])
        denoised = chosen(x, sigma)
        calls.call_done()
        return denoised

    return current


def held(denoise: DenoiseFn, z: Tensor, mask: Tensor) -> DenoiseFn:
    """A denoiser that returns the known z [B,C,h,w] where mask [.,1,h,w] is 0, and denoises at 1.

    For multistep samplers: their history stays consistent.
    """

    def known(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(z, denoise(x, sigma), mask)

    return known
