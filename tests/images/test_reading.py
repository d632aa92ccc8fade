from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from ldm.images.reading import (
    LoadedImage,
    read_image,
)
from tests.odd_images import (
    ALPHA,
    DEEP,
    RGB,
    png,
    png_chunk,
    saved,
    tiff,
    written,
)


def rounded(deep: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.rint(deep / 257.0).astype(np.uint8)


# --- images that can be read


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_a_lossless_image_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    found = read_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(RGB)))
    assert np.array_equal(found.rgb, RGB)
    assert found.alpha is None
    assert found.size == (17, 12)


def test_the_content_decides_not_the_suffix(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(RGB), format="PNG")
    assert np.array_equal(read_image(path).rgb, RGB)


@pytest.mark.parametrize(("suffix", "codec"), [("jpg", "jpg"), ("webp", "webp"), ("avif", "avif")])
def test_a_lossy_image_is_near(tmp_path: Path, suffix: str, codec: str) -> None:
    if codec not in features.get_supported():
        pytest.skip(f"this Pillow has no {codec}")
    smooth = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    found = read_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(smooth)))
    assert found.rgb.shape == smooth.shape
    assert np.abs(found.rgb.astype(int) - smooth).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_modes_become_rgb_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    found = read_image(saved(tmp_path / "a.tif", image))
    assert np.array_equal(found.rgb, np.asarray(image.convert("RGB")))
    assert found.alpha is None


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (250, 40, 10)).convert("CMYK")
    found = read_image(saved(tmp_path / "a.jpg", image))
    assert np.abs(found.rgb[0, 0].astype(int) - (250, 40, 10)).max() < 6


def test_alpha_is_kept_beside_the_colour(tmp_path: Path) -> None:
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    found = read_image(saved(tmp_path / "a.png", rgba))
    assert np.array_equal(found.rgb, RGB)
    assert found.alpha is not None
    assert np.array_equal(found.alpha, ALPHA)
    white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    assert np.abs(found.flattened().astype(int) - np.asarray(white)).max() <= 1
    black = found.flattened((0, 0, 0))
    assert (black[ALPHA == 0] == 0).all()
    assert np.array_equal(black[ALPHA == 255], RGB[ALPHA == 255])


def test_an_image_without_alpha_flattens_to_itself() -> None:
    assert np.array_equal(LoadedImage(RGB).flattened(), RGB)


