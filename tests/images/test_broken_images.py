"""Image files that cannot be used: refused in words, or read as far as they go."""

from __future__ import annotations

import io
import os
import random
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ldm.images.reading as images
from ldm.errors import ImageError
from ldm.images.reading import (
    LARGEST_PIXELS,
    read_depth,
    read_image,
)
from tests.odd_images import (
    ALPHA,
    DEEP,
    PNG_START,
    RGB,
    png,
    png_chunk,
    png_header,
    refusal,
    saved,
    tiff,
    written,
)

FILM = [Image.fromarray(RGB + np.uint8(n)) for n in range(3)]


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.png")
    assert "folder" in refusal(tmp_path)
    assert "not a directory" in refusal(written(tmp_path / "f", b"x") / "a.png").lower()
    with pytest.raises(ImageError, match="an image has an empty name"):
        read_image("")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image("a\0b.png")


def test_what_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))

    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root may read everything
    assert "cannot be read (Permission denied)" in refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    assert "not a regular file" in refusal(tmp_path / "fifo.png")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"just words, no image", "not an image, but text"),
        (b"<!DOCTYPE html><html><body>404", "not an image, but a web page"),
        (b'<?xml version="1.0"?><svg width="3"/>', "an SVG drawing"),
        (b"%PDF-1.7 rest", "a PDF"),
        (b"PK\x03\x04" + bytes(60), "a ZIP archive or a checkpoint"),
        (b"\0\0\0\x18ftypheic" + bytes(60), "a HEIC image"),
        (b"\0\0\0\x18ftypisom" + bytes(60), "a video"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"RIFF\x10\0\0\0AVI LIST", "a video"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (PNG_START + b"rubbish" * 9, "damaged"),
        (b"\xff\xd8\xff\xe0" + bytes(80), "a damaged JPEG"),
        (bytes(4096), "nothing but zeros"),
        (bytes(range(128, 256)), "data of an unknown kind"),
    ],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in refusal(written(tmp_path / "a.png", content))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm"])
def test_a_truncated_image(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 256, (64, 64, 3), np.uint8))
    whole = saved(tmp_path / f"whole.{suffix}", noise).read_bytes()
    cut = written(tmp_path / f"cut.{suffix}", whole[: len(whole) // 2])
    assert "damaged" in refusal(cut)


def test_a_bomb_is_seen_in_the_header(tmp_path: Path) -> None:
    for width, height in ((30_000, 30_000), (13_400, 13_400), (2**31 - 1, 8)):
        start = PNG_START + png_header(width, height, 8, 2)
        path = written(
            tmp_path / "a.png", start + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
        )
        assert "more than 178 million pixels" in refusal(path)


def test_the_limit_holds_where_pillow_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    start = PNG_START + png_header(30_000, 30_000, 8, 2)
    path = written(tmp_path / "a.png", start + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""))
    assert "million pixels" in refusal(path)


def test_a_large_image_below_the_limit_gives_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)  # Pillow warns from here, 12 * 17 < 300
    assert read_image(path).size == (17, 12)
    assert LARGEST_PIXELS == 178_956_970


@pytest.mark.parametrize(
    ("suffix", "words"),
    [("gif", "animated"), ("png", "animated"), ("webp", "animated"), ("tif", "several pages")],
)
def test_films_are_refused(tmp_path: Path, suffix: str, words: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", FILM[0], save_all=True, append_images=FILM[1:])
    assert words in refusal(path)


@pytest.mark.parametrize("size", [(7, 100), (100, 7), (1, 1)])
def test_a_tiny_image(tmp_path: Path, size: tuple[int, int]) -> None:
    message = refusal(saved(tmp_path / "a.png", Image.new("RGB", size)))
    assert f"is {size[0]}x{size[1]}; an image needs at least 8 pixels" in message


def test_a_floating_point_image_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(RGB[..., 0].astype(np.float32)))
    assert "8 or 16 bits" in refusal(path)


def test_an_image_that_does_not_fit_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(images, "_decoded", full)
    assert "memory" in refusal(saved(tmp_path / "a.png", Image.fromarray(RGB)))


def _intact() -> list[bytes]:
    """Small files of every format, for damage to be done to."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.dstack([RGB, ALPHA]))
    files = [png(DEEP), png(DEEP[..., 2:]), tiff(DEEP[..., :3]), tiff(DEEP, compressed=True)]
    for name in ("PNG", "WEBP", "TIFF", "GIF"):
        image.save(buffer := io.BytesIO(), name, exif=exif)
        files.append(buffer.getvalue())
    for name in ("JPEG", "BMP", "PPM"):
        image.convert("RGB").save(buffer := io.BytesIO(), name)
        files.append(buffer.getvalue())
    image.save(buffer := io.BytesIO(), "TIFF", compression="tiff_lzw")
    return [*files, buffer.getvalue()]


INTACT = _intact()


def test_damage_is_an_image_error_or_an_image(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "a"
    messages = []
    for content in INTACT * 15:
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 3, 20))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(1, len(damaged))))])
        for reader in (read_image, read_depth):
            try:
                reader(path)
            except ImageError as error:
                messages.append(str(error))
    assert len(messages) > 100
    assert not [message for message in messages if "\n" in message]


def test_reading_leaves_no_trace(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(RGB))
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    threads = [threading.Thread(target=read_image, args=(path,)) for _ in range(4)]
    read_image(path)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@given(st.integers(0, 65535))
def test_16_bits_round_to_the_nearest_of_8(value: int) -> None:
    made = images._to_bytes(np.array([value], np.uint16))
    assert abs(int(made[0]) * 257 - value) <= 128


def test_every_message_says_what_to_do(tmp_path: Path) -> None:
    advice = re.compile(r"(;|,) \w+")
    path = saved(tmp_path / "a.gif", FILM[0], save_all=True, append_images=FILM[1:])
    for place in (path, tmp_path, tmp_path / "none", written(tmp_path / "e", b"")):
        assert advice.search(refusal(place))
