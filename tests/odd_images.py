"""Image files for tests, with those that Pillow cannot write, and what readers say of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ldm.errors import ImageError
from ldm.images.reading import read_image

PNG_START = b"\x89PNG\r\n\x1a\n"
_RNG = np.random.default_rng(7)
RGB = _RNG.integers(0, 256, (12, 17, 3), np.uint8)
ALPHA = _RNG.integers(0, 256, (12, 17), np.uint8)
DEEP = _RNG.integers(0, 65536, (12, 17, 4), np.uint16)
_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels


def png_chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png_header(width: int, height: int, depth: int, colour: int) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(array: NDArray[Any], *, before: bytes = b"") -> bytes:
    """A PNG of uint8 or uint16 [H,W,C]; `before` holds chunks to stand before the pixels."""
    height, width, channels = array.shape
    depth = 8 * array.dtype.itemsize
    big = array.astype(array.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + big[row].tobytes() for row in range(height))
    header = png_header(width, height, depth, _PNG_COLOUR[channels])
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return PNG_START + header + before + data + png_chunk(b"IEND", b"")


def tiff(
    array: NDArray[np.uint16],
    *,
    order: str = "<",
    compressed: bool = False,
    extra: int | None = None,
    orientation: int = 1,
) -> bytes:
    """A TIFF of uint16 [H,W,3 or 4]; `extra` tells what the fourth is (0 nothing, 2 alpha)."""
    height, width, channels = array.shape
    data = array.astype(order + "u2").tobytes()
    data = zlib.compress(data) if compressed else data
    start = 2000
    tags: list[tuple[int, str, list[int]]] = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [16] * channels),
        (259, "H", [8 if compressed else 1]),
        (262, "H", [2]),
        (273, "I", [start]),
        (274, "H", [orientation]),
        (277, "H", [channels]),
        (278, "H", [height]),
        (279, "I", [len(data)]),
        (284, "H", [1]),
    ]
    if extra is not None:
        tags.append((338, "H", [extra]))
    content, later = b"", b""
    for tag, letter, values in tags:
        packed = struct.pack(order + letter * len(values), *values)
        if len(packed) > 4:
            packed, later = struct.pack(order + "I", 1000 + len(later)), later + packed
        kind = {"H": 3, "I": 4}[letter]
        content += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    start_bytes = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    directory = start_bytes + struct.pack(order + "H", len(tags)) + content + bytes(4)
    return (directory.ljust(1000, b"\0") + later).ljust(start, b"\0") + data


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refusal(path: Path | str, reader: Any = read_image, **options: Any) -> str:
    """The message of the error that a reader raises: one line that names the file."""
    with pytest.raises(ImageError) as caught:
        reader(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert caught.value.exit_code == 2
    return message
