"""The masked area of an image: its soft edge, the box around it, and what to fill it with.

What each does follows AUTOMATIC1111's web UI (modules/processing.py and modules/masking.py).
"""

from __future__ import annotations

import math

import numpy as np

from ldm.images.canvas import Box, Pixels, Placement, Plane, Size, fit

_LEAST = 0.5 / 255  # of a mask: less is 0 in 8 bits

# Radii of the blurs that are laid over each other, and how often each is.
_FILLS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


def blurred(mask: Plane, sigma: int) -> Plane:
    """A mask [H,W] in [0,1] with a Gaussian blur of `sigma` pixels; the border is mirrored.

    The kernel reaches as far as the web UI's, int(2.5 sigma + 0.5) pixels to each side.
    """
    reach = int(2.5 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        sides = [(0, 0), (0, 0)]
        sides[axis] = (reach, reach)
        wide = np.pad(mask.astype(np.float64), sides, mode="reflect")
        length = mask.shape[axis]
        parts = (np.take(wide, range(i, i + length), axis) for i in range(len(kernel)))
        mask = np.asarray(sum(w * part for w, part in zip(kernel, parts, strict=True)))
    return mask.clip(0, 1).astype(np.float32)


def masked_crop(mask: Plane, padding: int, size: Size) -> Placement:
    """The part of an image around its mask [H,W], scaled to a canvas of `size`.

    The box around the mask gets `padding` pixels on each side, then the proportions of the canvas,
    as far as the image reaches; the rest of the canvas repeats the edges.
    """
    whole = (mask.shape[1], mask.shape[0])
    box = _with_proportions(_padded_box(mask, padding), size, whole)
    placed = fit((box[2] - box[0], box[3] - box[1]), size, "pad")
    return Placement(whole, size, box, placed.area)


def _padded_box(mask: Plane, padding: int) -> Box:
    height, width = mask.shape
    rows = np.flatnonzero((mask >= _LEAST).any(axis=1))
    columns = np.flatnonzero((mask >= _LEAST).any(axis=0))
    return (
        max(int(columns[0]) - padding, 0),
        max(int(rows[0]) - padding, 0),
        min(int(columns[-1]) + 1 + padding, width),
        min(int(rows[-1]) + 1 + padding, height),
    )


def _with_proportions(box: Box, shape: Size, whole: Size) -> Box:
    """A box grown on its shorter sides to the proportions of `shape`, inside the image."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if width * shape[1] > height * shape[0]:
        top, bottom = _grown(top, bottom, math.floor(width * shape[1] / shape[0]), whole[1])
    else:
        left, right = _grown(left, right, math.floor(height * shape[0] / shape[1]), whole[0])
    return left, top, right, bottom


def _grown(first: int, last: int, length: int, most: int) -> tuple[int, int]:
    """A span grown to `length` on both sides, moved into 0 to `most`, and cut if it is longer."""
    first -= (length - (last - first)) // 2
    first = max(0, min(first, most - length))
    return first, min(first + length, most)


def fill_from_around(image: Pixels, mask: Plane) -> Pixels:
    """An image [H,W,3] whose masked area [H,W] has the colours around it, blurred into it."""
    from PIL import Image, ImageFilter

    alpha = np.rint(255 * (1 - mask)).astype(np.uint8)
    # Premultiplied, so that what the mask hides does not bleed into the blur.
    around = Image.fromarray(np.dstack([image, alpha])).convert("RGBa")
    filled = Image.new("RGBA", around.size)
    for radius, times in _FILLS:
        layer = around.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(layer)
    return np.asarray(filled.convert("RGB"))
