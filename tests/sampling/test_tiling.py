"""Tiles cover, windows sum to one, and a denoiser in tiles is the plain one without seams."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldm.nn.unet import UNetConfig, UNetModel
from ldm.sampling.denoiser import DenoiseFn
from ldm.sampling.tiling import AUTO_BYTES, tiled_denoiser, tiles, wants_tiling, windows


@given(st.integers(1, 400), st.integers(1, 100), st.integers(0, 99))
def test_tiles_cover_and_windows_sum_to_one(length: int, tile: int, overlap: int) -> None:
    if overlap >= tile:
        with pytest.raises(ValueError, match="cannot overlap"):
            tiles(length, tile, overlap)
        return
    spans = tiles(length, tile, overlap)
    assert (spans[0].start, spans[-1].stop) == (0, length)
    assert all(span.stop - span.start == min(tile, length) for span in spans)
    assert all(b.start > a.start and a.stop - b.start >= overlap for a, b in pairwise(spans))
    # No more of them than needed.
    assert len(spans) == max(1, -((overlap - length) // (tile - overlap)))
    total = torch.zeros(length)
    for span, weight in zip(spans, windows(spans), strict=True):
        assert weight.min() >= 0
        total[span] += weight
    torch.testing.assert_close(total, torch.ones(length))


def test_a_window_is_symmetric_and_falls_to_its_edges() -> None:
    _, middle, _ = windows(tiles(32, 16, 8))
    torch.testing.assert_close(middle, middle.flip(0))
    assert middle[0] < 0.02
    assert bool((middle[:8].diff() > 0).all())


SHAPE = (2, 4, 40, 56)
SIGMA = torch.tensor([2.0, 0.5])


def latents() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def test_one_tile_is_the_plain_denoiser() -> None:
    def make(rows: slice, columns: slice) -> DenoiseFn:
        assert (rows, columns) == (slice(0, 40), slice(0, 56))
        return lambda x, sigma: x.cumsum(-1) / sigma.view(-1, 1, 1, 1)

    x = latents()
    plain = make(slice(0, 40), slice(0, 56))(x, SIGMA)
    assert torch.equal(tiled_denoiser(make, SHAPE, 64, 16)(x, SIGMA), plain)


def test_what_depends_on_the_place_alone_is_kept() -> None:
    concat = torch.randn(2, 1, 40, 56, generator=torch.Generator().manual_seed(4))
    made = []

    def make(rows: slice, columns: slice) -> DenoiseFn:
        made.append((rows, columns))
        part = concat[..., rows, columns]
        return lambda x, sigma: (x + part) / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    x = latents()
    plain = make(slice(0, 40), slice(0, 56))(x, SIGMA)
    denoise = tiled_denoiser(make, SHAPE, 24, 8)
    torch.testing.assert_close(denoise(x, SIGMA), plain)
    torch.testing.assert_close(denoise(x, SIGMA), plain)
    assert len(made) == 1 + 2 * 3  # each tile's once


def test_a_convolution_is_kept_but_near_tile_edges() -> None:
    kernel = torch.randn(4, 4, 5, 5, generator=torch.Generator().manual_seed(5))

    def make(rows: slice, columns: slice) -> DenoiseFn:
        return lambda x, sigma: F.conv2d(x, kernel, padding=2)

    x = latents()
    off = (tiled_denoiser(make, SHAPE, 32, 8)(x, SIGMA) - F.conv2d(x, kernel, padding=2)).abs()
    close = off.amax(dim=(0, 1)) < 1e-4
    near = torch.zeros(40, 56, dtype=torch.bool)  # two positions inside of each inner edge
    for span in tiles(40, 32, 8):
        for edge in {span.start, span.stop} - {0, 40}:
            near[max(edge - 2, 0) : edge + 2] = True
    for span in tiles(56, 32, 8):
        for edge in {span.start, span.stop} - {0, 56}:
            near[:, max(edge - 2, 0) : edge + 2] = True
    assert bool(close[~near].all())
    assert not bool(close[near].all())  # or else the test is of nothing


def test_no_seams_of_a_network() -> None:
    torch.manual_seed(6)
    network = UNetModel(UNetConfig(
        in_channels=4, out_channels=4, model_channels=32, num_res_blocks=1, channel_mult=[1, 2],
        attention_resolutions=[], num_heads=4,
    ))  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)

    def make(rows: slice, columns: slice) -> DenoiseFn:
        return lambda x, sigma: network(x, sigma)

    smooth = F.interpolate(
        torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(7)),
        size=(64, 64),
        mode="bicubic",
    )
    with torch.inference_mode():
        out = tiled_denoiser(make, smooth.shape, 32, 16)(smooth, torch.ones(1))
    steps = out.diff(dim=-1).abs().mean(dim=(0, 1, 2))
    edges = [e for span in tiles(64, 32, 16) for e in (span.start, span.stop) if 0 < e < 64]
    at_edges = torch.stack([steps[edge - 1] for edge in edges]).mean()
    inside = steps[4:-4].mean()
    assert at_edges < 1.3 * inside
    # The same tiles put side by side do show.
    hard = torch.cat([network(part, torch.ones(1)) for part in smooth.split(32, dim=-1)], dim=-1)
    assert hard.diff(dim=-1).abs().mean(dim=(0, 1, 2))[31] > 2 * inside


def test_latents_of_another_size_are_refused() -> None:
    denoise = tiled_denoiser(lambda rows, columns: lambda x, sigma: x, SHAPE, 24, 8)
    with pytest.raises(ValueError, match="40 by 56"):
        denoise(torch.zeros(1, 4, 48, 56), SIGMA)


def test_when_to_tile() -> None:
    assert not wants_tiling("auto", 1024, 1024, "cpu")
    assert wants_tiling("auto", 1280, 1280, "cpu")
    assert not wants_tiling("auto", 1280, 1280, "cuda")
    assert wants_tiling("auto", 2048, 2048, torch.device("cuda", 1))
    assert wants_tiling("on", 64, 64, "cpu")
    assert not wants_tiling("off", 9999, 9999, "cpu")
    assert AUTO_BYTES < 2048 * 2048 * 1536
    with pytest.raises(ValueError, match="on or off"):
        wants_tiling("yes", 64, 64, "cpu")
