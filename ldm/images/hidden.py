"""Texts that are hidden in the lowest bits of an image's pixels.

NovelAI and an extension of AUTOMATIC1111's web UI write them into alpha, or into the colours: bits
column by column, the highest of a byte first: a mark of 15 bytes, the number of bits as 32 bits,
and the text, packed with gzip or not. Sources: NovelAI/novelai-image-metadata,
neggles/sd-webui-stealth-pnginfo.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldm.images.reading import read_image

_MARKS = {
    b"stealth_pnginfo": ("alpha", False),
    b"stealth_pngcomp": ("alpha", True),
    b"stealth_rgbinfo": ("colour", False),
    b"stealth_rgbcomp": ("colour", True),
}
_MARK = 15  # bytes
_MOST_TEXT = 16 * 2**20  # bytes, unpacked


def hidden_texts(path: Path) -> dict[str, str]:
    """The texts hidden in an image's pixels by key; {} without any, or where they are damaged.

    Decodes all pixels. Raises ImageError for a file that is no readable image.
    """
    image = read_image(path)
    layers = {"colour": image.rgb} | ({} if image.alpha is None else {"alpha": image.alpha})
    for name, layer in layers.items():
        content = _read(layer, name)
        if content is not None:
            return _texts(content)
    return {}


def _read(layer: NDArray[np.uint8], name: str) -> bytes | None:
    """The hidden text in a layer [H,W] or [H,W,3]; None without one."""
    start = _bytes(layer, 0, _MARK + 4)
    where, packed = _MARKS.get(start[:_MARK], ("", False))
    if where != name or len(start) < _MARK + 4:
        return None
    length = int.from_bytes(start[_MARK:], "big") // 8
    content = _bytes(layer, _MARK + 4, length) if length <= _MOST_TEXT else b""
    if not packed:
        return content
    unpacker = zlib.decompressobj(31)
    try:
        return unpacker.decompress(content, _MOST_TEXT)
    except zlib.error:
        return None


def _bytes(layer: NDArray[np.uint8], start: int, count: int) -> bytes:
    """Bytes of the lowest bits, column by column; fewer at the end of the image."""
    height = layer.shape[0] * (layer.shape[2] if layer.ndim == 3 else 1)  # bits of a column
    first, last = start * 8 // height, -(-(start + count) * 8 // height)
    bits = (layer[:, first:last] & 1).swapaxes(0, 1).reshape(-1)
    skipped = start * 8 - first * height
    bits = bits[skipped : skipped + count * 8]
    return np.packbits(bits[: len(bits) // 8 * 8]).tobytes()


def _texts(content: bytes) -> dict[str, str]:
    """A JSON object's texts, or a text by itself, which is that of the web UI."""
    text = content.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {"parameters": text}
    if not isinstance(value, dict):
        return {"parameters": text}
    return {
        str(key): item if isinstance(item, str) else json.dumps(item)
        for key, item in value.items()
        if item is not None
    }
