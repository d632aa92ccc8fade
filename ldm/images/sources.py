"""A job's input images, read and placed on the model's canvas.

No torch: errors in a file are reported before weights are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from ldm.images.inpainting import blurred, fill_from_around, masked_crop
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

# How the originals' demos padded images (gradio/*.py, pad_image).
_MULTIPLE = 64
_LEAST = 128
_MASKED = 0.5  # of a mask: where the image is inpainted
UPSCALING = 4
FLOORS = ("floor-32", "floor-64")
# Pixels of the image's edge that an outpainting may change, so that no seam shows.
_OVERLAP = 8


@dataclass(frozen=True, eq=False)
class Sources:
    """The contents of a job's files. Images are uint8 [H,W,3]; `mask` and `depth` float32 [H,W].

    `image`, `mask` and `depth` have the size of the canvas; `original` and `area` (the mask) have
    the size of the result, `size`. Masks are 1 where the given one is 0.5 or more, else 0, but
    `area` is soft where it is blurred. `canvas` is the (width, height) to decode. `crop` is the
    part of `original` that is generated, None for all of it. `images` are the inputs of variations,
    of any size.
    """

    canvas: Size
    size: Size
    placement: Placement | None = None
    original: Pixels | None = None
    area: Plane | None = None
    image: Pixels | None = None
    mask: Plane | None = None
    depth: Plane | None = None
    crop: Placement | None = None
    images: tuple[Pixels, ...] = ()

    @property
    def is_cropped(self) -> bool:
        """Whether the canvas is larger than the image that is wanted."""
        return self.placement is not None and self.placement.canvas != self.placement.source

    def finish(self, image: Pixels, job: Job) -> Pixels:
        """Turn a decoded canvas [h,w,3] into the result."""
        if self.placement is not None:
            image = self.placement.undo(image)
        if self.crop is not None and self.original is not None:
            image = self.crop.put(image, self.original)
        if self.area is not None and self.original is not None and not job.no_paste:
            image = paste(self.original, image, self.area, job.feather)
        return image


def read_sources(job: Job, multiple: int, *, padded: bool = True, factor: int = 1) -> Sources:
    """Read a job's files for a model whose images have sides that are multiples of `multiple`.

    With `padded`, sides are also multiples of 64 and at least 128, as in the Stable Diffusion
    demos. An image that is made of no other has a canvas of multiples of `factor` pixels, which is
    cropped. Raises ImageError and JobError for files that are missing, broken or do not match.
    """
    if job.task == "variations":
        images = tuple(read_image(name).flattened() for name in job.images)
        return replace(_blank(job, factor), images=images)
    if job.task not in IMAGE_TASKS:
        return _blank(job, factor)
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
        # Transparent parts are inpainted anyway; and the scripts dropped transparency.
        rgb = given.rgb
    if job.inpaint_area == "masked":
        assert mask is not None
        return _cropped(job, rgb, mask, multiple, padded=padded)
    return _placed(job, rgb, mask, depth, multiple, padded=padded)


def digests(job: Job) -> dict[str, str]:
    """A short hash of each file that the job reads, by its name."""
    hashes = {}
    for name in job.files():
        path = check_file(name).resolve()
        status = path.stat()
        hashes[name] = _digest(path, status.st_mtime_ns, status.st_size)
    return hashes


@lru_cache(maxsize=16)
def _digest(path: Path, changed: int, size: int) -> str:
    """A cached hash, since many jobs read one file, such as an autoencoder of hundreds of MB."""
    return digest(path)


def check_unchanged(recorded: Mapping[str, str], image: str) -> None:
    """Raise ImageError if an input file of `image` has changed or is missing.

    `recorded` maps the files' names to the hashes they had.
    """
    for name, before in recorded.items():
        try:
            now = digest(name)
        except ImageError as error:
            raise ImageError(f"{error}; {image} was made from it") from None
        if now != before:
            raise ImageError(
                f"{name}: has changed since {image} was made from it (its hash was {before}, now "
                f"{now}); restore the old file, or start again from the new one"
            )


def _blank(job: Job, factor: int) -> Sources:
    """The size of an image that is made of no other, and the canvas to generate."""
    size = _size_of(job)
    placement = pad_to_multiple(size, factor)
    is_whole = placement.canvas == size
    return Sources(placement.canvas, size, placement=None if is_whole else placement)


def _size_of(job: Job) -> Size:
    assert job.width is not None
    assert job.height is not None
    return job.width, job.height


def _enlarged(given: LoadedImage, multiple: int) -> Sources:
    """The sources of an upscaler: the small image and the size of the large one.

    `multiple` applies to the large image.
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


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


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
            "(white is inpainted), or use --outpaint"
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
    """Fit the image to the requested size, then to a canvas that suits the model."""
    source = (rgb.shape[1], rgb.shape[0])
    if job.fit in FLOORS:
        multiple = math.lcm(multiple, int(job.fit[-2:]))
        floor = floor_resize(source, multiple, bicubic=job.schedule_compat == "sgm")
        wanted, canvas = floor, pad_to_multiple(floor.canvas, 1)
    else:
        wanted = fit(source, wanted_size(job, source), _fit(job))
        canvas = _canvas(wanted.canvas, multiple, padded=padded)
    original = wanted.apply(rgb)
    sources = Sources(
        canvas=canvas.canvas,
        size=wanted.canvas,
        placement=canvas,
        original=original,
        image=canvas.apply(original),
        depth=None if depth is None else canvas.apply(wanted.apply(depth)),
    )
    if mask is None:
        return sources
    soft = wanted.apply(_softened(job, mask))
    hard = hard_mask(soft)  # the masked area may have been cropped away
    width, height = wanted.canvas
    check_mask(hard, f"{job.mask or job.init_img} at {width}x{height}")
    return replace(
        sources,
        # The blend of a blurred mask lies outside its edge, as in the web UI.
        area=(2 * soft).clip(0, 1) if job.mask_blur else hard,
        image=canvas.apply(_filled(job, original, soft)),
        mask=canvas.apply(hard),
    )


