"""Sampling part of an image while the rest is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.noise import Noise
from ldm.sampling.samplers.table import OnStep, SampleFn


def masked(fn: SampleFn, z: Tensor, mask: Tensor) -> SampleFn:
    """The sampler `fn`, fixed to z [B,C,h,w] where mask [B,1,h,w] is 1, free where it is 0.

    Before each step the known part is restored with fresh noise of that step's level; its tensor is
    drawn before the step's own. `fn` gets one step at a time, so a multistep sampler has no
    history: use a single-step one. After the last step nothing is restored.
    Source: CompVis `ldm/models/diffusion/ddim.py`, ddim_sampling with a mask.
    """

    def sample(
        denoise: DenoiseFn,
        x: Tensor,
        sigmas: Tensor,
        *,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> Tensor:
        if noise is None:
            raise ValueError("a masked sampler needs noise")
        for i, sigma in enumerate(sigmas.tolist()[:-1]):
            known = torch.add(z, noise.draw(tuple(x.shape)), alpha=sigma)
            x = torch.lerp(x, known, mask.expand_as(x))

            def report(_: int, x: Tensor, denoised: Tensor, i: int = i) -> None:
                if on_step:
                    on_step(i, x, denoised)

            x = fn(denoise, x, sigmas[i : i + 2], noise=noise, on_step=report, **options)
        return x

    return sample
