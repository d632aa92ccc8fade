"""How much noise each forward step of a diffusion model adds."""

from __future__ import annotations

import math

import numpy as np

from ldm.errors import UsageError
from ldm.sampling.timesteps import Floats


def betas(
    name: str = "linear",
    timesteps: int = 1000,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> Floats:
    """The variance of the noise that each forward step adds, [timesteps] float64.

    The names are the originals': "linear" is linear in the square root of beta (elsewhere called
    "scaled_linear", also accepted) and "sqrt_linear" is linear in beta. Raises UsageError for an
    unknown name. Source: CompVis `ldm/modules/diffusionmodules/util.py`, make_beta_schedule.
    """
    if name in ("linear", "scaled_linear"):
        root: Floats = np.linspace(linear_start**0.5, linear_end**0.5, timesteps)
        return root**2
    if name == "sqrt_linear":
        return np.linspace(linear_start, linear_end, timesteps)
    if name == "sqrt":
        return np.linspace(linear_start, linear_end, timesteps) ** 0.5
    if name in ("cosine", "squaredcos_cap_v2"):
        offset = cosine_s if name == "cosine" else 0.008
        at = np.arange(timesteps + 1) / timesteps
        left = np.cos((at + offset) / (1 + offset) * (math.pi / 2)) ** 2
        capped: Floats = np.clip(1 - left[1:] / left[:-1], 0, 0.999)
        return capped
    known = "linear, scaled_linear, sqrt_linear, sqrt, cosine, squaredcos_cap_v2"
    raise UsageError(f"unknown beta schedule {name!r}; known are {known}")
