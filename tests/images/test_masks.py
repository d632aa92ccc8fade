from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldm.errors import ImageError
from ldm.images.reading import LoadedImage, mask_of_alpha, read_depth, read_mask
from tests.odd_images import png, refusal, saved, written

RNG = np.random.default_rng(8)
RGB = RNG.integers(0, 256, (12, 17, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (12, 17, 4), np.uint16)


# --- masks


def test_a_mask_is_grey_as_the_originals_made_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    wanted = np.asarray(Image.fromarray(RGB).convert("L")).astype(np.float32) / 255.0
    assert np.array_equal(read_mask(path), wanted)
    assert read_mask(path).dtype == np.float32
    assert np.array_equal(read_mask(path, invert=True), 1 - wanted)


def test_the_middle_of_grey_is_masked(tmp_path: Path) -> None:
    grey = np.array([[127, 128]], np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    mask = read_mask(saved(tmp_path / "a.png", Image.fromarray(grey)))
    assert np.array_equal(mask >= 0.5, grey == 128)


def test_a_mask_of_16_bits_and_of_one(tmp_path: Path) -> None:
    deep = read_mask(written(tmp_path / "a.png", png(DEEP[..., :1])))
    assert np.array_equal(deep, DEEP[..., 0].astype(np.float32) / np.float32(65535))
    bits = RGB[..., 0] > 99
    one = read_mask(saved(tmp_path / "b.png", Image.fromarray(bits)))
    assert np.array_equal(one, bits.astype(np.float32))


def layer(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.dstack([np.broadcast_to(colour, (*alpha.shape, 3)), alpha]))


SPOT = np.zeros((16, 16), np.uint8)
SPOT[4:9, 5:12] = 255


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 30)])
def test_a_layer_painted_in_one_colour_is_its_own_mask(
    tmp_path: Path, colour: tuple[int, int, int]
) -> None:
    painted = layer(np.array(colour, np.uint8), SPOT)
    mask = read_mask(saved(tmp_path / "a.png", painted))
    assert np.array_equal(mask, SPOT / np.float32(255))


def test_a_layer_of_several_colours_lies_on_black(tmp_path: Path) -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = read_mask(saved(tmp_path / "a.png", layer(grey[..., None], SPOT)))
    assert np.array_equal(mask, np.where(SPOT > 0, grey, 0) / np.float32(255))


@pytest.mark.parametrize("alpha", [255, 0])
def test_the_same_alpha_all_over_says_nothing(tmp_path: Path, alpha: int) -> None:
    flat = np.full_like(SPOT, alpha)
    mask = read_mask(saved(tmp_path / "a.png", layer(SPOT[..., None], flat)))
    assert np.array_equal(mask, SPOT / np.float32(255))


def test_masks_of_no_use(tmp_path: Path) -> None:
    black = saved(tmp_path / "black.png", Image.new("L", (16, 16), 127))
    white = saved(tmp_path / "white.png", Image.new("L", (16, 16), 128))
    assert "the mask is empty" in refusal(black, read_mask)
    assert "covers the whole image" in refusal(white, read_mask)
    assert "covers the whole image" in refusal(black, read_mask, invert=True)
    assert "the mask is empty" in refusal(white, read_mask, invert=True)


def test_sizes_must_agree(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    assert read_mask(path, size=(17, 12)).shape == (12, 17)
    assert "the mask is 17x12 and the image 12x17" in refusal(path, read_mask, size=(12, 17))
    deep = saved(tmp_path / "d.png", Image.fromarray(RGB[..., 0]))
    assert "the depth map is 17x12 and the image 16x16" in refusal(deep, read_depth, size=(16, 16))


def test_a_floating_point_mask_must_be_of_shares(tmp_path: Path) -> None:
    shares = (SPOT / 255).astype(np.float32)
    path = saved(tmp_path / "a.tif", Image.fromarray(shares))
    assert np.array_equal(read_mask(path), shares)
    for number in (300, np.nan):
        path = saved(tmp_path / "b.tif", Image.fromarray(shares + np.float32(number)))
        assert "must be 0 to 1" in refusal(path, read_mask)


def test_the_mask_of_an_images_transparency() -> None:
    rgb = np.zeros((16, 16, 3), np.uint8)
    mask = mask_of_alpha(LoadedImage(rgb, SPOT))
    assert np.array_equal(mask, 1 - SPOT / np.float32(255))
    with pytest.raises(ImageError, match=r"^photo\.png: has no transparent part"):
        mask_of_alpha(LoadedImage(rgb), "photo.png")
    with pytest.raises(ImageError, match="has no transparent part"):
        mask_of_alpha(LoadedImage(rgb, np.full_like(SPOT, 129)))
    with pytest.raises(ImageError, match="transparent everywhere"):
        mask_of_alpha(LoadedImage(rgb, np.zeros_like(SPOT)))


# --- depth


def test_depth_keeps_every_level(tmp_path: Path) -> None:
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    depth = read_depth(written(tmp_path / "a.png", png(every[..., None])))
    assert depth.dtype == np.float32
    assert np.unique(depth).size == 65536
    assert (depth.min(), depth.max()) == (0, 1)
    three = read_depth(written(tmp_path / "b.png", png(np.repeat(every[..., None], 3, axis=2))))
    assert np.array_equal(three, depth)


def test_depth_of_8_bits_and_of_floats(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    for mode in ("L", "RGB", "P"):
        path = saved(tmp_path / f"{mode}.png", Image.fromarray(grey).convert(mode))
        assert np.array_equal(read_depth(path), grey / np.float32(255))
    metres = RNG.normal(size=(9, 8)).astype(np.float32) * 40
    assert np.array_equal(read_depth(saved(tmp_path / "a.tif", Image.fromarray(metres))), metres)
    whole = np.arange(80, dtype=np.int32).reshape(8, 10) * 100_000
    assert np.array_equal(read_depth(saved(tmp_path / "b.tif", Image.fromarray(whole))), whole)


def test_depth_maps_of_no_use(tmp_path: Path) -> None:
    assert "is coloured" in refusal(saved(tmp_path / "a.png", Image.fromarray(RGB)), read_depth)
    flat = saved(tmp_path / "b.png", Image.new("L", (16, 16), 9))
    assert "same everywhere" in refusal(flat, read_depth)
    holes = np.ones((9, 8), np.float32)
    holes[3, 3] = np.inf
    path = saved(tmp_path / "c.tif", Image.fromarray(holes))
    assert "finite" in refusal(path, read_depth)


def test_a_grey_jpeg_in_colour_is_a_depth_map(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(32, axis=0)
    path = saved(tmp_path / "a.jpg", Image.fromarray(ramp).convert("RGB"))
    assert np.abs(read_depth(path) - ramp / 255).max() < 0.03
