"""Wrap a network as a denoiser, the only view that a sampler has of a model.

A denoiser takes x = z + sigma * noise ([B,C,h,w]) and sigma ([B]) and returns its estimate of z.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from ldm.sampling.schedule import Schedule

DenoiseFn = Callable[[Tensor, Tensor], Tensor]
Network = Callable[[Tensor, Tensor], Tensor]


class Prediction(Enum):
    """The meaning of a network's output.

    denoised = c_skip * x + c_out * network(c_in * x, t); Karras et al. 2022 (arXiv 2206.00364),
    equation 7. EPS: the noise. V: sqrt(alphas_cumprod) * noise - sqrt(1 - alphas_cumprod) * z
    (arXiv 2202.00512, appendix D). X0: z. FLOW: noise - z, where x = (1 - sigma) * z + sigma *
    noise.
    """

    EPS = "eps"
    V = "v"
    X0 = "x0"
    FLOW = "flow"

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in) at noise levels sigma, each of sigma's shape."""
        one = torch.ones_like(sigma)
        if self is Prediction.FLOW:
            return one, -sigma, one
        c_in = (sigma * sigma + 1).rsqrt()
        if self is Prediction.EPS:
            return one, -sigma, c_in
        if self is Prediction.V:
            return c_in * c_in, -sigma * c_in, c_in
        return torch.zeros_like(sigma), one, c_in


def snapped(denoise: DenoiseFn, schedule: Schedule) -> DenoiseFn:
    """A denoiser that takes each noise level for the nearest of the schedule's.

    Source: generative-models, DiscreteDenoiser; it matters for samplers that go between levels.
    """

    def nearest(x: Tensor, sigma: Tensor) -> Tensor:
        levels = schedule.sigmas.to(sigma)
        place = (sigma[:, None] - levels).abs().argmin(dim=1)
        return denoise(x, levels[place])

    return nearest


def make_denoiser(
    network: Network,
    schedule: Schedule,
    prediction: Prediction,
    dtype: torch.dtype = torch.float32,
) -> DenoiseFn:
    """Wrap `network(x_in [B,C,h,w] of dtype, t [B] float32) -> [B,C,h,w]` as a denoiser.

    Everything outside the network runs in the precision of x, float32 in practice.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        axes = (-1,) + (1,) * (x.ndim - 1)
        c_skip, c_out, c_in = (c.to(x.dtype).view(axes) for c in prediction.scalings(sigma))
        output = network((x * c_in).to(dtype), schedule.t(sigma)).to(x.dtype)
        return torch.addcmul(x * c_skip, output, c_out)

    return denoise
