"""The images that a job begins with, read and laid on the canvas that the model works on.

No torch: whatever is wrong with a file is told before weights are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

from ldm.errors import ImageError, JobError
from ldm.images.canvas import (
    Fit,
    Pixels,
    Placement,
    Plane,
    Size,
    fit,
    floor_resize,
    hard_mask,
    outpaint,
    pad_to_multiple,
    paste,
)
from ldm.images.reading import (
    LoadedImage,
    check_mask,
    mask_of_alpha,
    read_depth,
    read_image,
    read_mask,
)
from ldm.jobs.fields import IMAGE_TASKS
from ldm.jobs.inputs import check_file, digest, parse_outpaint
from ldm.jobs.job import Job

# The originals' demos padded images so (gradio/*.py, pad_image).
_MULTIPLE = 64
_LEAST = 128
UPSCALING = 4
FLOORS = ("floor-32", "floor-64")
# Pixels of the image's edge that an outpainting may change, so that no seam shows.
_OVERLAP = 8


@dataclass(frozen=True, eq=False)
class Sources:
    """What a job's files hold. Arrays are uint8 [H,W,3]; `mask` and `depth` float32 [H,W].

    `image`, `mask` and `depth` lie on the canvas; `original` and `area` (the mask) have the size
    of the image that is wanted, `size`. Masks are 1 where the given one is 0.5 or more, else 0.
    `canvas` is the (width, height) that is decoded. `images` are the images of variations, of any
    sizes.
    """

    canvas: Size
    size: Size
    placement: Placement | None = None
    original: Pixels | None = None
    area: Plane | None = None
    image: Pixels | None = None
    mask: Plane | None = None
    depth: Plane | None = None
    images: tuple[Pixels, ...] = ()

    def finish(self, image: Pixels, job: Job) -> Pixels:
        """A decoded image [h,w,3] of the canvas as the one that is wanted."""
        if self.placement is not None:
            image = self.placement.undo(image)
        if self.area is not None and self.original is not None and not job.no_paste:
            image = paste(self.original, image, self.area, job.feather)
        return image


def read_sources(job: Job, multiple: int, *, padded: bool = True) -> Sources:
    """The files of a job, for a model whose images' sides are multiples of `multiple` pixels.

    With `padded`, of 64, too, and at least 128, as the demos of Stable Diffusion made them.
    Raises ImageError and JobError for files that are missing, broken or do not fit together.
    """
    if job.task == "variations":
        images = tuple(read_image(name).flattened() for name in job.images)
        return Sources(_size_of(job), _size_of(job), images=images)
    if job.task not in IMAGE_TASKS:
        return Sources(_size_of(job), _size_of(job))
    assert job.init_img is not None
    given = read_image(job.init_img)
    if job.task == "upscale":
        return _enlarged(given, multiple)
    rgb, mask = given.flattened(), _mask(job, given)
    depth = None
    if job.depth is not None:
        depth = read_depth(job.depth, size=given.size)
    if job.outpaint is not None:
        rgb, mask = outpaint(rgb, parse_outpaint(job.outpaint), _OVERLAP)
    elif job.task == "inpaint" or job.fit in FLOORS:
        # What lies under transparent parts is repainted; and the scripts dropped transparency.
        rgb = given.rgb
    return _placed(job, rgb, mask, depth, multiple, padded=padded)


def digests(job: Job) -> dict[str, str]:
    """A short hash of each file that the job reads, by its name."""
    found = {}
    for name in job.files():
        path = check_file(name).resolve()
        status = path.stat()
        found[name] = _digest(path, status.st_mtime_ns, status.st_size)
    return found


@lru_cache(maxsize=16)
def _digest(path: Path, changed: int, size: int) -> str:
    """The hash of a file that many jobs read, such as an autoencoder of hundreds of megabytes."""
    return digest(path)


def check_unchanged(recorded: Mapping[str, str], image: str) -> None:
    """Raise ImageError where a file is gone or no longer what it was when `image` was made of it.

    `recorded` has the hashes of then by the files' names.
    """
    for name, told in recorded.items():
        try:
            now = digest(name)
        except ImageError as error:
            raise ImageError(f"{error}; {image} was made from it") from None
        if now != told:
            raise ImageError(
                f"{name}: has changed since {image} was made from it (its hash was {told}, now "
                f"{now}); put the old file back, or start again from the new one"
            )


def _size_of(job: Job) -> Size:
    assert job.width is not None
    assert job.height is not None
    return job.width, job.height


def _enlarged(given: LoadedImage, multiple: int) -> Sources:
    """The small image of an upscaler, and the size of the large one.

    `multiple` is that of the large image.
    """
    rgb = given.flattened()
    placement = pad_to_multiple(given.size, max(1, multiple // UPSCALING))
    return Sources(
        canvas=_times(placement.canvas, UPSCALING),
        size=_times(given.size, UPSCALING),
        placement=placement,
        original=rgb,
        image=placement.apply(rgb),
    )


def _times(size: Size, factor: int) -> Size:
    return size[0] * factor, size[1] * factor


def _mask(job: Job, given: LoadedImage) -> Plane | None:
    if job.task != "inpaint" or job.outpaint is not None:
        return None
    assert job.init_img is not None
    if job.mask is not None:
        return read_mask(job.mask, invert=job.mask_invert, size=given.size)
    if given.alpha is None:
        raise JobError(
            f"--mask is missing, and {job.init_img} has no transparent part: name a mask "
            "(white is repainted), or --outpaint"
        )
    return mask_of_alpha(given, job.init_img)


def _placed(
    job: Job,
    rgb: Pixels,
    mask: Plane | None,
    depth: Plane | None,
    multiple: int,
    *,
    padded: bool,
) -> Sources:
    """The image at the size that is wanted, then on a canvas that the model can take."""
    source = (rgb.shape[1], rgb.shape[0])
    if job.fit in FLOORS:
        floor = floor_resize(source, math.lcm(multiple, int(job.fit[-2:])))
        wanted, canvas = floor, pad_to_multiple(floor.canvas, 1)
    else:
        wanted = fit(source, wanted_size(job, source), _fit(job))
        step, least = (math.lcm(multiple, _MULTIPLE), _LEAST) if padded else (multiple, 0)
        canvas = pad_to_multiple(wanted.canvas, step, least)
    original = wanted.apply(rgb)
    area = None if mask is None else hard_mask(wanted.apply(mask))
    if area is not None:  # what was masked may have been cut off
        width, height = wanted.canvas
        check_mask(area, f"{job.mask or job.init_img} made {width}x{height}")
    return Sources(
        canvas=canvas.canvas,
        size=wanted.canvas,
        placement=canvas,
        original=original,
        area=area,
        image=canvas.apply(original),
        mask=None if area is None else canvas.apply(area),
        depth=None if depth is None else canvas.apply(wanted.apply(depth)),
    )


def _fit(job: Job) -> Fit:
    known: tuple[Fit, ...] = get_args(Fit)
    return next((how for how in known if how == job.fit), "resize")


def wanted_size(job: Job, source: Size) -> Size:
    """The (width, height) to make of an image; one side alone keeps the proportions."""
    width, height = source
    if job.width is None and job.height is None:
        return source
    if job.width is None:
        assert job.height is not None
        return max(1, round(width * job.height / height)), job.height
    if job.height is None:
        return job.width, max(1, round(height * job.width / width))
    return job.width, job.height
