"""The fields of a job that only models of flow matching (Stable Diffusion 3) know."""

from __future__ import annotations

import math
import re

from ldm.errors import JobError
from ldm.jobs.fields import Fields
from ldm.jobs.options import check_range

WITHOUT_T5 = ("zeros", "none")
"""What --t5 may say instead of a file."""
MOST_T5_TOKENS = 512


def parse_layers(text: str) -> tuple[int, ...]:
    """The numbers of layers in a text such as "7,8,9"; raises JobError for anything else."""
    if not re.fullmatch(r"\s*\d{1,4}\s*(,\s*\d{1,4}\s*)*", text, re.ASCII):
        raise JobError(f"--skip-layers must be numbers of layers such as 7,8,9, not {text!r}")
    return tuple(dict.fromkeys(int(number) for number in text.split(",")))


def check_flow_fields(job: Fields) -> None:
    """Raise JobError for errors that can be detected without a model."""
    if job.shift is not None and not (0 < job.shift < math.inf):
        raise JobError(f"--shift must be a number above 0, not {job.shift:g}")
    check_range("--t5-length", job.t5_length, 1, MOST_T5_TOKENS)
    if job.t5 == "none" and job.t5_length is not None:
        raise JobError("--t5-length does nothing with --t5 none; omit one of them")
    given = {
        "--skip-layer-scale": job.skip_layer_scale != Fields.skip_layer_scale,
        "--skip-layer-start": job.skip_layer_start != Fields.skip_layer_start,
        "--skip-layer-end": job.skip_layer_end != Fields.skip_layer_end,
    }
    if job.skip_layers is None:
        for flag in (flag for flag, is_given in given.items() if is_given):
            raise JobError(f"{flag} does nothing without --skip-layers")
        return
    parse_layers(job.skip_layers)
    if job.guidance_rescale:
        raise JobError("--guidance-rescale and --skip-layers exclude each other; omit one of them")
    if not math.isfinite(job.skip_layer_scale):
        raise JobError(f"--skip-layer-scale must be a number, not {job.skip_layer_scale}")
    if not 0 <= job.skip_layer_start <= job.skip_layer_end <= 1:
        raise JobError(
            "--skip-layer-start and --skip-layer-end must be shares of the steps, 0 to 1, "
            f"not {job.skip_layer_start:g} and {job.skip_layer_end:g}"
        )
