"""Image files as bytes: PNG, JPEG, WebP, AVIF and TIFF, with the texts that go into them.

All settings of the encoders are fixed, so that the same image and texts give the same bytes. Images
have no transparency in any format.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

from ldm.images.exif import write_exif

if TYPE_CHECKING:  # numpy is loaded with the first image; planning works without it
    import numpy as np
    from numpy.typing import NDArray

_SEGMENT = 65_533  # bytes in a segment of a JPEG; longer EXIF continues in the next one
_START = b"Exif\0\0"


def encode_image(image: NDArray[np.uint8], texts: dict[str, str], kind: str, quality: int) -> bytes:
    """An image [H,W,3] as the bytes of a file of the format `kind`, one of `FORMATS`.

    `quality` (1 to 100) is that of the lossy formats; at 100 WebP loses nothing.
    """
    if kind == "png":
        return encode_png(image, texts)
    from PIL import Image

    exif = write_exif(texts)
    options: dict[str, Any] = {"exif": exif} if exif and kind != "jpeg" else {}
    if kind == "jpeg":
        options |= {"quality": quality, "subsampling": "4:4:4", "optimize": True}
    elif kind == "webp":
        options |= {"quality": quality, "lossless": quality == 100, "method": 4}
    elif kind == "avif":  # tiles would depend on the number of processors
        options |= {"quality": quality, "subsampling": "4:4:4", "speed": 6}
        options |= {"max_threads": 1, "autotiling": False}
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=kind.upper(), **options)
    content = buffer.getvalue()
    return content[:2] + _segments(exif) + content[2:] if kind == "jpeg" else content


def encode_png(image: NDArray[np.uint8] | NDArray[np.uint16], texts: dict[str, str]) -> bytes:
    """An image [H,W,3] or [H,W] as the bytes of a PNG file with text chunks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def _segments(exif: bytes) -> bytes:
    """The APP1 segments of an EXIF block, each of which starts with its head."""
    content, room = exif.removeprefix(_START), _SEGMENT - len(_START)
    parts = [_START + content[at : at + room] for at in range(0, len(content), room)]
    return b"".join(struct.pack(">HH", 0xFFE1, len(part) + 2) + part for part in parts)
