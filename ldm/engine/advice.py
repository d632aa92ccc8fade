"""Notes about a job that will run, but may not give what was meant; without torch."""

from __future__ import annotations

import re
from pathlib import Path

from ldm.checkpoints.families.choice import Choice
from ldm.checkpoints.sgm import input_keys
from ldm.jobs.job import Job

# The sizes that SDXL was trained for, each of about a million pixels, and turned.
SDXL_SIZES = ((1024, 1024), (1152, 896), (1216, 832), (1344, 768), (1536, 640))
# How far the pixels of a size may be from a million to go without a note.
_LEAST, _MOST = 0.6, 1.6
# Names of autoencoders of Stable Diffusion 1 and 2, whose tensors have the shapes of SDXL's.
_SD_NAMES = re.compile(r"vae-?ft-?(mse|ema)|kl-?f8|sd-?v?1|v1-?5|840000|560000|orangemix|blessed")
_SDXL_NAMES = re.compile(r"sd_?-?xl|xl[_-]vae|taesdxl")


def notes_about(job: Job, choice: Choice) -> list[str]:
    """The notes about a resolved job."""
    return [note for note in (_size_note(job, choice), _autoencoder_note(job, choice)) if note]


def is_sdxl(choice: Choice) -> bool:
    """Whether a model takes sizes besides text."""
    return "original_size_as_tuple" in input_keys(choice.config)


def _size_note(job: Job, choice: Choice) -> str:
    if not choice.family.name.startswith("sdxl") or job.width is None or job.height is None:
        return ""
    share = job.width * job.height / 1024**2
    if _LEAST <= share <= _MOST:
        return ""
    wanted = max(1.0, job.width / job.height, job.height / job.width)
    long, short = min(SDXL_SIZES, key=lambda size: abs(size[0] / size[1] - wanted))
    near = f"{long}x{short}" if job.width >= job.height else f"{short}x{long}"
    return (
        f"SDXL was trained for about a million pixels, and {job.width}x{job.height} is far from "
        f"that: {near} will look better"
    )


def _autoencoder_note(job: Job, choice: Choice) -> str:
    """The files of both kinds have the same keys and shapes, so only their names tell them."""
    name = Path(job.vae or "").stem.lower()
    is_xl, known = is_sdxl(choice), choice.family.name
    if is_xl and _SD_NAMES.search(name) and not _SDXL_NAMES.search(name):
        return f"--vae {job.vae}: looks like one of Stable Diffusion 1, which is wrong for SDXL"
    if known.startswith(("v1", "v2")) and _SDXL_NAMES.search(name):
        return f"--vae {job.vae}: looks like SDXL's, which is wrong for {choice.family.title}"
    return ""
