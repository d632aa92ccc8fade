"""Geometry of images: how one lies on the canvas that a model works on, and what is pasted back.

Sizes are (width, height) and boxes (left, top, right, bottom), in pixels, as in Pillow; arrays are
[H,W,3] bytes for images and [H,W] for masks (float32 in [0,1], 1 = repaint) and depth maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ldm.errors import ImageError
from ldm.jobs.inputs import Sides

Array = NDArray[Any]
Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]
Size = tuple[int, int]
Box = tuple[int, int, int, int]
Fit = Literal["resize", "crop", "pad", "error"]
FITS: tuple[str, ...] = get_args(Fit)


@dataclass(frozen=True)
class Placement:
    """How an image of the size `source` lies on a canvas of the size `canvas`.

    The part `crop` of the source is scaled to the part `area` of the canvas; what is left of the
    canvas repeats the edge of that. One placement serves an image, its mask and its depth map, so
    that they stay registered.
    """

    source: Size
    canvas: Size
    crop: Box
    area: Box

    def apply(self, array: Array) -> Array:
        """The canvas [h,w,...] of a source array [H,W,...].

        Images (uint8 [H,W,3]) are scaled with LANCZOS, planes [H,W] by area, or to the nearest
        where they grow, so that a plane makes no values that it did not have between.
        """
        if array.shape[:2] != self.source[::-1]:
            raise ValueError(f"an array of {array.shape} is no source of {self.source}")
        left, top, right, bottom = self.area
        scaled = _scaled(_cut(array, self.crop), (right - left, bottom - top))
        width, height = self.canvas
        sides = [(top, height - bottom), (left, width - right)]
        return np.pad(scaled, sides + [(0, 0)] * (array.ndim - 2), mode="edge")

    def undo(self, array: Array) -> Array:
        """The part `crop` of the source, at its own size, from a canvas array [h,w,...].

        That is the whole source unless the placement crops. A canvas that grew k times, as an
        upscaler's output does, gives a source that is k times as large.
        """
        factor = max(1, array.shape[0] // self.canvas[1])
        if array.shape[:2] != (self.canvas[1] * factor, self.canvas[0] * factor):
            raise ValueError(f"an array of {array.shape} is no multiple of {self.canvas}")
        left, top, right, bottom = (factor * place for place in self.area)
        width, height = self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]
        part = _cut(array, (left, top, right, bottom))
        return _scaled(part, (width * factor, height * factor))


def _cut(array: Array, box: Box) -> Array:
    left, top, right, bottom = box
    return array[top:bottom, left:right]


def _scaled(array: Array, size: Size) -> Array:
    """An array [H,W,...] at another size; a copy where the size is its own."""
    if array.shape[:2] == size[::-1]:
        return array.copy()
    from PIL import Image

    if array.ndim == 3:
        image = Image.fromarray(np.ascontiguousarray(array))
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    plane = Image.fromarray(np.ascontiguousarray(array, np.float32))
    scaled = np.asarray(plane.resize(size, Image.Resampling.BOX))
    # Sums of weights round: ones must stay ones, for a mask to stay full where it was.
    scaled = scaled.clip(array.min(), array.max())
    return (scaled if array.dtype.kind == "f" else np.rint(scaled)).astype(array.dtype)


def _whole(size: Size) -> Box:
    return (0, 0, *size)


def fit(source: Size, canvas: Size, how: Fit) -> Placement:
    """Place an image on a canvas of a given size.

    resize stretches it, as the originals did; crop covers the canvas and cuts off what stands over,
    as much on both sides; pad fits it inside and repeats its edges around it; error raises
    ImageError unless it has that size already.
    """
    if how not in FITS:
        raise ValueError(f"{how!r} is not one of {', '.join(FITS)}")
    whole = Placement(source, canvas, _whole(source), _whole(canvas))
    if source == canvas or how == "resize":
        return whole
    if how == "error":
        raise ImageError(
            f"the image is {_by(source)} and {_by(canvas)} is wanted; "
            "make it that size, or have it resized, cropped or padded"
        )
    if how == "crop":
        return Placement(source, canvas, _inside(source, canvas), _whole(canvas))
    return Placement(source, canvas, _whole(source), _inside(canvas, source))


def _inside(outer: Size, shape: Size) -> Box:
    """The largest box in the middle of `outer` with the sides of `shape` in proportion."""
    width, height = outer
    if width * shape[1] > height * shape[0]:
        width = max(1, _rounded(height * shape[0], shape[1]))
    else:
        height = max(1, _rounded(width * shape[1], shape[0]))
    left, top = (outer[0] - width) // 2, (outer[1] - height) // 2
    return left, top, left + width, top + height


def _rounded(number: int, divisor: int) -> int:
    return (2 * number + divisor) // (2 * divisor)


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def pad_to_multiple(source: Size, multiple: int, least: int = 0) -> Placement:
    """Place an image unscaled, its edges repeated to the right and below to the next multiple.

    `least` is the smallest side of the canvas. The originals' demos (gradio/*.py, pad_image) had
    multiple=64, least=128.
    """
    width, height = (-(-max(side, least) // multiple) * multiple for side in source)
    return Placement(source, (width, height), _whole(source), _whole(source))


def floor_resize(source: Size, multiple: int) -> Placement:
    """Place an image stretched to the multiple of `multiple` below each of its sides.

    The originals' scripts/img2img.py, with 32 for v1 and 64 for v2. Raises ImageError for a side
    under `multiple`.
    """
    width, height = (side // multiple * multiple for side in source)
    if not width or not height:
        raise ImageError(
            f"the image is {_by(source)} and needs {multiple} pixels a side or more; enlarge it"
        )
    return Placement(source, (width, height), _whole(source), (0, 0, width, height))


def hard_mask(mask: Plane) -> Plane:
    """The mask as the inpainting networks see it: 1 from 0.5 on, else 0."""
    return (mask >= 0.5).astype(np.float32)


def latent_mask(mask: Plane, height: int, width: int) -> Plane:
    """The hard mask at the size of the latents [h,w]: nearest, as torch's `interpolate` has it."""
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return hard_mask(mask[rows[:, None], columns])


