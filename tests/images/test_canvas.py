from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ldm.errors import ImageError
from ldm.images.canvas import (
    FITS,
    Placement,
    Size,
    fit,
    floor_resize,
    hard_mask,
    latent_mask,
    outpaint,
    pad_to_multiple,
    paste,
    touched_mask,
    weights,
)
from ldm.images.reading import read_image, read_mask
from ldm.jobs.inputs import Sides
from tests.golden_data import GOLDEN, case

SIDES = st.integers(8, 70)
SIZES = st.tuples(SIDES, SIDES)
SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=40)


def noise(size: Size, seed: int = 0) -> NDArray[np.uint8]:
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def blobs(size: Size, seed: int = 0) -> NDArray[np.float32]:
    """A mask of zeros, ones and greys."""
    width, height = size
    rng = np.random.default_rng(seed)
    grey = rng.random((height, width), np.float32)
    return np.where(rng.random((height, width)) < 0.5, np.rint(grey), grey)


# --- the originals


def padded_as_the_demos(array: NDArray[Any]) -> NDArray[Any]:
    """gradio/*.py: sides up to a multiple of 64, of two at the least, with the edge's values."""
    height, width = (max(2, -(-side // 64)) * 64 for side in array.shape[:2])
    rows = np.minimum(np.arange(height), array.shape[0] - 1)
    columns = np.minimum(np.arange(width), array.shape[1] - 1)
    return array[rows][:, columns]


@pytest.mark.parametrize("name", ["v2-inpaint", "v2-depth2img"])
def test_the_demos_padding(name: str) -> None:
    image = read_image(GOLDEN / f"e2e/{name}/image.png")
    canvas = pad_to_multiple(image.size, 64, least=128).apply(image.rgb)
    assert np.array_equal(canvas, padded_as_the_demos(image.rgb))
    latents = case(f"e2e/{name}/case.json")["rng"]["draws_in_order"][0]["shape"]
    assert list(canvas.shape[:2]) == [8 * side for side in latents[2:]]


def test_the_inpainting_demos_mask() -> None:
    path = GOLDEN / "e2e/v2-inpaint/mask.png"
    size = read_image(GOLDEN / "e2e/v2-inpaint/image.png").size
    placement = pad_to_multiple(size, 64, least=128)
    mask = placement.apply(read_mask(path, size=size))
    with Image.open(path) as image:
        padded = padded_as_the_demos(np.asarray(image.convert("RGB")))
    grey = np.asarray(Image.fromarray(padded).convert("L")).astype(np.float32) / 255.0
    wanted = torch.from_numpy((grey >= 0.5).astype(np.float32))[None, None]
    assert np.array_equal(hard_mask(mask), wanted[0, 0].numpy())
    small = torch.nn.functional.interpolate(wanted, size=(16, 16))
    assert np.array_equal(latent_mask(mask, 16, 16), small[0, 0].numpy())


def test_the_img2img_scripts_size() -> None:
    path = GOLDEN / "e2e/v1-img2img/init.png"
    original = read_image(path)
    placement = floor_resize(original.size, 32)
    with Image.open(path) as image:
        wanted = image.convert("RGB").resize((64, 32), resample=Image.Resampling.LANCZOS)
    assert np.array_equal(placement.apply(original.rgb), np.asarray(wanted))
    latents = case("e2e/v1-img2img/case.json")["rng"]["draws_in_order"][0]["shape"]
    assert placement.canvas == (8 * latents[3], 8 * latents[2])


def test_the_upscalers_input_is_taken_as_it_is() -> None:
    image = read_image(GOLDEN / "e2e/x4-superresolution/image.png")
    params = case("e2e/x4-superresolution/case.json")["params"]
    assert image.size == (params["w"], params["h"])
    placement = pad_to_multiple(image.size, 8)
    assert np.array_equal(placement.apply(image.rgb), image.rgb)


# --- placements


@FEW
@given(SIZES, st.sampled_from([1, 8, 32, 64]), st.sampled_from([0, 50, 128]), SEEDS)
def test_padding_is_undone_to_the_byte(size: Size, multiple: int, least: int, seed: int) -> None:
    placement = pad_to_multiple(size, multiple, least)
    for side, new in zip(size, placement.canvas, strict=True):
        assert new % multiple == 0
        assert new - multiple < max(side, least) <= new
    for array in (noise(size, seed), blobs(size, seed)):
        canvas = placement.apply(array)
        assert canvas.shape[:2] == placement.canvas[::-1]
        assert canvas.dtype == array.dtype
        assert np.array_equal(placement.undo(canvas), array)
        assert (canvas[-1, -1] == array[-1, -1]).all()


@FEW
@given(SIZES, st.integers(2, 4))
def test_an_upscaled_canvas_gives_an_upscaled_image(size: Size, factor: int) -> None:
    placement = pad_to_multiple(size, 64)
    rgb = noise(size)
    grown = placement.apply(rgb).repeat(factor, axis=0).repeat(factor, axis=1)
    wanted = rgb.repeat(factor, axis=0).repeat(factor, axis=1)
    assert np.array_equal(placement.undo(grown), wanted)


@FEW
@given(SIZES, SIZES, st.sampled_from(["resize", "crop", "pad"]))
def test_a_placement_stays_inside_and_in_proportion(source: Size, canvas: Size, how: Any) -> None:
    placement = fit(source, canvas, how)
    assert (placement.source, placement.canvas) == (source, canvas)
    for box, size in ((placement.crop, source), (placement.area, canvas)):
        left, top, right, bottom = box
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert abs(left - (size[0] - right)) <= 1  # in the middle
        assert abs(top - (size[1] - bottom)) <= 1
    crop, area = (
        (right - left, bottom - top)
        for left, top, right, bottom in (placement.crop, placement.area)
    )
    if how == "crop":
        assert area == canvas
        assert crop[0] == source[0] or crop[1] == source[1]
    else:
        assert crop == source
    if how == "pad":
        assert area[0] == canvas[0] or area[1] == canvas[1]
    if how != "resize":  # in proportion, but for the rounding of one side
        error = abs(crop[0] * area[1] - crop[1] * area[0])
        assert error <= max(*crop, *area) / 2 or min(*crop, *area) == 1


@FEW
@given(SIZES, SIZES, st.sampled_from(["resize", "crop", "pad"]), SEEDS)
def test_arrays_take_the_placements_sizes(source: Size, canvas: Size, how: Any, seed: int) -> None:
    placement = fit(source, canvas, how)
    crop = placement.crop
    for array in (noise(source, seed), blobs(source, seed)):
        made = placement.apply(array)
        assert made.shape == (*canvas[::-1], *array.shape[2:])
        back = placement.undo(made)
        assert back.shape == (crop[3] - crop[1], crop[2] - crop[0], *array.shape[2:])
        assert made.dtype == back.dtype == array.dtype
        assert array.min() - 1e-7 <= made.min() <= made.max() <= array.max() + 1e-7 or (
            array.ndim == 3
        )
    for flat in (np.full((*source[::-1], 3), 77, np.uint8), np.ones(source[::-1], np.float32)):
        assert (placement.apply(flat) == flat[0, 0]).all()
        assert (placement.undo(placement.apply(flat)) == flat[0, 0]).all()


@FEW
@given(SIZES, st.sampled_from(FITS), SEEDS)
def test_the_right_size_is_left_alone(size: Size, how: Any, seed: int) -> None:
    rgb = noise(size, seed)
    placement = fit(size, size, how)
    assert np.array_equal(placement.apply(rgb), rgb)
    assert np.array_equal(placement.undo(rgb), rgb)


@FEW
@given(SIZES, SIZES, st.sampled_from(["resize", "crop", "pad"]), SEEDS)
@example((31, 30), (9, 8), "pad", 66)
def test_a_mask_lies_where_its_image_does(source: Size, canvas: Size, how: Any, seed: int) -> None:
    """A half plane, drawn in the image and in its mask, keeps one edge to within a pixel."""
    rng = np.random.default_rng(seed)
    edge = int(rng.integers(1, source[0]))
    mask = np.zeros(source[::-1], np.float32)
    mask[:, edge:] = 1
    rgb = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, axis=2)
    placement = fit(source, canvas, how)
    left, _, right, _ = placement.area  # padding repeats the last column, rounded either way
    in_mask = (placement.apply(mask)[:, left:right] >= 0.5).sum(axis=1)
    in_image = (placement.apply(rgb)[:, left:right, 0] >= 128).sum(axis=1)
    assert np.abs(in_mask - in_image).max() <= 1 + canvas[0] // source[0]


def test_fits_by_example() -> None:
    assert fit((200, 100), (64, 64), "resize").crop == (0, 0, 200, 100)
    assert fit((200, 100), (64, 64), "crop").crop == (50, 0, 150, 100)
    assert fit((100, 200), (64, 32), "crop").crop == (0, 75, 100, 125)
    assert fit((200, 100), (64, 64), "pad").area == (0, 16, 64, 48)
    assert fit((100, 200), (64, 64), "pad").area == (16, 0, 48, 64)


def test_resize_is_pillows_lanczos() -> None:
    rgb = noise((50, 40))
    wanted = Image.fromarray(rgb).resize((64, 24), Image.Resampling.LANCZOS)
    assert np.array_equal(fit((50, 40), (64, 24), "resize").apply(rgb), np.asarray(wanted))


def test_padding_repeats_the_edge() -> None:
    rgb = noise((16, 8))
    canvas = fit((16, 8), (16, 16), "pad").apply(rgb)
    assert np.array_equal(canvas[4:12], rgb)
    assert (canvas[:4] == rgb[0]).all()
    assert (canvas[12:] == rgb[-1]).all()


def test_a_wrong_size_is_an_error_where_wanted() -> None:
    with pytest.raises(ImageError, match="the image is 30x20, but must be 64x64"):
        fit((30, 20), (64, 64), "error")
    with pytest.raises(ImageError, match="the image is 40x31, but needs at least 32 pixels"):
        floor_resize((40, 31), 32)


def test_programs_mistakes_are_told() -> None:
    placement = fit((30, 20), (64, 64), "pad")
    with pytest.raises(ValueError, match="does not have the size"):
        placement.apply(noise((20, 30)))
    for size in ((64, 63), (128, 64), (32, 32)):
        with pytest.raises(ValueError, match="multiple"):
            placement.undo(noise(size))
    with pytest.raises(ValueError, match="resize, crop, pad, error"):
        fit((8, 8), (9, 9), "stretch")  # type: ignore[arg-type]


def test_a_placement_is_a_value() -> None:
    assert pad_to_multiple((30, 64), 64) == Placement((30, 64), (64, 64), *[(0, 0, 30, 64)] * 2)
    assert len({fit((8, 8), (8, 8), "crop"), fit((8, 8), (8, 8), "pad")}) == 1


# --- masks and pasting


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_latent_masks_are_torchs_nearest(factor: int) -> None:
    mask = blobs((64, 40))
    whole = torch.from_numpy((mask >= 0.5).astype(np.float32))[None, None]
    size = (40 // factor, 64 // factor)
    wanted = torch.nn.functional.interpolate(whole, size=size)[0, 0].numpy()
    assert np.array_equal(latent_mask(mask, *size), wanted)
    most = torch.nn.functional.max_pool2d(whole, factor)[0, 0].numpy()
    assert np.array_equal(touched_mask(mask, *size), most)


@FEW
@given(SIZES, st.integers(0, 40), SEEDS)
def test_nothing_outside_the_mask_changes(size: Size, feather: int, seed: int) -> None:
    original, generated, mask = noise(size, seed), noise(size, seed + 1), blobs(size, seed)
    made = paste(original, generated, mask, feather)
    assert made.dtype == np.uint8
    assert np.array_equal(made[mask == 0], original[mask == 0])
    full = weights(mask, feather) == 1
    assert np.array_equal(made[full], generated[full])
    low, high = np.minimum(original, generated), np.maximum(original, generated)
    assert ((low <= made) & (made <= high)).all()


@FEW
@given(st.tuples(st.integers(1, 24), st.integers(1, 24)), st.integers(1, 40), SEEDS)
def test_feathers_are_exact_distances(size: Size, feather: int, seed: int) -> None:
    width, height = size
    rng = np.random.default_rng(seed)
    outside = rng.random((height, width)) < rng.choice([0, 0.02, 0.3, 1])
    mask = np.where(outside, 0, np.maximum(blobs(size, seed), 0.1)).astype(np.float32)
    y, x = np.indices((height, width))
    distance = np.full((height, width), np.inf)
    for row, column in zip(*np.nonzero(outside), strict=True):
        distance = np.minimum(distance, np.hypot(y - row, x - column))
    wanted = mask * np.minimum(1, distance / (feather + 1))
    assert np.allclose(weights(mask, feather), wanted, atol=1e-6)


def test_a_feather_rises_inwards() -> None:
    mask = np.zeros((9, 20), np.float32)
    mask[:, 5:] = 1
    row = weights(mask, 3)[4]
    assert row.tolist() == [0] * 5 + [0.25, 0.5, 0.75] + [1] * 12
    assert np.array_equal(weights(mask, 0), mask)


def test_grey_masks_blend() -> None:
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)
    assert (paste(black, white, np.full((8, 8), 0.25, np.float32)) == 50).all()


def test_a_mask_of_another_size_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        paste(noise((8, 9)), noise((8, 9)), blobs((9, 8)))


# --- outpainting


@FEW
@given(SIZES, *[st.integers(0, 30)] * 4, st.integers(0, 50), SEEDS)
def test_outpainting_keeps_the_image(
    size: Size, left: int, top: int, right: int, bottom: int, overlap: int, seed: int
) -> None:
    rgb = noise(size, seed)
    width, height = size
    extended, mask = outpaint(rgb, Sides(left, top, right, bottom), overlap)
    assert extended.shape == (height + top + bottom, width + left + right, 3)
    assert mask.shape == extended.shape[:2]
    old = np.zeros(mask.shape, bool)
    old[top : top + height, left : left + width] = True
    assert np.array_equal(extended[old].reshape(rgb.shape), rgb)
    assert (mask[~old] == 1).all()
    assert (mask[old].reshape(height, width)[height // 2, width // 2]) == 0
    if not overlap:
        assert (mask[old] == 0).all()


def test_outpainting_by_example() -> None:
    rgb = noise((16, 12))
    extended, mask = outpaint(rgb, Sides(0, 0, 5, 0), overlap=2)
    assert (extended[:, 16:] == rgb[:, -1:]).all()
    assert mask[3].tolist() == [0] * 14 + [1] * 7
    blended = paste(extended, np.full_like(extended, 9), mask, feather=2)
    assert np.array_equal(blended[:, :14], rgb[:, :14])
    assert (blended[:, 16:] == 9).all()
