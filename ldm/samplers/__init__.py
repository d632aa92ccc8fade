"""Samplers: functions (denoise, x, sigmas) -> x, and the table that names them."""

from __future__ import annotations

from ldm.samplers import ancestral, ode
from ldm.samplers.masked import masked
from ldm.samplers.table import (
    SAMPLERS,
    OnStep,
    SampleFn,
    Sampler,
    final_latent,
    find_sampler,
    register,
    start_latent,
)

__all__ = [
    "SAMPLERS",
    "OnStep",
    "SampleFn",
    "Sampler",
    "ancestral",
    "final_latent",
    "find_sampler",
    "masked",
    "ode",
    "register",
    "start_latent",
]
