"""An autoencoder in tiles gives what the whole one gives, whatever it is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ldm.models.tiled_autoencoder as module
import ldm.models.tiled_passes as passes
from ldm.checkpoints.config import resource
from ldm.models.load import load_model
from ldm.models.model import Autoencoder
from ldm.models.tiled_autoencoder import decode_tiled, encode_tiled
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.vq import VQModelInterface
from ldm.sampling.tiling import tiles

DDCONFIG: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 8,
    "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "num_groups": 4,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "f4": {},
    "f8": {"ch_mult": [1, 1, 2, 2], "tanh_out": True},
    # Attention at the latents' own resolution, and one level above it.
    "attention": {"attn_resolutions": [16]},
    "attention-above": {"attn_resolutions": [32], "ch_mult": [1, 1, 2, 2]},
    "no-attention": {"attn_type": "none"},
    "vq": {"double_z": False},
}


def random_autoencoder(changes: dict[str, Any]) -> Autoencoder:
    torch.manual_seed(1)
    ddconfig = {**DDCONFIG, **changes}
    model: Autoencoder
    if ddconfig["double_z"]:
        model = AutoencoderKL(ddconfig, 4)
    else:
        model = VQModelInterface(ddconfig, 4, 32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # else all norms would be alike
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def drawing(height: int, width: int) -> Tensor:
    """[1,3,H,W] in [-1,1]: a gradient, a flat part, a disc and a noisy corner; no part alike."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    image = torch.stack([x, y, 1 - x * y])
    image[:, : height // 5] = torch.tensor([0.05, 0.05, 0.2])[:, None, None]
    disc = (x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.04
    image[:, disc] = torch.tensor([0.9, 0.2, 0.1])[:, None]
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(2))
    corner = (x > 0.7) & (y > 0.6)
    image[:, corner] = noise[:, corner]
    return (image * 2 - 1)[None]


@pytest.mark.parametrize("whole", [512**2, 0])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_the_passes_lead_to_the_plain_result(
    variant: str, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHOLE", whole)
    monkeypatch.setattr(passes, "TOLERANCE", 1e-6)
    monkeypatch.setattr(passes, "PASSES", 12)
    autoencoder = random_autoencoder(VARIANTS[variant])
    images = drawing(192, 64)
    if variant == "f4":
        images = torch.cat([drawing(96, 128), drawing(96, 128).flip(-1) * 0.5])
    plain = autoencoder.encode(images)
    tiled = encode_tiled(autoencoder, images, 16)
    assert type(plain) is type(tiled)
    torch.testing.assert_close(tiled.mean, plain.mean, atol=1e-4, rtol=0)
    if variant != "vq":
        torch.testing.assert_close(tiled.logvar, plain.logvar, atol=1e-4, rtol=0)
    z = plain.mode() * 4
    torch.testing.assert_close(
        decode_tiled(autoencoder, z, 16), autoencoder.decode(z), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("variant", ["f4", "f8"])
@torch.inference_mode()
def test_a_random_one_is_within_a_grey_level(variant: str) -> None:
    autoencoder = random_autoencoder(VARIANTS[variant])
    z = 4 * autoencoder.encode(drawing(256, 128)).mode()
    off = (decode_tiled(autoencoder, z, 16) - autoencoder.decode(z)).abs() / 2
    assert off.mean() < 0.25 / 255
    assert off.max() < 5 / 255


@torch.inference_mode()
def test_the_bundled_one_is_within_a_grey_level() -> None:
    model = load_model(resource("models") / "emoji-128.safetensors", dtype=torch.float32).model
    autoencoder = model.first_stage_model
    image = drawing(160, 128)
    plain = autoencoder.encode(image)
    tiled = encode_tiled(autoencoder, image, 20)
    assert (tiled.mean - plain.mean).abs().mean() < 0.002 * plain.mean.std()
    images, expected = decode_tiled(autoencoder, plain.mean, 20), autoencoder.decode(plain.mean)
    off = (images - expected).abs() / 2
    assert off.mean() < 0.5 / 255
    assert off.max() < 3 / 255
    # Tiles that know nothing of each other are far off, so that the bar means something.
    parts = [autoencoder.decode(part) for part in plain.mean.split(20, dim=-2)]
    assert (torch.cat(parts, dim=-2) - expected).abs().mean() / 2 > 4 / 255


@torch.inference_mode()
def test_nothing_at_the_pixels_is_larger_than_a_tile() -> None:
    autoencoder = random_autoencoder({})
    seen = []

    def look(_: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(max(inputs[0].shape[-2:]))

    autoencoder.decoder.conv_out.register_forward_pre_hook(look)
    autoencoder.encoder.conv_in.register_forward_pre_hook(look)
    z = encode_tiled(autoencoder, drawing(128, 192), 24).mode()
    assert seen
    assert max(seen) == 24 * 4
    seen.clear()
    assert decode_tiled(autoencoder, z, 24).shape == (1, 3, 128, 192)
    assert max(seen) == 24 * 4


@pytest.mark.parametrize("length", [65, 96, 128, 150, 192, 256, 300, 512])
@pytest.mark.parametrize("reach", [1, 7, 12])
def test_tiles_are_no_larger_than_they_must_be(length: int, reach: int) -> None:
    """As many as of the full size, but smaller, with cores that meet and keep their distance."""
    grid = passes.grid_of(length, 10, 64, reach)
    assert len(grid) == len(tiles(length, 64, 2 * reach))
    size = grid[0].rows.stop - grid[0].rows.start
    assert len(grid) * (size - 1 - 2 * reach) < length - 2 * reach <= len(grid) * (size - 2 * reach)
    ends = [(tile.core_rows.start, tile.core_rows.stop) for tile in grid]
    assert [0, *(stop for _, stop in ends)] == [*(start for start, _ in ends), length]
    for tile in grid:
        assert tile.core_rows.start in (0, *range(tile.rows.start + reach, length))
        assert tile.core_rows.stop in (length, *range(tile.rows.stop - reach + 1))


@torch.inference_mode()
def test_a_small_image_is_computed_as_ever() -> None:
    autoencoder = random_autoencoder({})
    image = drawing(64, 64)
    z = autoencoder.encode(image).mode()
    assert torch.equal(encode_tiled(autoencoder, image).mode(), z)
    assert torch.equal(decode_tiled(autoencoder, z), autoencoder.decode(z))


@torch.inference_mode()
def test_half_precision_stays_half() -> None:
    autoencoder = random_autoencoder({}).to(torch.bfloat16)
    z = encode_tiled(autoencoder, drawing(128, 64).bfloat16(), 16).mode()
    images = decode_tiled(autoencoder, z, 16)
    assert (z.dtype, images.dtype) == (torch.bfloat16, torch.bfloat16)
    off = (images - autoencoder.decode(z)).float().abs().mean() / 2
    assert off < 2 / 255


@torch.inference_mode()
def test_a_huge_image_is_nowhere_larger_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(resource("models") / "emoji-128.safetensors", dtype=torch.float32).model
    autoencoder = model.first_stage_model
    assert isinstance(autoencoder, AutoencoderKL)
    image = drawing(192, 448)
    plain = autoencoder.encode(image).mean
    expected = autoencoder.decode(plain)
    monkeypatch.setattr(module, "WHOLE", 32 * 32)
    monkeypatch.setattr(passes, "KEYS", 48 * 48)  # of 48x112
    seen = []

    def look(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        seen.append(max(inputs[0].shape[-2:]))

    for part in (autoencoder.encoder.mid.block_1.norm1, autoencoder.decoder.mid.block_1.conv1):
        part.register_forward_pre_hook(look)
    latents = encode_tiled(autoencoder, image, 16).mean
    assert (latents - plain).abs().mean() < 0.01 * plain.std()
    images = decode_tiled(autoencoder, plain, 16)
    off = (images - expected).abs() / 2
    assert off.mean() < 0.5 / 255
    assert off.max() < 5 / 255
    assert max(seen) < 112