def touched_mask(mask: Plane, height: int, width: int) -> Plane:
    """1 for the latents [h,w] that have any part of the hard mask, whose sides are multiples."""
    blocks = hard_mask(mask).reshape(height, mask.shape[0] // height, width, -1)
    touched: Plane = blocks.max(axis=(1, 3))
    return touched


def paste(original: Pixels, generated: Pixels, mask: Plane, feather: int = 0) -> Pixels:
    """Put what was generated over the original where the mask says so: [H,W,3].

    Where the mask is 0 the original comes back byte for byte; where the weight (see `weights`) is
    1, what was generated does; between, the two are blended.
    """
    if not original.shape == generated.shape == (*mask.shape, 3):
        raise ValueError(f"{original.shape}, {generated.shape} and {mask.shape} do not fit")
    share = weights(mask, feather)[..., None]
    under = original.astype(np.float32)
    return np.rint(under + share * (generated - under)).astype(np.uint8)


def weights(mask: Plane, feather: int) -> Plane:
    """The mask [H,W] with its edge softened inwards, over `feather` pixels; 0 leaves it as it is.

    A pixel whose nearest unmasked one (mask 0) is d pixels away, centre to centre, weighs
    min(1, d / (feather + 1)) of its mask. The image's own edge is none of the mask's.
    """
    if feather <= 0:
        return mask
    reach = feather + 1
    return mask * (_depth_inside(mask > 0, reach) / np.float32(reach))


def _depth_inside(inside: NDArray[np.bool_], reach: int) -> Plane:
    """The exact distance of each pixel to the nearest one outside, at most `reach`.

    First along the columns, then the smallest hypotenuse along the rows: Felzenszwalb and
    Huttenlocher, Distance Transforms of Sampled Functions (2012), with a search in place of the
    envelope since `reach` is small.
    """
    height, width = inside.shape
    rows = np.arange(height)[:, None]
    above = np.maximum.accumulate(np.where(inside, -reach, rows), axis=0)
    below = np.minimum.accumulate(np.where(inside, height + reach, rows)[::-1], axis=0)[::-1]
    upright = np.minimum(rows - above, below - rows).clip(max=reach).astype(np.float32) ** 2
    nearest = upright.copy()
    for shift in range(1, min(reach, width)):
        moved = upright + np.float32(shift**2)
        np.minimum(nearest[:, shift:], moved[:, :-shift], out=nearest[:, shift:])
        np.minimum(nearest[:, :-shift], moved[:, shift:], out=nearest[:, :-shift])
    return np.sqrt(nearest)


def outpaint(rgb: Pixels, sides: Sides, overlap: int = 0) -> tuple[Pixels, Plane]:
    """An image with room around it: [H,W,3] and the mask [H,W], 1 on what is new.

    The room repeats the image's edge, a start that has its colours; noise is the sampler's part.
    The mask reaches `overlap` pixels into the old image on the sides that grew, at most a quarter
    of its shorter side, so that a feather of that width blends the seam.
    """
    height, width = rgb.shape[:2]
    overlap = min(overlap, height // 4, width // 4)
    left, top, right, bottom = sides
    extended = np.pad(rgb, ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask = np.ones(extended.shape[:2], np.float32)
    x, y = left + (overlap if left else 0), top + (overlap if top else 0)
    x_end = left + width - (overlap if right else 0)
    y_end = top + height - (overlap if bottom else 0)
    mask[y:y_end, x:x_end] = 0
    return extended, mask
