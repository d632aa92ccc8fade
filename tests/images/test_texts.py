"""Texts in image files: every kind of chunk, before and behind the pixels, and no pixel decoded."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.errors import ImageError
from ldm.images.exif import exif_texts, write_exif
from ldm.images.texts import read_texts
from ldm.images.writing import encode_image
from tests.odd_images import PNG_START, png_chunk, png_header


def saved(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def png(*chunks: bytes, side: int = 8) -> bytes:
    pixels = zlib.compress(bytes((side * 3 + 1) * side))
    return b"".join(
        [PNG_START, png_header(side, side, 8, 2), *chunks[:2],
         png_chunk(b"IDAT", pixels), *chunks[2:],
         png_chunk(b"IEND", b"")]
    )  # fmt: skip


def test_every_kind_of_chunk_before_and_behind_the_pixels(tmp_path: Path) -> None:
    packed = zlib.compress("ü".encode("latin-1"))
    chunks = (
        png_chunk(b"tEXt", b"a\0\xfc"),
        png_chunk(b"zTXt", b"b\0\0" + packed),
        png_chunk(b"iTXt", "c\0\0\0\0\0\N{SNOWMAN}".encode()),
        png_chunk(b"iTXt", b"d\0\1\0\0\0" + zlib.compress("\N{SNOWMAN}".encode())),
    )
    path = saved(tmp_path, "a.png", png(*chunks))
    assert read_texts(path) == {"a": "ü", "b": "ü", "c": "\N{SNOWMAN}", "d": "\N{SNOWMAN}"}
    with Image.open(path) as image:
        image.load()
        assert {k: str(v) for k, v in image.info.items()} == read_texts(path)


def test_what_pillow_writes_is_read(tmp_path: Path) -> None:
    chunks = PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 1", zip=True)
    chunks.add_itxt("x", "\N{SNOWMAN}", zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    assert read_texts(tmp_path / "a.png") == {"parameters": "a cat\nSteps: 1", "x": "\N{SNOWMAN}"}


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.gif", "a.bmp", "a.tif"])
def test_other_formats_have_none(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert read_texts(tmp_path / name) == {}


def test_a_damaged_or_cut_file_is_refused(tmp_path: Path) -> None:
    whole = png(png_chunk(b"tEXt", b"a\0b"))
    for cut in (10, 40, len(whole) - 12, len(whole) - 1):
        with pytest.raises(ImageError, match="cannot be read as an image"):
            read_texts(saved(tmp_path, "cut.png", whole[:cut]))
    with pytest.raises(ImageError, match="chunk is damaged"):
        read_texts(saved(tmp_path, "bad.png", whole.replace(b"a\0b", b"a\0c")))


def test_the_memory_is_bounded(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(2**26), 9)
    with pytest.raises(ImageError, match="bytes of text"):
        read_texts(saved(tmp_path, "bomb.png", png(png_chunk(b"zTXt", b"a\0\0" + bomb))))
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "JPEG")
    start, size = buffer.getvalue().partition(b"\xff\xc0\x00\x0b\x08")[::2]
    huge = start + b"\xff\xc0\x00\x0b\x08" + struct.pack(">HH", 60000, 60000) + size[4:]
    with pytest.raises(ImageError, match="pixels"):
        read_texts(saved(tmp_path, "huge.jpg", huge))
    large = start + b"\xff\xc0\x00\x0b\x08" + struct.pack(">HH", 12000, 12000) + size[4:]
    assert read_texts(saved(tmp_path, "large.jpg", large)) == {}  # no pixel is decoded
    os.truncate(tmp_path / "large.jpg", 8)
    with pytest.raises(ImageError):
        read_texts(tmp_path / "large.jpg")


TEXTS = {"parameters": "a cat, \N{SNOWMAN}\nSteps: 1, Sampler: DDIM, Seed: 7", "ldm": '{"a": 1}'}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "avif", "tiff"])
def test_what_is_written_in_each_format_is_read_back(tmp_path: Path, kind: str) -> None:
    from PIL import features

    if kind == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    content = encode_image(pixels, TEXTS, kind, 100)
    assert content == encode_image(pixels, TEXTS, kind, 100)
    path = saved(tmp_path, f"a.{kind}", content)
    assert read_texts(path) == TEXTS
    with Image.open(path) as image:
        assert image.format == kind.upper()
        difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels)
    assert difference.max() <= {"jpeg": 16, "avif": 1}.get(kind, 0)
    long = TEXTS | {"ldm": "x" * 100_000, "parameters": "\N{SNOWMAN}" * 50_000}
    assert read_texts(saved(tmp_path, f"b.{kind}", encode_image(pixels, long, kind, 50))) == long


def test_the_comment_has_the_type_that_other_readers_want() -> None:
    exif = write_exif(TEXTS)
    place = exif.index(b"\x92\x86")
    assert exif[place + 2 : place + 4] == b"\0\7"  # UNDEFINED
    text = TEXTS["parameters"].encode("utf-16-be")
    assert exif[place + 4 : place + 8] == struct.pack(">I", 8 + len(text))
    assert exif.endswith(b"UNICODE\0" + text)


@pytest.mark.parametrize("codec", ["utf-16-be", "utf-16-le", "utf-16"])
def test_comments_of_both_byte_orders_are_read(codec: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat\nSteps: 1".encode(codec)
    assert exif_texts(exif.tobytes()) == {"parameters": "a cat\nSteps: 1"}
    assert exif_texts(exif.tobytes()[:30]) == {}
