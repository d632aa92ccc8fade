"""Quantiles of the beta distribution, which scipy would be too large a package for."""

from __future__ import annotations

import numpy as np

from ldm.sampling.timesteps import Floats


def beta_quantiles(shares: Floats, shape: float = 0.6) -> Floats:
    """Quantiles [N] of the symmetric beta distribution, for shares [N] of 0 to 1.

    Bisection on the distribution function, whose singular end a power takes away.
    """
    nodes, weights = np.polynomial.legendre.leggauss(40)

    def below(x: Floats) -> Floats:  # the integral from 0 to x of at most 1/2, unnormalised
        end = x**shape
        at = end[:, None] * (1 + nodes) / 2
        inside: Floats = ((1 - at ** (1 / shape)) ** (shape - 1)) @ weights
        return end * inside / 2

    near = np.minimum(shares, 1 - shares)
    wanted = near * 2 * below(np.array([0.5]))
    low, high = np.zeros_like(near), np.full_like(near, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        rises = below(middle) < wanted
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    return np.where(shares < 0.5, high, 1 - high)
