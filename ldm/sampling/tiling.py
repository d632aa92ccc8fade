"""Tiling: when to use it, the tiles of an axis, blending windows, and tiled denoisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from ldm.sampling.denoiser import DenoiseFn

# The memory limit for decoding an image whole; above it, `auto` uses tiles.
AUTO_BYTES = 4 * 2**30
# Peak bytes per pixel of Stable Diffusion's autoencoders: 3072 for decoding and 2560 for encoding
# (measured for f8 and f4) in float32; half as much in half precision, the default on GPUs.
_BYTES_PER_PIXEL = {"cpu": 3072}
_BYTES_PER_PIXEL_HALF = 1536


def wants_tiling(mode: str, height: int, width: int, device: torch.device | str) -> bool:
    """Whether to run an autoencoder in tiles for height x width pixels: on, off or auto.

    `auto` tiles above 4 GiB for the whole image: 1.4 million pixels on the CPU (1182x1182), 2.8 on
    other devices (1672x1672). It depends on the type of device alone, not on its free memory, so
    that a recorded job runs the same way again. Raises ValueError for another mode.
    """
    if mode not in ("auto", "on", "off"):
        raise ValueError(f"tiling is auto, on or off, not {mode!r}")
    each = _BYTES_PER_PIXEL.get(torch.device(device).type, _BYTES_PER_PIXEL_HALF)
    return mode == "on" or (mode == "auto" and height * width * each > AUTO_BYTES)


def tiles(length: int, tile: int, overlap: int) -> list[slice]:
    """Spans of `tile` that cover 0..length, evenly spaced, neighbours sharing `overlap` or more.

    A single span if `length` is at most `tile`. Raises ValueError unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} cannot overlap by {overlap}")
    if length <= tile:
        return [slice(0, length)]
    last = -((tile - length) // (tile - overlap))
    return [
        slice(start, start + tile)
        for start in (i * (length - tile) // last for i in range(last + 1))
    ]


def windows(spans: Sequence[slice]) -> list[Tensor]:
    """Weights of each span's positions, float32; over all spans they sum to 1 everywhere.

    Neighbours are blended by raised cosines over their whole overlap: a tile has little weight at
    its edge, where it has the least context.
    """
    length = spans[-1].stop
    raw = []
    for index, span in enumerate(spans):
        position = torch.arange(span.start, span.stop, dtype=torch.float64, device="cpu") + 0.5
        weight = torch.ones_like(position)
        if index:
            weight *= _ramp((position - span.start) / (spans[index - 1].stop - span.start))
        if index < len(spans) - 1:
            weight *= _ramp((span.stop - position) / (span.stop - spans[index + 1].start))
        raw.append(weight)
    total = torch.zeros(length, dtype=torch.float64, device="cpu")
    for span, weight in zip(spans, raw, strict=True):
        total[span] += weight
    return [(weight / total[span]).float() for span, weight in zip(spans, raw, strict=True)]


def _ramp(part: Tensor) -> Tensor:
    """0 to 1 as `part` goes from 0 to 1, and 1 beyond; ramps of two neighbours sum to 1."""
    return torch.sin(part.clamp(0.0, 1.0) * (torch.pi / 2)).square()


def tiled_denoiser(
    make: Callable[[slice, slice], DenoiseFn],
    shape: Sequence[int],
    tile: int,
    overlap: int,
) -> DenoiseFn:
    """A denoiser for latents [B,C,h,w] made of denoisers for its tiles.

    `make(rows, columns)` builds the denoiser of one tile, with its conditioning cropped to these
    rows and columns; it is called once per tile. `shape` ends with h and w; `tile` and `overlap`
    are in latents. At every noise level all tiles are denoised one by one and blended, so that they
    agree before the next step. Source of the idea: Bar-Tal et al. 2023 (MultiDiffusion, arXiv
    2302.08113). Raises ValueError as `tiles` does, and for latents of another size.
    """
    height, width = shape[-2:]
    rows, columns = tiles(height, tile, overlap), tiles(width, tile, overlap)
    parts = [
        (top, left, down[:, None] * across, make(top, left))
        for (top, down), (left, across) in product(
            zip(rows, windows(rows), strict=True), zip(columns, windows(columns), strict=True)
        )
    ]

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if x.shape[-2:] != (height, width):
            raise ValueError(f"tiles for {height} by {width} cannot denoise {tuple(x.shape[-2:])}")
        if len(parts) == 1:
            return parts[0][-1](x, sigma)
        out = torch.zeros_like(x)
        for top, left, window, part in parts:
            out[..., top, left] += window.to(x) * part(x[..., top, left], sigma)
        return out

    return denoise