def test_grey_with_alpha(tmp_path: Path) -> None:
    grey_alpha = Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(ALPHA)])
    found = read_image(saved(tmp_path / "a.png", grey_alpha))
    assert np.array_equal(found.rgb, np.repeat(RGB[..., :1], 3, axis=2))
    assert found.alpha is not None
    assert np.array_equal(found.alpha, ALPHA)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_a_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    indices = np.random.default_rng(7).integers(0, 3, (9, 11), np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    found = read_image(saved(tmp_path / "a.png", image, transparency=transparency))
    assert np.array_equal(found.rgb[indices == 1], np.tile([40, 50, 60], ((indices == 1).sum(), 1)))
    assert found.alpha is not None
    wanted = np.array([255, 0, 128 if isinstance(transparency, bytes) else 255])
    assert np.array_equal(found.alpha, wanted[indices])


def test_a_colour_key_of_a_png_is_transparent(tmp_path: Path) -> None:
    array = RGB.copy()
    array[3, 4] = array[5, 6] = (1, 2, 3)
    found = read_image(saved(tmp_path / "a.png", Image.fromarray(array), transparency=(1, 2, 3)))
    assert found.alpha is not None
    assert np.array_equal(found.alpha == 0, (array == (1, 2, 3)).all(axis=2))
    assert found.rgb[3, 4].tolist() == [1, 2, 3]


def test_a_gif_of_one_frame(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(8)
    found = read_image(saved(tmp_path / "a.gif", image))
    assert np.array_equal(found.rgb, np.asarray(image.convert("RGB")))


def test_a_multi_image_jpeg_gives_its_first(tmp_path: Path) -> None:
    flat = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "a.mpo", flat[0], format="MPO", save_all=True, append_images=flat[1:])
    assert np.abs(read_image(path).rgb[0, 0].astype(int) - (255, 0, 0)).max() < 6


# --- 16 bits


def test_deep_grey_is_rounded(tmp_path: Path) -> None:
    found = read_image(written(tmp_path / "a.png", png(DEEP[..., :1])))
    assert np.array_equal(found.rgb, np.repeat(rounded(DEEP[..., :1]), 3, axis=2))
    assert found.alpha is None


def test_deep_grey_of_other_formats(tmp_path: Path) -> None:
    grey = DEEP[..., 0]
    by_tiff = read_image(saved(tmp_path / "a.tif", Image.fromarray(grey)))
    assert np.array_equal(by_tiff.rgb[..., 0], rounded(grey))
    pgm = b"P5 17 12 65535\n" + grey.astype(">u2").tobytes()
    assert np.array_equal(read_image(written(tmp_path / "a.pgm", pgm)).rgb[..., 1], rounded(grey))


def test_deep_colour_is_rounded_not_cut(tmp_path: Path) -> None:
    found = read_image(written(tmp_path / "a.png", png(DEEP[..., :3])))
    assert np.array_equal(found.rgb, rounded(DEEP[..., :3]))
    assert not np.array_equal(found.rgb, DEEP[..., :3] >> 8)  # what Pillow gives
    assert found.alpha is None


def test_deep_alpha(tmp_path: Path) -> None:
    coloured = read_image(written(tmp_path / "a.png", png(DEEP)))
    assert np.array_equal(coloured.rgb, rounded(DEEP[..., :3]))
    assert coloured.alpha is not None
    assert np.array_equal(coloured.alpha, rounded(DEEP[..., 3]))
    grey = read_image(written(tmp_path / "b.png", png(DEEP[..., 2:])))
    assert np.array_equal(grey.rgb, np.repeat(rounded(DEEP[..., 2:3]), 3, axis=2))
    assert grey.alpha is not None
    assert np.array_equal(grey.alpha, rounded(DEEP[..., 3]))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_deep_colour_key(tmp_path: Path, channels: int) -> None:
    array = DEEP[..., :channels].copy()
    key = array[2, 3]
    array[4, 5] = key + np.uint16(1)  # the same when cut to 8 bits, most likely
    chunk = png_chunk(b"tRNS", key.astype(">u2").tobytes())
    found = read_image(written(tmp_path / "a.png", png(array, before=chunk)))
    assert found.alpha is not None
    assert np.array_equal(found.alpha == 0, (array == key).all(axis=2))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("channels", "extra"), [(3, None), (4, 0), (4, 2)])
def test_deep_tiffs(
    tmp_path: Path, order: str, compressed: bool, channels: int, extra: int | None
) -> None:
    content = tiff(DEEP[..., :channels], order=order, compressed=compressed, extra=extra)
    found = read_image(written(tmp_path / "a.tif", content))
    assert np.array_equal(found.rgb, rounded(DEEP[..., :3]))
    assert (found.alpha is not None) == (extra == 2)
    if found.alpha is not None:
        assert np.array_equal(found.alpha, rounded(DEEP[..., 3]))


# --- orientation


TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("webp", {"lossless": True, "exact": True}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_images_stand_upright(
    tmp_path: Path, mode: str, suffix: str, options: dict[str, Any], orientation: int
) -> None:
    image = Image.fromarray(np.dstack([RGB, np.maximum(ALPHA, 1)])[..., : len(mode)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = read_image(saved(tmp_path / f"a.{suffix}", image, exif=exif, **options))
    turn = TURNED[orientation]
    wanted = np.asarray(image if turn is None else image.transpose(turn))
    assert np.array_equal(found.rgb, wanted[..., :3])
    assert (found.alpha is not None) == (mode == "RGBA")
    if found.alpha is not None:
        assert np.array_equal(found.alpha, wanted[..., 3])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_deep_tiff_is_turned_once(tmp_path: Path, compressed: bool) -> None:
    content = tiff(DEEP[..., :3], orientation=6, compressed=compressed)
    found = read_image(written(tmp_path / "a.tif", content))
    assert np.array_equal(found.rgb, np.rot90(rounded(DEEP[..., :3]), -1))


def test_broken_exif_is_passed_over(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")):
        image = Image.new("RGB", (16, 24), "red")
        path = saved(tmp_path / f"{number}.jpg", image, exif=exif)
        assert read_image(path).size == (16, 24)
