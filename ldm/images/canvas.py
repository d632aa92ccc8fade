"""Image geometry: placing an image on the model's canvas, and pasting the result back.

Sizes are (width, height) and boxes (left, top, right, bottom), in pixels, as in Pillow; arrays are
[H,W,3] bytes for images and [H,W] for masks (float32 in [0,1], 1 = inpaint) and depth maps.
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
    """The placement of an image of size `source` on a canvas of size `canvas`.

    The part `crop` of the source is scaled to the part `area` of the canvas; the rest of the canvas
    repeats the edge of that area. An image, its mask and its depth map share one placement, so that
    they stay aligned. Images are scaled `bicubic` or else with LANCZOS.
    """

    source: Size
    canvas: Size
    crop: Box
    area: Box
    bicubic: bool = False

    def apply(self, array: Array) -> Array:
        """The canvas [h,w,...] of a source array [H,W,...].

        Planes [H,W] are scaled by area, or by nearest neighbour when enlarged, so that a plane
        stays within its range of values.
        """
        if array.shape[:2] != self.source[::-1]:
            raise ValueError(f"an array of {array.shape} does not have the size {self.source}")
        left, top, right, bottom = self.area
        size = (right - left, bottom - top)
        scaled = _scaled(_cut(array, self.crop), size, bicubic=self.bicubic)
        width, height = self.canvas
        sides = [(top, height - bottom), (left, width - right)]
        return np.pad(scaled, sides + [(0, 0)] * (array.ndim - 2), mode="edge")

    def undo(self, array: Array) -> Array:
        """The part `crop` of the source, at its own size, from a canvas array [h,w,...].

        This is the whole source unless the placement crops. A canvas enlarged k times, such as an
        upscaler's output, gives a source that is k times as large.
        """
        factor = max(1, array.shape[0] // self.canvas[1])
        if array.shape[:2] != (self.canvas[1] * factor, self.canvas[0] * factor):
            raise ValueError(f"an array of {array.shape} is not a multiple of {self.canvas}")
        left, top, right, bottom = (factor * place for place in self.area)
        width, height = self.crop[2] - self.crop[0], self.crop[3] - self.crop[1]
        part = _cut(array, (left, top, right, bottom))
        return _scaled(part, (width * factor, height * factor))

    def put(self, array: Array, whole: Array) -> Array:
        """The source `whole` [H,W,...] with its part `crop` replaced by a canvas array's."""
        left, top, right, bottom = self.crop
        made = whole.copy()
        made[top:bottom, left:right] = self.undo(array)
        return made


def _cut(array: Array, box: Box) -> Array:
    left, top, right, bottom = box
    return array[top:bottom, left:right]


def _scaled(array: Array, size: Size, *, bicubic: bool = False) -> Array:
    """An array [H,W,...] scaled to a size; a plain copy if it has that size already."""
    if array.shape[:2] == size[::-1]:
        return array.copy()
    from PIL import Image

    if array.ndim == 3:
        image = Image.fromarray(np.ascontiguousarray(array))
        kernel = Image.Resampling.BICUBIC if bicubic else Image.Resampling.LANCZOS
        return np.asarray(image.resize(size, kernel))
    plane = Image.fromarray(np.ascontiguousarray(array, np.float32))
    scaled = np.asarray(plane.resize(size, Image.Resampling.BOX))
    # Sums of weights round; clipping makes sure that a full mask stays exactly 1.
    scaled = scaled.clip(array.min(), array.max())
    return (scaled if array.dtype.kind == "f" else np.rint(scaled)).astype(array.dtype)


def _whole(size: Size) -> Box:
    return (0, 0, *size)


def fit(source: Size, canvas: Size, how: Fit) -> Placement:
    """Place an image on a canvas of a given size.

    resize stretches it, as the originals did; crop covers the canvas and cuts the excess equally on
    both sides; pad fits it inside and repeats its edges around it; error raises ImageError unless
    it has that size already.
    """
    if how not in FITS:
        raise ValueError(f"{how!r} is not one of {', '.join(FITS)}")
    whole = Placement(source, canvas, _whole(source), _whole(canvas))
    if source == canvas or how == "resize":
        return whole
    if how == "error":
        raise ImageError(
            f"the image is {_by(source)}, but must be {_by(canvas)}; "
            "resize it, or let --fit resize, crop or pad it"
        )
    if how == "crop":
        return Placement(source, canvas, _inside(source, canvas), _whole(canvas))
    return Placement(source, canvas, _whole(source), _inside(canvas, source))


