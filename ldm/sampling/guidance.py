"""Guidance: functions from denoisers to a denoiser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn


def cfg(cond: DenoiseFn, pair: DenoiseFn, scale: float | Sequence[float]) -> DenoiseFn:
    """Classifier-free guidance, uncond + scale * (cond - uncond); arXiv 2207.12598, equation 6.

    `cond` denoises a batch [B,...] under the condition; `pair` a batch [2B,...] whose first half is
    unconditional and whose second half is under the condition, so that one call of the network does
    both. A scale of exactly 1 is `cond` itself and never calls `pair`. With a scale for each of the
    B images, none of them 1, every image is as with its scale alone.
    """
    if scale == 1:
        return cond

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        both = pair(torch.cat([x, x]), torch.cat([sigma, sigma]))
        without, with_cond = both.chunk(2)
        if isinstance(scale, Sequence):
            rows = zip(without, with_cond, scale, strict=True)
            return torch.stack([torch.lerp(one, other, own) for one, other, own in rows])
        return torch.lerp(without, with_cond, scale)

    return guided


def held(denoise: DenoiseFn, z: Tensor, mask: Tensor) -> DenoiseFn:
    """A denoiser that knows the answer, z [B,C,h,w], where mask [.,1,h,w] is 0; free where it is 1.

    For samplers that remember earlier steps: nothing jumps under their feet.
    """

    def known(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.lerp(z, denoise(x, sigma), mask)

    return known