def _cropped(job: Job, rgb: Pixels, mask: Plane, multiple: int, *, padded: bool) -> Sources:
    """The part around the mask at the requested size, on a canvas that suits the model."""
    assert job.inpaint_padding is not None
    whole, wanted = (rgb.shape[1], rgb.shape[0]), _size_of(job)
    area = _softened(job, mask)
    crop = masked_crop(area, job.inpaint_padding, wanted)
    soft = crop.apply(area)
    if soft.max() < _MASKED:
        raise ImageError(
            f"{job.mask or job.init_img}: the mask is too thin to show at {_by(wanted)}; "
            "use a larger --width and --height, or a thicker mask"
        )
    canvas = _canvas(wanted, multiple, padded=padded)
    return Sources(
        canvas=canvas.canvas,
        size=whole,
        placement=canvas,
        original=rgb,
        area=area if job.mask_blur else hard_mask(area),
        image=canvas.apply(_filled(job, crop.apply(rgb), soft)),
        mask=canvas.apply(hard_mask(soft)),
        crop=crop,
    )


def _canvas(size: Size, multiple: int, *, padded: bool) -> Placement:
    """An image of a size on the canvas that the model takes."""
    if padded:
        return pad_to_multiple(size, math.lcm(multiple, _MULTIPLE), _LEAST)
    return pad_to_multiple(size, multiple)


def _softened(job: Job, mask: Plane) -> Plane:
    """The mask of an image, blurred where the job wants it."""
    if not job.mask_blur:
        return mask
    soft = blurred(hard_mask(mask), job.mask_blur)
    if soft.max() < _MASKED:
        raise ImageError(
            f"{job.mask or job.init_img}: the mask is too thin for --mask-blur {job.mask_blur}; "
            "use a smaller blur"
        )
    return soft


def _filled(job: Job, image: Pixels, mask: Plane) -> Pixels:
    """The image to start from: as it is, or with the colours around the masked area in it.

    Noise and nothing replace its latents later, but not at the edge of a blurred mask.
    """
    if job.inpaint_fill in (None, "original"):
        return image
    return fill_from_around(image, mask if job.mask_blur else hard_mask(mask))


def _fit(job: Job) -> Fit:
    known: tuple[Fit, ...] = get_args(Fit)
    return next((how for how in known if how == job.fit), "resize")


def wanted_size(job: Job, source: Size) -> Size:
    """The requested (width, height) of an image; a single side keeps the aspect ratio."""
    width, height = source
    if job.width is None and job.height is None:
        return source
    if job.width is None:
        assert job.height is not None
        return max(1, round(width * job.height / height)), job.height
    if job.height is None:
        return job.width, max(1, round(height * job.width / width))
    return job.width, job.height
