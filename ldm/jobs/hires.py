"""Hires fix: the size of the second pass and its number of steps.

The second pass enlarges an image and denoises it again at the larger size, like the hires fix of
AUTOMATIC1111's web UI (processing.py). Nothing here needs a model or torch.
"""

from __future__ import annotations

import math
import re

from ldm.errors import JobError
from ldm.jobs.fields import MAX_STEPS, Fields
from ldm.jobs.options import check_range

Size = tuple[int, int]  # width, height

LARGEST_FACTOR = 8.0
LARGEST_SIDE = 99_999
STRENGTH = 0.7  # the web UI's default
UPSCALER = "latent"
_LARGEST_STRENGTH = 0.999  # the largest divisor in the web UI


def parse_hires(text: str) -> float | Size:
    """Parse a factor such as `2` or a size such as `1024x1536`; raises JobError otherwise."""
    size = parse_size(text)
    if size is not None:
        if max(size) > LARGEST_SIDE:
            raise JobError(f"--hires {text}: a side may have at most {LARGEST_SIDE} pixels")
        return size
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 1 < factor <= LARGEST_FACTOR:
        raise JobError(
            f"--hires must be a factor above 1 and up to {LARGEST_FACTOR:g}, "
            f"or a size like 1024x1536, not {text!r}"
        )
    return factor


def parse_size(text: str) -> Size | None:
    """Parse a (width, height) such as `1024x1536`; None for anything else."""
    sides = re.fullmatch(r"(\d{1,9})\s*[xX]\s*(\d{1,9})", text.strip())
    return None if sides is None else (int(sides[1]), int(sides[2]))


def hires_size(text: str, size: Size, multiple: int) -> Size:
    """The (width, height) of the second pass for an image of `size`, both multiples of `multiple`.

    With a factor, the sides are rounded down; an explicit size must already be a multiple. Raises
    JobError for a size that is not, or that is smaller than the image.
    """
    wanted = parse_hires(text)
    if isinstance(wanted, float):
        width, height = (int(side * wanted) // multiple * multiple for side in size)
        if (width, height) == size:
            raise JobError(
                f"--hires {text}: does not enlarge {size[0]}x{size[1]}; try a larger factor"
            )
        return width, height
    if wanted[0] < size[0] or wanted[1] < size[1]:
        raise JobError(
            f"--hires {text}: smaller than the first pass, {size[0]}x{size[1]}; "
            "use a larger size, or a smaller --width and --height"
        )
    near = [round(side / multiple) * multiple for side in wanted]
    if list(wanted) != near:
        raise JobError(
            f"--hires {text}: both sides must be multiples of {multiple}; try {near[0]}x{near[1]}"
        )
    return wanted


def check_hires(job: Fields) -> None:
    """Raise JobError for options of hires fix that are out of range or exclude each other."""
    given = {
        "--hires-upscaler": job.hires_upscaler is not None,
        "--hires-strength": job.hires_strength is not None,
        "--hires-steps": job.hires_steps is not None,
    }
    if job.hires is None:
        for flag in (flag for flag, is_given in given.items() if is_given):
            raise JobError(f"{flag} does nothing without --hires")
        return
    parse_hires(job.hires)
    if job.noise == "stream" or job.fixed_code or job.schedule_compat != "exact":
        raise JobError(
            "--hires needs --noise image and --schedule-compat exact: omit --noise stream "
            "(the scripts' default), --fixed_code and --schedule-compat ldm"
        )
    if job.hires_strength is not None and not 0 <= job.hires_strength <= 1:
        raise JobError(f"--hires-strength must be 0 to 1, not {job.hires_strength:g}")
    check_range("--hires-steps", job.hires_steps, 1, MAX_STEPS)
    if job.hires_steps is not None and job.hires_strength is not None:
        grid_steps(job.hires_steps, job.hires_strength)


def grid_steps(steps: int, strength: float) -> int:
    """The length of the whole schedule, of which the second pass runs the last `steps` steps.

    Raises JobError if no schedule is that long.
    """
    if not strength:
        return steps
    total = int(steps / min(strength, _LARGEST_STRENGTH))
    if total > MAX_STEPS:
        least = steps / MAX_STEPS
        raise JobError(
            f"--hires-strength {strength:g} is too low for {steps} steps; "
            f"use {least:.3g} or more, or fewer --hires-steps"
        )
    return total