def _inside(outer: Size, shape: Size) -> Box:
    """The largest centred box in `outer` with the aspect ratio of `shape`."""
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
    """Place an image unscaled, with its edges repeated right and below up to the next multiple.

    `least` is the smallest side of the canvas. The originals' demos (gradio/*.py, pad_image) used
    multiple=64, least=128.
    """
    width, height = (-(-max(side, least) // multiple) * multiple for side in source)
    return Placement(source, (width, height), _whole(source), _whole(source))


def floor_resize(source: Size, multiple: int, *, bicubic: bool = False) -> Placement:
    """Place an image with each side rounded down to a multiple of `multiple`.

    As in the originals' scripts/img2img.py, with 32 for v1 and 64 for v2; generative-models' demo
    is `bicubic`. Raises ImageError for a side below `multiple`.
    """
    width, height = (side // multiple * multiple for side in source)
    if not width or not height:
        raise ImageError(
            f"the image is {_by(source)}, but needs at least {multiple} pixels per side; enlarge it"
        )
    area = (0, 0, width, height)
    return Placement(source, (width, height), _whole(source), area, bicubic=bicubic)


def hard_mask(mask: Plane) -> Plane:
    """The mask for the inpainting networks: 1 from 0.5 on, else 0."""
    return (mask >= 0.5).astype(np.float32)


def latent_mask(mask: Plane, height: int, width: int) -> Plane:
    """The hard mask at the size of the latents [h,w], by torch's nearest `interpolate`."""
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return hard_mask(mask[rows[:, None], columns])


def touched_mask(mask: Plane, height: int, width: int) -> Plane:
    """1 for each latent [h,w] that the hard mask touches; the mask's sides must be multiples."""
    blocks = hard_mask(mask).reshape(height, mask.shape[0] // height, width, -1)
    touched: Plane = blocks.max(axis=(1, 3))
    return touched


def paste(original: Pixels, generated: Pixels, mask: Plane, feather: int = 0) -> Pixels:
    """Paste the generated image into the masked area of the original: [H,W,3].

    Where the mask is 0, the original stays byte for byte; where the weight (see `weights`) is 1,
    the generated image replaces it; in between, the two are blended.
    """
    if not original.shape == generated.shape == (*mask.shape, 3):
        raise ValueError(f"{original.shape}, {generated.shape} and {mask.shape} do not fit")
    share = weights(mask, feather)[..., None]
    under = original.astype(np.float32)
    return np.rint(under + share * (generated - under)).astype(np.uint8)


def weights(mask: Plane, feather: int) -> Plane:
    """The mask [H,W] with its edge feathered inwards over `feather` pixels; 0 leaves it unchanged.

    A pixel d pixels from the nearest unmasked one (mask 0), centre to centre, is weighted by
    min(1, d / (feather + 1)). The border of the image does not count as an edge of the mask.
    """
    if feather <= 0:
        return mask
    reach = feather + 1
    return mask * (_depth_inside(mask > 0, reach) / np.float32(reach))


def _depth_inside(inside: NDArray[np.bool_], reach: int) -> Plane:
    """The exact distance from each pixel to the nearest one outside, at most `reach`.

    First along the columns, then the smallest hypotenuse along the rows: Felzenszwalb and
    Huttenlocher, Distance Transforms of Sampled Functions (2012), with a search instead of the
    envelope because `reach` is small.
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
    """Extend an image on its sides: [H,W,3] and the mask [H,W], 1 on the new area.

    The new area repeats the image's edge, so that it starts with matching colours; the sampler adds
    noise. On the extended sides the mask overlaps the old image by `overlap` pixels, at most a
    quarter of its shorter side, so that a feather of that width blends the seam.
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
