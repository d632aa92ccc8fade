"""A sheet of images in a table, each column and each row with a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm.images.tensors import PADDING, ImageArray

SIZE = 14  # of the letters, in pixels
MARGIN = 6
WIDEST = 240  # pixels of a label beside a row


def label(fields: Mapping[str, Any]) -> str:
    """A value of an axis in words: steps=20."""
    shown = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in fields.items()}
    return ", ".join(f"{name}={value}" for name, value in shown.items())


def sheet(images: Sequence[ImageArray], across: Sequence[str], down: Sequence[str]) -> ImageArray:
    """Images [H,W,3] in a table with labels, black on white.

    They come column by column: all rows of the first column, then of the second. Cells are as large
    as the largest image; labels that are too long are cut.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(SIZE)
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    side = [_cut(text, WIDEST, font) for text in down]
    left = max((round(font.getlength(text)) for text in side), default=0) + 2 * MARGIN
    left = left if any(side) else PADDING
    top = SIZE + 2 * MARGIN
    size = (left + len(across) * (width + PADDING), top + len(down) * (height + PADDING))
    paper = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(paper)
    for column, text in enumerate(across):
        middle = left + column * (width + PADDING) + width // 2
        pen.text((middle, top // 2), _cut(text, width, font), "black", font, anchor="mm")
    for row, text in enumerate(side):
        middle = top + row * (height + PADDING) + height // 2
        pen.text((left - MARGIN, middle), text, "black", font, anchor="rm")
    for place, image in enumerate(images):
        column, row = divmod(place, len(down))
        corner = (left + column * (width + PADDING), top + row * (height + PADDING))
        paper.paste(Image.fromarray(image), corner)
    return np.asarray(paper)


def _cut(text: str, room: int, font: Any) -> str:
    """A label cut to a number of pixels."""
    line = " ".join(text.split())
    shown = line
    while shown and font.getlength(shown) > room:
        line = line[:-1]
        shown = f"{line.rstrip()}..." if line else ""
    return shown
