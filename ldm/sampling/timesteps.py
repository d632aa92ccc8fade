"""Whole time steps out of all that a model was trained on, as different programs choose them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Compat = Literal["exact", "ldm", "sgm"]
Floats = npt.NDArray[np.float64]


def ddim_timesteps(total: int, steps: int, compat: Compat = "exact") -> Floats:
    """The time steps of the originals' "uniform" spacing, increasing, in 1..total-1.

    "ldm": range(0, total, total // steps) + 1, which has more than `steps` members unless `steps`
    divides `total` (30 gives 31, 6 gives 7). Inputs for which the originals failed are clipped: the
    nonexistent step `total` becomes total - 1 (dropped if already present), and `steps` above
    `total` count as `total`.
    "exact": `steps` members, i * total // steps + 1; the same grid if `steps` divides `total`.
    Only steps == total needs more whole steps than exist; the steps are then spread evenly, in
    fractions. Few steps start far below the top (4 at 751, 1 at step 1), as in the originals.
    Source: CompVis `ldm/modules/diffusionmodules/util.py`, make_ddim_timesteps.
    """
    if compat == "ldm":
        chosen = np.arange(0, total, max(total // steps, 1)) + 1
        return np.unique(np.minimum(chosen, total - 1)).astype(np.float64)
    if steps == total:
        return np.linspace(1, total - 1, total)
    return (np.arange(steps) * total // steps + 1).astype(np.float64)


def quad_timesteps(total: int, steps: int, compat: Compat = "exact") -> Floats:
    """The time steps of the originals' "quad" spacing: squares up to 0.8 * total, plus 1, rising.

    With many steps the rounded squares repeat. "exact" then uses fractional steps; "ldm" drops the
    repeats, which had no effect in the originals (with eta 0; two equal noise levels).
    """
    squares = np.linspace(0, math.sqrt(total * 0.8), steps) ** 2
    whole = np.unique(np.floor(squares))
    if compat == "ldm" or len(whole) == steps:
        return whole + 1
    return squares + 1


def lcm_timesteps(total: int, steps: int) -> Floats:
    """The time steps of consistency models, decreasing: `steps` of the 50 they were made with.

    Above 50 they are made of as many as are asked for. Source: diffusers' LCMScheduler.
    """
    taught = max(50, steps)
    places = np.floor(np.arange(steps) * taught / steps)
    chosen: Floats = (taught - places) * (total // taught) - 1
    return chosen
