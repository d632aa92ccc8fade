"""Gaussian noise: CUDA's numbers on any device, one generator per image or one per run.

A GPU's `torch.randn` runs Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"). Element i of a tensor comes from the counter (offset, 0, i, 0) under the key `seed`, and
each call advances the offset by one counter step. This holds while a tensor has no more elements
than the GPU runs threads at once (40,960 on a T4, 221,184 on an A100; a 512x512 image needs
16,384), because every thread then makes one number. Larger tensors depend on the GPU model; here
they continue as if it had enough threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ldm.jobs.seeds import MAX_SEED

Rng = Literal["philox", "cpu", "device"]
Words = npt.NDArray[np.uint64]

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox_4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[int, int]
) -> tuple[Words, ...]:
    """Ten rounds of Philox over counters of four 32-bit words, each held in a uint64 array."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (b >> _SHIFT) ^ c1 ^ np.uint64(k0), b & _MASK
        c2, c3 = (a >> _SHIFT) ^ c3 ^ np.uint64(k1), a & _MASK
        k0 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF
        k1 = (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def philox_normal(seed: int, shape: Sequence[int], offset: int = 0) -> Tensor:
    """The result of `torch.manual_seed(seed); torch.randn(shape, device="cuda")`, on the CPU.

    float32. `offset` counts earlier calls on the same generator; seed is 0..2**64-1. The numbers
    agree with a GPU's to about 1e-6, the error of its fast sine.
    """
    check_seed(seed)
    count = math.prod(shape)
    zero = np.zeros(count, np.uint64)
    steps = np.full(count, offset, np.uint64)
    counter = (steps & _MASK, steps >> _SHIFT, np.arange(count, dtype=np.uint64), zero)
    first, second, *_ = philox_4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    # The Box-Muller transform of cuRAND: words become float32 before scaling, as on the GPU,
    # because close to 1 the rounding of `u` determines the logarithm.
    u = first.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    turn = float(np.float32(2.0**-32 * 2.0 * math.pi))
    v = (second.astype(np.float32).astype(np.float64) * turn + turn / 2).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * np.log(u))
    return torch.from_numpy((radius * np.sin(v)).reshape(tuple(shape)))


def check_seed(seed: int) -> None:
    """Raise ValueError unless a seed is 0..2**64-1, the range of a generator."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"a seed must be 0 to 2**64-1, not {seed}")


def slerp(share: float, low: Tensor, high: Tensor) -> Tensor:
    """Interpolate from noise `low` to `high` [B,C,h,w] by a share of 0 to 1, along a great circle.

    Every column (the h numbers of one image, channel and x) is a vector, interpolated with its
    length: (sin((1 - s) omega) low + sin(s omega) high) / sin(omega), with omega the angle between
    the two. Columns of almost the same or the opposite direction are interpolated linearly.
    Source: AUTOMATIC1111/stable-diffusion-webui, modules/rng.py, slerp; there the linear case
    applies to the whole image, and has the two sides swapped.
    """
    directions = [torch.nn.functional.normalize(x, dim=-2) for x in (low, high)]
    cosine = (directions[0] * directions[1]).sum(-2, keepdim=True).clamp(-1, 1)
    omega = cosine.acos()
    sine = omega.sin()
    curved = ((1 - share) * omega).sin() / sine * low + (share * omega).sin() / sine * high
    return torch.where(cosine.abs() > 0.9995, (1 - share) * low + share * high, curved)


class Noise(Protocol):
    """A sampler's source of noise: standard normal float32 tensors, in drawing order."""

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor, shape [B, ...], on the device of the run."""

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Continue as if `draws` tensors of this shape had been drawn."""


class ScaledNoise:
    """The noise of a source times a factor, k-diffusion's s_noise."""

    def __init__(self, source: Noise, factor: float) -> None:
        self.source, self.factor = source, factor

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor."""
        return self.source.draw(shape) * self.factor

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Skip tensors."""
        self.source.skip(draws, shape)


class Generator:
    """One stream of normal numbers.

    rng "philox" computes a GPU's numbers anywhere, "cpu" is torch's CPU generator (which uses only
    the low 32 bits of the seed), "device" the generator of the device in use.
    """

    def __init__(self, seed: int, rng: Rng, device: torch.device | str = "cpu") -> None:
        check_seed(seed)
        self.seed = seed
        self.device = torch.device(device)
        self.offset = 0
        self.source: torch.Generator | None = None
        if rng != "philox":
            self.source = torch.Generator(self.device if rng == "device" else "cpu")
            self.source.manual_seed(seed)

    def draw(self, shape: tuple[int, ...], *, channels_last: bool = False) -> Tensor:
        """The next tensor of this shape, float32, on the device.

        With `channels_last`, the numbers have the order of torch's `randn_like` for a [B,C,H,W]
        tensor in channels-last memory format.
        """
        if channels_last and self.source is None:
            batch, channels, height, width = shape
            return self.draw((batch, height, width, channels)).permute(0, 3, 1, 2)
        if channels_last:
            # Not a permuted torch.randn: on a CPU, normal_ fills a strided tensor differently.
            where = self.source.device if self.source else None
            values = torch.empty(shape, device=where, memory_format=torch.channels_last)
            return values.normal_(generator=self.source).to(self.device)
        if self.source is None:
            values = philox_normal(self.seed, shape, self.offset)
            self.offset += 1
        else:
            where = self.source.device
            values = torch.randn(shape, generator=self.source, device=where, dtype=torch.float32)
        return values.to(self.device)

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Skip tensors: by arithmetic with philox, else by drawing them."""
        if self.source is None:
            self.offset += draws
            return
        for _ in range(draws):
            self.draw(shape)


class ImageNoise:
    """One generator per image, so that an image depends on its own seed and not on its batch.

    `draw` takes [B, ...] with B the number of seeds.
    """

    def __init__(
        self, seeds: Sequence[int], rng: Rng = "philox", device: torch.device | str = "cpu"
    ) -> None:
        if not seeds:
            raise ValueError("at least one seed is needed")
        self.generators = [Generator(seed, rng, device) for seed in seeds]

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """One image's tensor from each generator, stacked."""
        self._check(shape)
        return torch.stack([generator.draw(shape[1:]) for generator in self.generators])

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Skip `draws` tensors of every image."""
        self._check(shape)
        for generator in self.generators:
            generator.skip(draws, shape[1:])

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape[0] != len(self.generators):
            raise ValueError(f"{len(self.generators)} seeds, but a batch of {shape[0]}")


class StreamNoise:
    """One generator for the whole run, as in the originals: every draw is a whole batch.

    `draws` counts the tensors drawn or skipped, so that a later run can `skip` to the same
    position.
    """

    def __init__(self, seed: int, rng: Rng = "device", device: torch.device | str = "cpu") -> None:
        self.generator = Generator(seed, rng, device)
        self.draws = 0

    def draw(self, shape: tuple[int, ...], *, channels_last: bool = False) -> Tensor:
        """The next tensor of the stream."""
        self.draws += 1
        return self.generator.draw(shape, channels_last=channels_last)

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Skip `draws` tensors of this shape."""
        self.draws += draws
        self.generator.skip(draws, shape)
