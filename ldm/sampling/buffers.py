"""The buffers of a noise schedule that the originals' checkpoints contain."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.sampling.schedule import NoiseSchedule


def ddpm_buffers(schedule: NoiseSchedule, v_posterior: float = 0.0) -> dict[str, Tensor]:
    """The twelve float32 buffers [T] in every checkpoint of the originals.

    `v_posterior` selects the variance of the reverse step: 0 the posterior's, 1 beta.
    Source: CompVis `ldm/models/diffusion/ddpm.py`, register_schedule.
    """
    ac = schedule.alphas_cumprod.numpy()
    prev = np.append(1.0, ac[:-1])
    alphas = ac / prev
    beta = 1 - alphas
    variance = (1 - v_posterior) * beta * (1 - prev) / (1 - ac) + v_posterior * beta
    buffers = {
        "betas": beta,
        "alphas_cumprod": ac,
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": np.sqrt(ac),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - ac),
        "log_one_minus_alphas_cumprod": np.log(1 - ac),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / ac),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / ac - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": beta * np.sqrt(prev) / (1 - ac),
        "posterior_mean_coef2": (1 - prev) * np.sqrt(alphas) / (1 - ac),
    }
    return {key: torch.from_numpy(value.astype(np.float32)) for key, value in buffers.items()}


def augmentor_buffers(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The eight DDPM buffers in the originals' noise augmentors."""
    buffers = ddpm_buffers(schedule)
    return {name: values for name, values in buffers.items() if not name.startswith("posterior_")}
