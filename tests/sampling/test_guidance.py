from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.sampling.guidance import cfg


def cond(x: Tensor, sigma: Tensor) -> Tensor:
    return x * 2


def pair(x: Tensor, sigma: Tensor) -> Tensor:
    """Unconditional rows first."""
    assert len(sigma) == len(x)
    without, with_cond = x.chunk(2)
    return torch.cat([without * 1, with_cond * 2])


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 7.5, -3.0])
def test_guidance_goes_from_uncond_towards_cond(scale: float) -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    kept = x.clone()
    guided = cfg(cond, pair, scale)(x, torch.ones(2))
    assert torch.allclose(guided, x + scale * (2 * x - x), atol=1e-5)
    assert torch.equal(x, kept)


def test_a_scale_of_exactly_one_never_calls_the_pair() -> None:
    assert cfg(cond, pair, 1.0) is cond
    assert cfg(cond, pair, 1) is cond
    assert cfg(cond, pair, 1.0001) is not cond
