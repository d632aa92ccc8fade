"""What SDXL is conditioned on besides text: sizes, a crop and aesthetic scores."""

from __future__ import annotations

import math
import re
from typing import Any

from ldm.errors import JobError

Pair = tuple[int, int]

LARGEST = 65_536  # of a side, in pixels
# The scores of generative-models' demo and of others.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


def parse_size(flag: str, text: str) -> Pair:
    """Parse WIDTHxHEIGHT; raises JobError otherwise."""
    sides = re.fullmatch(r"(\d{1,5})\s*[xX]\s*(\d{1,5})", text.strip())
    size = (int(sides[1]), int(sides[2])) if sides is not None else (0, 0)
    if not all(1 <= side <= LARGEST for side in size):
        raise JobError(f"{flag} must be a size like 1024x768, not {text!r}")
    return size


def parse_crop(text: str) -> Pair:
    """Parse LEFT,TOP; raises JobError otherwise."""
    sides = re.fullmatch(r"(\d{1,5})\s*,\s*(\d{1,5})", text.strip())
    if sides is None or max(int(sides[1]), int(sides[2])) > LARGEST:
        raise JobError(f"--crop must be LEFT,TOP in pixels, like 0,128, not {text!r}")
    return int(sides[1]), int(sides[2])


def check_conditions(job: Any) -> None:
    """Raise JobError for sizes, a crop or scores of a job that cannot be read."""
    for flag, text in (("--original-size", job.original_size), ("--target-size", job.target_size)):
        if text is not None:
            parse_size(flag, text)
    if job.crop is not None:
        parse_crop(job.crop)
    scores = {
        "--aesthetic-score": job.aesthetic_score,
        "--negative-aesthetic-score": job.negative_aesthetic_score,
    }
    for flag, score in scores.items():
        if score is not None and not (math.isfinite(score) and 0 <= score <= 10):
            raise JobError(f"{flag} must be 0 to 10, not {score:g}")
    if job.unconditional == "zeros" and (job.negative or job.negative_2):
        raise JobError("--unconditional zeros leaves no room for a negative prompt; omit one")


def numbers_of(job: Any, size: Pair) -> tuple[dict[str, tuple[float, ...]], ...]:
    """The numbers by the `input_key` of the YAMLs, for the prompt and for the negative prompt.

    `size` (width, height) of the generated image stands for sizes that are not given.
    """
    original = size if job.original_size is None else parse_size("", job.original_size)
    target = size if job.target_size is None else parse_size("", job.target_size)
    left, top = (0, 0) if job.crop is None else parse_crop(job.crop)
    both: dict[str, tuple[float, ...]] = {
        "original_size_as_tuple": original[::-1],
        "crop_coords_top_left": (top, left),
        "target_size_as_tuple": target[::-1],
    }
    scores = (
        (job.aesthetic_score, AESTHETIC_SCORE),
        (job.negative_aesthetic_score, NEGATIVE_AESTHETIC_SCORE),
    )
    return tuple(
        {**both, "aesthetic_score": (default if score is None else score,)}
        for score, default in scores
    )
